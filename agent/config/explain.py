"""Validation of one section, with everything that is wrong told at once and in an operator's words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agent.config.reference import Entry, catalogue
from agent.config.section import DISAGREEMENT, Disagreement, Section
from agent.config.yaml import Loc

S = TypeVar("S", bound=Section)

_SECRET = re.compile(r"passw|secret|token|passphrase|credential", re.IGNORECASE)
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the value at ``loc``; ``about_value`` is False where showing the value would not help."""

    loc: Loc
    reason: str
    about_value: bool = True


def validate(model: type[S], value: Mapping[str, Any], context: Mapping[str, Any]) -> tuple[S | None, list[Finding]]:
    """An instance of ``model``, or all findings.

    Pydantic skips the checks between fields of a section in which one field is wrong, so what is wrong is replaced and
    the whole checked again until nothing new is found.
    """
    entries: dict[str, Entry] = {}
    findings: list[Finding] = []
    wrong: set[Loc] = set()
    current: Any = value
    while True:
        try:
            instance = model.model_validate(current, context=dict(context))
        except ValidationError as error:
            entries = entries or catalogue(model, value)
            details = error.errors()
            kept = [detail for detail in details if not _is_echo(detail, details)]
            fresh = [f for detail in kept for f in _findings(detail, value, entries, wrong)]
        else:
            return (None if findings else instance), findings
        fresh = [f for f in fresh if f.loc not in wrong]
        if not fresh:
            return None, findings
        findings += fresh
        wrong |= {f.loc for f in fresh}
        current = _mended(value, (), wrong, entries)


def _is_echo(detail: ErrorDetails, others: list[ErrorDetails]) -> bool:
    """A list is called too short once its wrong entries are discounted."""
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(o["loc"][: len(loc)] == loc and o["loc"] != loc for o in others)


