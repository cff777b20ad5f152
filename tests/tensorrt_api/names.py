"""Compare what ``agent.tensorrt_child.api`` declares with the bindings that this interpreter imports: every class,
method and its parameters, every enumeration. Run by ``run.py``; needs nothing but the standard library."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from agent.tensorrt_child import api


def members(protocol: type) -> Iterator[tuple[str, list[str] | None]]:
    """Name and parameters of each method; None in place of the parameters for an attribute."""
    attributes = inspect.get_annotations(protocol)
    for name, value in vars(protocol).items():
        if name.startswith("_") or name in attributes:
            continue
        if inspect.isfunction(value):
            yield name, list(inspect.signature(value).parameters)[1:]
        elif isinstance(value, property):
            yield name, None
    for name in attributes:
        yield name, None


def documented(function: Any) -> list[list[str]]:
    """Parameter names of each overload, from the signatures that pybind11 writes into the docstring."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(r"^(?:\d+\. )?\w+\(self: [\w.:]+(?:, (.*))?\) -> ", line)
        if match:
            found.append(re.findall(r"(?:^|, )(\w+):", match[1] or ""))
    return found


def faults(trt: Any) -> Iterator[str]:
    for name, protocol in api.CLASSES.items():
        real = getattr(trt, name, None)
        if real is None:
            yield f"no class {name}"
            continue
        for member, parameters in members(protocol):
            if not hasattr(real, member):
                yield f"{name} has no {member}"
            elif parameters is not None:
                overloads = documented(getattr(real, member))
                if not any(overload[: len(parameters)] == parameters for overload in overloads):
                    yield f"{name}.{member}: declared {parameters}, there {overloads}"
    for name, protocol in api.MEMBERS.items():
        yield from (
            f"{name} has no {member}"
            for member, _ in members(protocol)
            if not hasattr(getattr(trt, name, None), member)
        )
    yield from (f"no {name}" for name in api.OPTIONAL_MEMBERS if not hasattr(trt, name))
    yield from (f"no {name}" for name in api.Module.__annotations__ if not hasattr(trt, name))


def main() -> int:
    trt: Any = api.load()
    found = list(faults(trt))
    count = sum(1 for protocol in (*api.CLASSES.values(), *api.MEMBERS.values()) for _ in members(protocol))
    optional = {
        f"{name}.{member}": hasattr(getattr(trt, name), member)
        for name, members_ in api.OPTIONAL_MEMBERS.items()
        for member in members_
    }
    has = ", ".join(name for name, present in optional.items() if present)
    print(
        f"TensorRT {api.version(trt)}: {count} members of {len(api.CLASSES) + len(api.MEMBERS)} classes; also has {has}"
    )
    print(f"  networks with flags {api.network_flags(trt):#b}, strongly typed: {api.strongly_typed(trt)}", end="")
    print(f", flag for int8: {api.precision_flag(trt, 'int8')}, for fp16: {api.precision_flag(trt, 'fp16')}")
    logger = trt.Logger(trt.Logger.WARNING)
    assert logger is not None
    for fault in found:
        print(f"  WRONG {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
