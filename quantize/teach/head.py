"""The last layer of a network, read and written inside an ONNX file without the package ``onnx``.

The layer is a float matrix ``[5, features]`` and a bias in all three files of a bundle, so a head that was fitted anew
takes the place of the old one byte for byte. Only as much of the Protocol Buffers format is read as that needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import BundleError
from agent.types import LABELS
from quantize.quantise import infer
from quantize.quantise.infer import INPUT

Array = NDArray[np.float64]

_GRAPH = 7
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12
_NODE_INPUT, _NODE_OPERATOR = 1, 4
_DIMS, _DATA_TYPE, _NAME, _RAW = 1, 2, 8, 9
_LAST_OPERATOR = b"Gemm"
_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2")}
_HINT = "only bundles whose network ends in one linear layer can be taught: use one that `make model` wrote"


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Logits are ``features @ weight.T + bias``; weight ``[5, n]``, bias ``[5]``."""

    weight: Array
    bias: Array

    def logits(self, features: NDArray[np.floating]) -> Array:
        """``[..., 5]`` of features ``[..., n]``."""
        made: Array = features @ self.weight.T + self.bias
        return made


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Where the values of a constant stand in a file."""

    at: int
    length: int
    type: np.dtype[Any]
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    features: str
    weight: _Tensor
    bias: _Tensor


def read_head(model: bytes) -> Head:
    """The last layer of an ONNX file.

    Raises:
        BundleError: the network does not end in one linear layer with five outputs.
    """
    layer = _find(model)
    return Head(_values(model, layer.weight), _values(model, layer.bias))


def replace_head(model: bytes, head: Head) -> bytes:
    """The file with another last layer, in the precision of the old one; nothing else changes, not even its length.

    Raises:
        BundleError: the network does not end in a linear layer of this shape.
    """
    layer = _find(model)
    made = bytearray(model)
    for tensor, values in ((layer.weight, head.weight), (layer.bias, head.bias)):
        if tensor.dims != values.shape:
            raise BundleError(f"the last layer has the shape {tensor.dims}, not {values.shape}", _HINT)
        made[tensor.at : tensor.at + tensor.length] = values.astype(tensor.type).tobytes()
    return bytes(made)


def with_features(model: bytes) -> tuple[bytes, str]:
    """The file with the last layer's input as a second output, and that output's name.

    Raises:
        BundleError: as ``read_head``.
    """
    name = _find(model).features
    # A message that stands twice in a file is merged by its readers: this adds one output to the graph.
    output = _field(_OUTPUT, _field(1, name.encode()))
    return model + _field(_GRAPH, output), name


def _find(model: bytes) -> _Layer:
    tensors: dict[str, _Tensor] = {}
    last: list[str] = []
    try:
        for number, begin, end in _fields(model, 0, len(model)):
            if number != _GRAPH:
                continue
            for part, first, stop in _fields(model, begin, end):
                if part == _INITIALIZER:
                    named = _tensor(model, first, stop)
                    if named is not None:
                        tensors[named[0]] = named[1]
                elif part == _NODE:
                    inputs, operator = _node(model, first, stop)
                    if operator == _LAST_OPERATOR:
                        last = inputs
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise BundleError(f"the ONNX file cannot be read: {error}", "fetch the bundle again") from None
    if len(last) != 3 or last[1] not in tensors or last[2] not in tensors:
        raise BundleError("the network does not end in a linear layer whose constants can be read", _HINT)
    layer = _Layer(last[0], tensors[last[1]], tensors[last[2]])
    if len(layer.weight.dims) != 2 or layer.weight.dims[0] != len(LABELS) or layer.bias.dims != (len(LABELS),):
        raise BundleError(f"the last layer has the shape {layer.weight.dims}, not {len(LABELS)} rows", _HINT)
    return layer


def _values(model: bytes, tensor: _Tensor) -> Array:
    raw = np.frombuffer(model, tensor.type, offset=tensor.at, count=tensor.length // tensor.type.itemsize)
    return raw.astype(np.float64).reshape(tensor.dims)


def _node(model: bytes, begin: int, end: int) -> tuple[list[str], bytes]:
    inputs, operator = [], b""
    for number, first, stop in _fields(model, begin, end):
        if number == _NODE_INPUT:
            inputs.append(model[first:stop].decode())
        elif number == _NODE_OPERATOR:
            operator = model[first:stop]
    return inputs, operator


def _tensor(model: bytes, begin: int, end: int) -> tuple[str, _Tensor] | None:
    """Name and place of a float constant that is stored as raw bytes; None for any other."""
    dims: list[int] = []
    kind, name, at, length = 0, "", 0, 0
    for number, first, stop in _fields(model, begin, end):
        if number == _DIMS:
            dims += _numbers(model, first, stop)
        elif number == _DATA_TYPE:
            kind = _numbers(model, first, stop)[0]
        elif number == _NAME:
            name = model[first:stop].decode()
        elif number == _RAW:
            at, length = first, stop - first
    if kind not in _TYPES or length != _TYPES[kind].itemsize * int(np.prod(dims)):
        return None
    return name, _Tensor(at, length, _TYPES[kind], tuple(dims))


def _numbers(model: bytes, begin: int, end: int) -> list[int]:
    """The varints of a field, alone or packed."""
    found = []
    while begin < end:
        value, begin = _varint(model, begin)
        found.append(value)
    return found


def _fields(model: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the content of each field of a message.

    Raises:
        ValueError, IndexError: this is no such message.
    """
    while begin < end:
        key, begin = _varint(model, begin)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, stop = _varint(model, begin)
        elif kind == 2:
            length, begin = _varint(model, begin)
            stop = begin + length
        elif kind in (1, 5):
            stop = begin + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"field {number} is of an unknown kind")
        if stop > end:
            raise ValueError("a field ends after its message")
        yield number, begin, stop
        begin = stop


def _varint(model: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = model[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _field(number: int, content: bytes) -> bytes:
    return _bytes(number << 3 | 2) + _bytes(len(content)) + content


def _bytes(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


class Features:
    """The input of a network's last layer, computed as the station computes it."""

    def __init__(self, model: bytes) -> None:
        exposed, self._name = with_features(model)
        self._session = infer.session(exposed)
        self.head = read_head(model)

    def of(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[n, features]`` of windows ``[n, 3, 10240]``."""
        rows = [
            self._session.run([self._name], {INPUT: np.ascontiguousarray(window, np.float32)[None, :, None, :]})[0][0]
            for window in windows
        ]
        return np.asarray(rows, dtype=np.float32)
