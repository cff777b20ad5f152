"""How well methods do, in figures, tables and pictures."""
