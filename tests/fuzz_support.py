"""How often hostile input is fed to a source: a few hundred times, or ``TALUS_FUZZ=100000 pytest --timeout 0`` once.

Inputs are made of a ``Random``. In the suite hypothesis decides each of its numbers, and shrinks what fails. In the
long run inputs are numbered, from ``TALUS_FUZZ_FROM`` on (0); hypothesis would take ten times as long.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

T = TypeVar("T")
_ASKED, _FROM = int(os.environ.get("TALUS_FUZZ", "0")), int(os.environ.get("TALUS_FUZZ_FROM", "0"))


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many inputs, always the same, in the suite; as many as ``TALUS_FUZZ`` says where that is set. The test takes
    its ``chance`` by that name, and fixtures."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        return _numbered(test) if _ASKED else _shrinking(test, examples)

    return decorate


def _shrinking(test: Callable[..., None], examples: int) -> Callable[..., None]:
    found: Callable[..., None] = settings(max_examples=examples, suppress_health_check=list(HealthCheck))(
        given(chance=st.randoms(use_true_random=False))(test)
    )
    return found


def _numbered(test: Callable[..., None]) -> Callable[..., None]:
    def all_of_them(**fixtures: Any) -> None:
        for number in range(_FROM, _FROM + _ASKED):
            try:
                test(**fixtures, chance=Random(number))
            except BaseException as error:
                error.add_note(f"input {number}") if hasattr(error, "add_note") else print(f"input {number}")
                raise

    all_of_them.__name__, all_of_them.__doc__ = test.__name__, test.__doc__
    wanted = [name for name in inspect.signature(test).parameters if name != "chance"]
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in wanted]
    all_of_them.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return all_of_them


def several(chance: Random, most: int, make: Callable[[Random], T]) -> list[T]:
    """None to ``most`` things."""
    return [make(chance) for _ in range(chance.randrange(most + 1))]


def junk(chance: Random, most: int) -> bytes:
    """Any bytes, at most so many."""
    return chance.randbytes(chance.randrange(most + 1))


def spoilt(chance: Random, sound: bytes, most: int = 12) -> bytes:
    """Some bytes overwritten, alone or in a row; at times a piece left out or put in twice, at times cut off."""
    data = bytearray(sound)
    for _ in range(chance.randrange(most + 1)):
        if data:
            at = chance.randrange(len(data))
            new = junk(chance, chance.choice((1, 1, 8)))
            data[at : at + len(new)] = new
    if data and not chance.randrange(4):
        begin, end = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
        data[begin:end] = data[begin:end] * chance.choice((0, 2))
    return bytes(data[: chance.randrange(len(data) + 1)]) if not chance.randrange(3) else bytes(data)


def one_of(chance: Random, *makers: Callable[[Random], T]) -> T:
    """What one of them makes."""
    return chance.choice(makers)(chance)


def awkward_float(chance: Random) -> float:
    """Any, with a liking for those that trip programs."""
    special = (
        0.0,
        -0.0,
        1e-9,
        1.0,
        20.0,
        100.0,
        -1.0,
        1e308,
        -1e308,
        5e-324,
        float("inf"),
        float("-inf"),
        float("nan"),
    )
    return chance.choice((chance.choice(special), chance.uniform(0, 100), chance.uniform(-1e12, 1e12)))


def awkward_text(chance: Random, most: int, alphabet: Sequence[str] = "aZ09_-. \0\n{}\u0662\ud7ff\U0001f30b") -> str:
    """Letters, digits, and what few programs expect."""
    return "".join(chance.choice(alphabet) for _ in range(chance.randrange(most + 1)))
