"""Talus: an edge agent that listens to a slope. See ``docs/architecture.md``."""

import os

# The official builds of ONNX Runtime, from about 1.30 on, tell their maker of every session unless this is set before
# they are loaded. A station talks to its broker and its recorder, and to nobody else.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"
