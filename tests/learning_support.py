"""What the modules that train networks share: the marker, and one reason to skip them where torch is not installed."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="trains networks, which needs torch: make test-train")

TRAIN = pytest.mark.train
