"""Have NVIDIA's own parser and builder (TensorRT for RTX) make an engine of an ONNX file for a GPU that is not there.

What it refuses would be refused on the device; that it computes rightly, only the device shows. Run by ``run.py``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from agent.tensorrt_child import api

GPUS = ("SM80", "SM86", "SM89", "SM120")


def main() -> int:
    source = Path(sys.argv[1])
    trt: Any = api.load()
    logger = trt.Logger(trt.Logger.ERROR)
    made = []
    for gpu in GPUS:
        builder = trt.Builder(logger)
        network = builder.create_network(api.network_flags(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(source.read_bytes()):
            errors = [parser.get_error(number).desc() for number in range(parser.num_errors)]
            print(f"WRONG {source.name}: the parser of {api.version(trt)} refuses it: {errors[:3]}")
            return 1
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, gpu), 0)
        begin = time.monotonic()
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            print(f"WRONG {source.name}: {api.version(trt)} builds no engine for {gpu}")
            return 1
        made.append(f"{gpu} {engine.nbytes / 1e6:.2f} MB in {time.monotonic() - begin:.1f} s")
    print(f"{source.name}: parsed, {network.num_layers} layers; engines: {', '.join(made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
