"""JSON from strangers: bounded in size and depth before it is parsed, and with one meaning only.

Two readers of one text must not understand two things, so names given twice, NaN, infinite numbers, integers that do
not fit 53 bits, lone surrogates and anything but UTF-8 are refused.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
LARGEST_INT = 2**53
_MAX_DIGITS = 400
"""Of a number as written: Python would take a text of any length, at a cost that grows with its square."""

_TOKEN = re.compile(rb"""\\.|["\[\]{}]""", re.DOTALL)


def loads(text: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not such a text; says why, without repeating it.
    """
    if len(text) > max_bytes:
        raise ValueError(f"{len(text)} bytes, at most {max_bytes} are read")
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None
    _no_surrogates(value)
    return value


def _depth(text: bytes) -> int:
    """Deepest nesting of brackets outside strings, in one pass; up to a text's first fault as the parser sees it."""
    deepest = depth = 0
    in_string = False
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == b'"':
            in_string = not in_string
        elif not in_string and token[:1] != b"\\":
            depth += 1 if token in b"[{" else -1
            deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS or abs(value := int(text)) > LARGEST_INT:
        raise ValueError("an integer beyond 53 bits")
    return value


def _float(text: str) -> float:
    if len(text) > _MAX_DIGITS or not math.isfinite(value := float(text)):
        raise ValueError("a number that is not finite, or has too many digits")
    return value


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _no_surrogates(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair") from None
    elif isinstance(value, dict):
        for name, inner in value.items():
            _no_surrogates(name)
            _no_surrogates(inner)
    elif isinstance(value, list):
        for inner in value:
            _no_surrogates(inner)
