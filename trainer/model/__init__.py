"""The transformer: its switches, its parts, its loss."""
