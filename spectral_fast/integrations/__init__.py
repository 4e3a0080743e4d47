"""Other people's engines, each imported only when asked for."""
