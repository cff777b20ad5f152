"""The window lengths at which verdicts are given."""

from __future__ import annotations

from agent.types import WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES

FULL_S = (WINDOW_SAMPLES - WINDOW_ONSET) / WINDOW_RATE_HZ
"""Seconds after the onset that a full window holds."""
LENGTHS_S = (3.0, 5.0, 10.0, 20.0, 40.0, 80.0, FULL_S)
"""Seconds after the onset; the last is the full window."""
