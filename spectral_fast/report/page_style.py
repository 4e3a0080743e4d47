"""The style sheet of pages and notebook fragments: everything below .spectral-fast, light and dark."""

__all__ = ["STYLE"]

STYLE = """
.spectral-fast { --text: #1d2430; --dim: #5b6675; --line: #dde2e8; --back: #ffffff; --soft: #f4f6f8;
  --severe: #b3261e; --warning: #9a6700; --info: #0b63a5;
  color: var(--text); background: var(--back); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
.spectral-fast h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
.spectral-fast h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
.spectral-fast p { margin: .4rem 0; }
.spectral-fast .dim { color: var(--dim); font-size: .9em; max-width: 90ch; }
.spectral-fast .lead { color: var(--dim); font-weight: 600; }
.spectral-fast .scroll { overflow-x: auto; margin: .7rem 0; }
.spectral-fast table { border-collapse: collapse; font-size: .84em; font-variant-numeric: tabular-nums; }
.spectral-fast caption { text-align: left; font-weight: 600; padding: .2rem 0; }
.spectral-fast th, .spectral-fast td { padding: .2rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap; text-align: right; background: none; }
.spectral-fast th { color: var(--dim); font-weight: 600; vertical-align: bottom; }
.spectral-fast th.left, .spectral-fast td.left { text-align: left; }
.spectral-fast td.name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .95em; }
.spectral-fast .finding td { white-space: normal; vertical-align: top; }
.spectral-fast tbody tr:hover { background: var(--soft); }
.spectral-fast dl { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr; gap: .15rem 1rem; margin: .5rem 0; }
.spectral-fast dt { color: var(--dim); margin: 0; }
.spectral-fast dd { margin: 0; overflow-wrap: anywhere; }
.spectral-fast .finding { border: 1px solid var(--line); border-left: 4px solid var(--info); border-radius: 6px;
  padding: .6rem .9rem; margin: .7rem 0; background: var(--soft); }
.spectral-fast .finding h3 { font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.spectral-fast .finding.severe { border-left-color: var(--severe); }
.spectral-fast .finding.warning { border-left-color: var(--warning); }
.spectral-fast .badge { font-size: .75em; letter-spacing: .04em; text-transform: uppercase; font-weight: 700; margin-right: .6em; color: var(--info); }
.spectral-fast .severe .badge { color: var(--severe); }
.spectral-fast .warning .badge { color: var(--warning); }
.spectral-fast code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .95em; background: none; color: inherit; }
.spectral-fast .bar { display: inline-block; height: .8em; min-width: 1px; background: #0072b2; border-radius: 1px; }
.spectral-fast td.bars { width: 22rem; text-align: left; }
.spectral-fast img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; margin: .9rem 0; }
@media (prefers-color-scheme: dark) {
  .spectral-fast { --text: #e4e8ee; --dim: #9aa6b5; --line: #333c48; --back: #14181e; --soft: #1c222a; --severe: #ff8a80; --warning: #f0b849; --info: #6cb6ff; }
  .spectral-fast .bar { background: #56b4e9; }
}
"""
