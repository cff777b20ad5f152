"""Have NVIDIA's own parser and builder (TensorRT for RTX) make engines of ONNX files for GPUs that are not there.

What it refuses would be refused on the device; that it computes rightly, only the device shows. Run by ``run.py``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from agent.tensorrt_child import api

GPUS = ("SM80", "SM86", "SM89", "SM120")


def compiled(trt: Any, source: bytes, gpu: str) -> tuple[int, int]:
    """Layers of the network, and bytes of its engine.

    Raises:
        ValueError: the parser or the builder refuses it; why, in its own words.
    """
    said: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                said.append(text)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(api.network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source):
        raise ValueError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, gpu), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(said[-1] if said else "no reason given")
    return network.num_layers, engine.nbytes


def main() -> None:
    trt: Any = api.load()
    for path in map(Path, sys.argv[1:]):
        made = []
        try:
            for gpu in GPUS:
                begin = time.monotonic()
                layers, size = compiled(trt, path.read_bytes(), gpu)
                made.append(f"{gpu} {size / 1e6:.2f} MB in {time.monotonic() - begin:.1f} s")
            print(f"{path.name}: parsed, {layers} layers; engines: {', '.join(made)}")
        except ValueError as error:
            print(f"{path.name}: refused: {' '.join(str(error).split())[:110]}")


if __name__ == "__main__":
    main()
