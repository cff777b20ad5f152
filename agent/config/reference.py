"""The catalogue of all settings, read off the model: for messages about errors, and for ``docs/configuration.md``."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from agent.config.section import Section
from agent.config.station import Config


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting or section. ``path`` is dotted, with ``[]`` for the entries of a list."""

    path: str
    description: str
    kind: str
    bounds: str
    default: str
    required: bool
    example: Any
    """A valid value of a required setting."""
    children: tuple[str, ...]
    """Names of the settings of a section; empty for a plain setting."""


def catalogue(model: type[Section] = Config, value: object = None) -> dict[str, Entry]:
    """Every setting of ``model`` by its path, sections included, in the order of the file; the root is ``""``.

    Where a setting chooses between kinds of a section (``source.kind``), ``value``, the content of a file, decides
    which kind's settings are listed. Without it all are, each kind under its own path: ``source:archive.paths``.
    """
    root = Entry("", model.__doc__ or "", "section", "", "", False, None, tuple(model.model_fields))
    return {"": root} | {entry.path: entry for entry in _entries(model, "", value)}


def _entries(model: type[Section], prefix: str, value: object = None) -> Iterator[Entry]:
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        within = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(info.discriminator, str):
            yield from _kinds(path, info, info.discriminator, within)
            continue
        sections, item = _sections(info.annotation), _item(info)
        listed = _sections(item[0]) if item is not None else ()
        children = tuple(child for section in sections for child in section.model_fields)
        yield Entry(
            path,
            info.description or "",
            _kind(info.annotation, info.metadata),
            _bounds(info.metadata, "entries" if item is not None else ""),
            _default(info),
            info.is_required(),
            info.examples[0] if info.examples else None,
            children,
        )
        for section in sections:
            yield from _entries(section, path + ".", within)
        if item is not None:
            grandchildren = tuple(child for section in listed for child in section.model_fields)
            kind, bounds = _kind(item[0], item[1]), _bounds(item[1])
            yield Entry(path + "[]", f"an entry of {name}", kind, bounds, "", False, None, grandchildren)
            for section in listed:
                yield from _entries(section, path + "[].")


def _kinds(path: str, info: FieldInfo, selector: str, value: object) -> Iterator[Entry]:
    """A section of several kinds: itself, its selector, the settings of the kind that ``value`` names, or of all."""
    kinds = {get_args(s.model_fields[selector].annotation)[0]: s for s in _sections(info.annotation)}
    given = value.get(selector) if isinstance(value, Mapping) else None
    chosen = kinds.get(given) if isinstance(given, str) else None
    example = info.examples[0] if info.examples else None
    children = tuple(chosen.model_fields) if chosen else (selector,)
    yield Entry(path, info.description or "", "section", "", "", info.is_required(), example, children)
    if chosen is not None:
        yield from _entries(chosen, path + ".", value)
        return
    first = next(iter(kinds.values())).model_fields[selector]
    choices = " \\| ".join(f"`{kind}`" for kind in kinds)
    example = first.examples[0] if first.examples else None
    yield Entry(f"{path}.{selector}", first.description or "", choices, "", "", True, example, ())
    for kind, section in kinds.items() if value is None else ():
        words = (section.__doc__ or "").splitlines()[0]
        yield Entry(f"{path}:{kind}", words, "section", "", "", False, None, tuple(section.model_fields))
        yield from _entries(section, f"{path}:{kind}.")


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union without None; anything else is its own single alternative."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for arg in get_args(annotation) if arg is not type(None) for m in _members(arg))
    return (annotation,)


def _sections(annotation: Any) -> tuple[type[Section], ...]:
    return tuple(m for m in _members(annotation) if isinstance(m, type) and issubclass(m, Section))


def _item(info: FieldInfo) -> tuple[Any, list[Any]] | None:
    """Annotation and constraints of a list's entries."""
    for member in _members(info.annotation):
        if get_origin(member) is tuple:
            inner = get_args(member)[0]
            if get_origin(inner) is Annotated:
                first, *rest = get_args(inner)
                return first, [
                    m for extra in rest for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])
                ]
            return inner, []
    return None


def _kind(annotation: Any, metadata: list[Any]) -> str:
    words = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
    found = []
    for member in _members(annotation):
        if get_origin(member) is Literal:
            found.append(" \\| ".join(f"`{choice}`" for choice in get_args(member)))
        elif get_origin(member) is tuple:
            found.append("list")
        elif get_origin(member) is dict:
            found.append("mapping")
        elif isinstance(member, type) and issubclass(member, Section):
            found.append("section")
        else:
            found.append(words[member])
    return " or ".join(dict.fromkeys(found))


def _bounds(metadata: list[Any], what: str = "") -> str:
    low = high = ""
    for mark in metadata:
        if isinstance(mark, Ge):
            low = f"at least {mark.ge:,}"
        elif isinstance(mark, Gt):
            low = f"above {mark.gt:,}"
        elif isinstance(mark, Le):
            high = f"at most {mark.le:,}"
        elif isinstance(mark, Lt):
            high = f"below {mark.lt:,}"
        elif isinstance(mark, MinLen):
            low, what = f"at least {mark.min_length}", what or "characters"
        elif isinstance(mark, MaxLen):
            high, what = f"at most {mark.max_length}", what or "characters"
    text = ", ".join(part for part in (low, high) if part)
    if low.startswith("at least") and high.startswith("at most"):
        text = f"{low.removeprefix('at least ')} to {high.removeprefix('at most ')}"
    return f"{text} {'entry' if what == 'entries' and text.endswith(' 1') else what}".strip() if text else ""


def _default(info: FieldInfo) -> str:
    value = info.default
    if value is PydanticUndefined or value is None or value == {} or isinstance(value, Section):
        return ""
    if isinstance(value, tuple):
        return f"[{', '.join(_plain(v) for v in value)}]"
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, Section):
        given = value.model_dump(exclude_defaults=True).items()
        return f"{{{', '.join(f'{name}: {_plain(setting)}' for name, setting in given)}}}"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
