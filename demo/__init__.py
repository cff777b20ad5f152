"""The demonstrations: ``make demo`` and ``python -m demo.remote``."""
