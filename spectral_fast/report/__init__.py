"""How results look: text, tables, figures, pages. Imported only when something is to be shown.

Each module dispatches on the name of the result's class, so that none of them loads an analysis (or torch) to print one.
"""