def _mended(value: Any, loc: Loc, wrong: set[Loc], entries: dict[str, Entry]) -> Any:
    """A copy without what is wrong: defaults, or the examples of what is required, stand in for it. A list loses all of
    its entries or none, lest the others change their places."""
    if isinstance(value, tuple | list):
        return [_mended(child, (*loc, index), wrong, entries) for index, child in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    here = {w[len(loc)] for w in wrong if w[: len(loc)] == loc and len(w) > len(loc)}
    mended = {}
    for key in [*value, *(name for name in here if name not in value)]:
        place = (*loc, key)
        # Of a section of an unknown kind nothing else can be judged.
        kind_is_wrong = (*place, "kind") in wrong
        if place in wrong or kind_is_wrong or any(w[:-1] == place and isinstance(w[-1], int) for w in wrong):
            entry = entries.get(_entry_path(place))
            if entry is not None and entry.example is not None:
                mended[key] = entry.example
        elif key in value:
            mended[key] = _mended(value[key], place, wrong, entries)
    return mended


def _touched(loc: Loc, wrong: set[Loc]) -> bool:
    return any(w[: len(loc)] == loc or loc[: len(w)] == w for w in wrong)


def _findings(detail: ErrorDetails, value: Any, entries: dict[str, Entry], wrong: set[Loc]) -> list[Finding]:
    loc = _own_loc(detail["loc"], value, whole=detail["type"] == DISAGREEMENT)
    if detail["type"].startswith("union_tag"):
        loc = (*loc, detail["ctx"]["discriminator"].strip("'"))
    if detail["type"] != DISAGREEMENT:
        reason, about_value = _reason(detail, loc, _at(value, loc), entries)
        return [Finding(loc, reason, about_value)]
    faults: tuple[Disagreement, ...] = detail["ctx"]["faults"]
    found = []
    for fault in faults:
        places = [(*loc, *_parts(field)) for field in fault.fields]
        if not any(_touched(place, wrong) for place in places):
            # The first field that the file itself gives is the one to look at: the other is a default.
            place = next((p for p in places if _at(value, p) is not None), places[0])
            words = fault.reason if place == places[0] else f"does not fit: {fault.fields[0]} {fault.reason}"
            found.append(Finding(place, words))
    return found


def _parts(field: str) -> Loc:
    return tuple(int(part) if part.isdigit() else part for part in field.split(".") if part)


def _own_loc(loc: Loc, value: Any, *, whole: bool) -> Loc:
    """Pydantic's path without the tags that it inserts for the alternatives of a union; ``whole`` says that it ends at
    a section that is there, and not at a setting that may be missing."""
    parts: list[str | int] = []
    for index, part in enumerate(loc):
        known = (isinstance(value, Mapping) and part in value) or (
            isinstance(value, tuple | list) and isinstance(part, int)
        )
        if known:
            value = value[part]
        if known or (index == len(loc) - 1 and not whole):
            parts.append(part)
    return tuple(parts)


def _at(value: Any, loc: Loc) -> Any:
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def dotted(loc: Loc) -> str:
    """``source.paths[0]``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _entry_path(loc: Loc) -> str:
    return re.sub(r"\[\d+\]", "[]", dotted(loc))


_TYPES = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list, such as [a, b]",
    "model_type": "must be a section: settings on lines of their own, indented below it",
    "finite_number": "must be an ordinary number, not nan or infinity",
}

_BOUNDS = ("greater_than", "less_than", "too_short", "too_long", "string_too_short", "string_too_long")


def _reason(detail: ErrorDetails, loc: Loc, given: Any, entries: dict[str, Entry]) -> tuple[str, bool]:
    """The words, and whether the value belongs beside them."""
    kind, context = detail["type"], detail.get("ctx", {})
    entry = entries.get(_entry_path(loc))
    about = f" ({entry.description})" if entry is not None else ""
    if kind in ("missing", "union_tag_not_found"):
        return f"is required{about}", False
    if kind == "extra_forbidden":
        return _unknown(loc, entries), False
    words = detail["msg"]
    if kind in _TYPES:
        words = _TYPES[kind] + _type_hint(kind, given, entry)
    elif kind.startswith(_BOUNDS) and entry is not None:
        words = f"must be {entry.bounds}{about}"
    elif kind in ("literal_error", "union_tag_invalid"):
        words = _choice(str(given), str(context.get("expected") or context["expected_tags"]).replace("'", ""))
    elif kind == "value_error":
        words = str(context["error"])
    return words, True


def _choice(given: str, expected: str) -> str:
    nearest = _nearest(given, [word.strip() for word in re.split(r",| or ", expected)])
    return f"must be {expected}" + (f"; did you mean {nearest}?" if nearest else "")


def _type_hint(kind: str, given: Any, entry: Entry | None) -> str:
    if kind == "string_type" and isinstance(given, int | float):
        return "; put it in quotes"
    if kind == "model_type" and entry is not None and entry.children:
        return f" ({', '.join(entry.children)})"
    if kind in ("float_type", "int_type") and isinstance(given, str):
        if re.fullmatch(r"[-+]?\d+,\d+", given):
            return ", with a decimal point, not a comma"
        if re.fullmatch(r"[-+]?[\d.]+\s*[A-Za-z]+", given):
            return " alone; its unit is in the setting's name"
        if re.fullmatch(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?", given):
            return ", without quotes"
    return ""


def _unknown(loc: Loc, entries: dict[str, Entry]) -> str:
    name, parent = str(loc[-1]), entries.get(_entry_path(loc[:-1]))
    siblings = parent.children if parent is not None else ()
    if _SECRET.search(name) and any("password" in sibling for sibling in siblings) and name not in siblings:
        return "is not a setting: a password is never written in this file; use password_file or password_env"
    nearest = _nearest(name, siblings)
    if nearest:
        return f"is not a setting; did you mean {nearest}?"
    homes = [path for path in entries if path.rpartition(".")[2] == name and not re.search(r"\[\]|:", path)]
    within = _entry_path(loc[:-1])
    near = [path for path in entries if path.startswith(f"{within}.") and path.rpartition(".")[2] == name]
    if within and near:
        return f"is not a setting here; it belongs at {near[0]}"
    if homes:
        return f"is not a setting here; it belongs at {' or '.join(homes[:3])}"
    place = dotted(loc[:-1]) or "the file"
    return f"is not a setting; {place} may hold {', '.join(siblings)}"


def _nearest(name: str, choices: tuple[str, ...] | list[str]) -> str | None:
    folded = {choice.lower(): choice for choice in choices}
    low = name.lower().replace("-", "_")
    begun = [choice for key, choice in folded.items() if len(low) > 2 and key.startswith(low)]
    close = difflib.get_close_matches(low, folded, 1, 0.65)
    return folded[close[0]] if close else begun[0] if len(begun) == 1 else None


def shown(loc: Loc, text: str) -> str | None:
    """A value fit for an error message: nothing of a secret, one line, not long; None if it must not be shown."""
    if not text or any(isinstance(part, str) and _SECRET.search(part) for part in loc):
        return None
    text = escaped(re.sub(r"[^\s/]*@", "***@", text))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def escaped(text: str) -> str:
    """``text`` with the escape sequence (as ``\\x1b``) of each character that a terminal would act upon."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
