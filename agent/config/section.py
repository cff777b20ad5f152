"""What every section of the configuration shares: strictness, checks between fields, paths."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from typing_extensions import Self

DISAGREEMENT = "disagreement"
"""Error type of checks between fields; its context holds ``faults``."""


class Disagreement(NamedTuple):
    """Fields that do not fit together, dotted, relative to the section (``""`` is the section itself); the first is
    the one to change."""

    fields: tuple[str, ...]
    reason: str


class Section(BaseModel):
    """A frozen mapping of settings. Unknown names, foreign types, nan and inf are refused; int serves as float.

    Lists are tuples here; they are declared with ``strict=False`` so that JSON's and Python's lists will do, which does
    not reach their entries. What is required has an example, which must be valid.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    def disagreements(self) -> Iterator[Disagreement]:
        """What is wrong between fields that are each right in themselves."""
        return iter(())

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        faults = tuple(self.disagreements())
        if faults:
            text = "; ".join(f"{fault.fields[0]} {fault.reason}" for fault in faults)
            raise PydanticCustomError(DISAGREEMENT, "{text}", {"text": text, "faults": faults})
        return self


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a path, written as text")
    if not value.strip():
        raise ValueError("must not be empty")
    if "${" in value or value.startswith("$"):
        raise ValueError("environment variables are not expanded here; write the path itself")
    return value


def _base(info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base", Path())
    return Path(base).absolute()


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("begins with '~' but there is no such home folder") from None


def resolve_path(value: object, info: ValidationInfo) -> Path:
    """A path as given in the file, made absolute."""
    return value if isinstance(value, Path) else _base(info) / _expand(_text(value))


def _pattern(value: object, info: ValidationInfo) -> str:
    path = _expand(_text(value))
    base = _base(info)
    # Only what the operator wrote may act as a wildcard, not brackets in the name of the folder it is relative to.
    return str((Path(glob.escape(str(base))) if glob.has_magic(str(path)) else base) / path)


def parse_code(text: str) -> str:
    """A network or station code, as it is; ``ValueError`` for anything else."""
    if not re.fullmatch(r"[A-Z0-9-]{1,8}", text):
        raise ValueError("must be 1 to 8 upper-case letters, digits or '-' (FDSN source identifiers)")
    return text


Code = Annotated[str, AfterValidator(parse_code)]
"""A network or station code."""

ConfigPath = Annotated[Path, BeforeValidator(resolve_path)]
"""A path; relative ones start at the configuration file's folder (validation context ``base``)."""

ConfigPattern = Annotated[str, BeforeValidator(_pattern)]
"""A file, folder or wildcard pattern as absolute text; relative ones start at the configuration file's folder."""


def address(host: str, port: int) -> str:
    """``host:port``, for people; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def repeated(field: str, values: Sequence[object], advice: str) -> Iterator[Disagreement]:
    """Yield a disagreement for each of ``values``, the list at ``field``, that stands there already; ``advice`` says
    what to do."""
    for index, value in enumerate(values):
        first = values.index(value)
        if first < index:
            yield Disagreement((f"{field}.{index}",), f"is listed already as {field}[{first}]; {advice}")
