"""Talus: an edge agent that listens to a slope. See ``docs/architecture.md``."""

__version__ = "0.1.0"
