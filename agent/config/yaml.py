"""YAML text to plain values that remember their lines.

The scalars are those of the YAML 1.2 core schema, not of 1.1: ``on``, ``off``, ``yes`` and ``NO`` are text, ``1e-3`` is
a number, ``12:30`` is not. Configuration has no use for tags, nulls, several documents or two keys of one name, so all
are faults. Size, depth and the number of values are bounded before anything is built, aliases expanded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_VALUES = 10_000
MAX_DIGITS = 15

Loc: TypeAlias = "tuple[str | int, ...]"


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a value stands (line and column from 1) and, for a scalar, how it was written, with its quotes."""

    line: int
    column: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with the YAML itself; ``loc`` is the path of the value, as far as it is known."""

    spot: Spot
    reason: str
    loc: Loc = ()


class YamlFault(Exception):  # noqa: N818 - a fault that ends the reading; the caller turns it into a ConfigError
    """The text cannot be read any further."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Document:
    """``value``: dicts, tuples, str, int, float, bool. ``spots`` has one entry for every value, by its path."""

    value: dict[str, Any]
    spots: dict[Loc, Spot]
    faults: tuple[Fault, ...]


_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the core schema's scalars and a bound on the depth."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own name; replaces the inherited table
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise YamlFault(Fault(_spot(mark), f"is nested more than {MAX_DEPTH} levels deep"))
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", _NULL, ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, list(_first))


_WORDS = (
    ("'?'", "text with '?' between brackets needs quotes, such as 'HH?'"),
    ("scanning an alias", "text that begins with '*' needs quotes"),
    ("cannot start any token", "a character that YAML reserves stands here; put the text in quotes"),
    (
        "mapping values are not allowed",
        "a ':' that YAML does not expect; is this line, or the one above, indented wrong? Text with ': ' needs quotes",
    ),
    ("expected <block end>", "the indentation does not fit the lines above; settings of a section begin in one column"),
    ("could not find expected ':'", "a setting is written 'name: value', with a space after the colon"),
    ("unexpected end of stream", "a quote that is opened here is not closed"),
    ("expected ',' or", "a bracket that is opened here is not closed, or a comma is missing after it"),
    ("undefined alias", "text that begins with '*' needs quotes (it would refer to an anchor that is not there)"),
    ("tag", "text that begins with '!' needs quotes (YAML tags are not used here)"),
    ("but found another document", "'---' begins a second document; write one configuration a file"),
)


def parse(text: str) -> Document:
    """Values and lines of a YAML mapping.

    Raises:
        YamlFault: not YAML, empty, not a mapping, or beyond the bounds of this module.
    """
    loader = _open(text)
    try:
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        raise YamlFault(_explain(error, text)) from None
    if root is None:
        raise YamlFault(Fault(Spot(1, 1), "the file holds no settings"))
    if not isinstance(root, yaml.MappingNode):
        raise YamlFault(Fault(_spot(root.start_mark), "must be a mapping: lines of the form 'name: value'"))
    builder = _Builder()
    value = builder.build(root, ())
    return Document(value, builder.spots, tuple(builder.faults))


def _open(text: str) -> _Loader:
    try:
        return _Loader(text)
    except yaml.YAMLError as error:
        raise YamlFault(_explain(error, text)) from None


class _Builder:
    """Turns nodes into values; what is wrong with single values is collected, what is out of bounds ends it."""

    def __init__(self) -> None:
        self.spots: dict[Loc, Spot] = {}
        self.faults: list[Fault] = []

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        spot = _spot(node.start_mark, _raw(node))
        self.spots.setdefault(loc, spot)
        if len(self.spots) > MAX_VALUES:
            raise YamlFault(Fault(spot, f"more than {MAX_VALUES} values; does an alias multiply itself?"))
        if len(loc) > MAX_DEPTH:
            raise YamlFault(Fault(spot, "an anchor that contains its own alias", loc))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return tuple(self.build(child, (*loc, index)) for index, child in enumerate(node.value))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, spot, loc)
        self.faults.append(Fault(spot, "YAML tags ('!name') are not used here; remove it", loc))
        return None

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(Fault(_spot(key_node.start_mark), "the name of a setting is plain text", loc))
                continue
            key = key_node.value
            place = (*loc, key)
            spot = _spot(key_node.start_mark)
            if key in value:
                first = self.spots[place].line
                self.faults.append(Fault(spot, f"is given twice (first on line {first}); keep one of them", place))
                continue
            # An empty section has no text of its own: its key's line is the one to show.
            self.spots[place] = Spot(spot.line, spot.column, _raw(child))
            value[key] = self.build(child, place)
        return value

    def _scalar(self, node: yaml.ScalarNode, spot: Spot, loc: Loc) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        if kind == "null" and _NULL.match(text):
            self.faults.append(Fault(self.spots[loc], "has no value; give one, or remove the line", loc))
            return None
        if kind == "bool" and _BOOL.match(text):
            return text.lower() == "true"
        if kind == "int" and _INT.match(text) and len(text) <= MAX_DIGITS:
            return int(text)
        if kind == "float" and _FLOAT.match(text) and len(text) <= 4 * MAX_DIGITS:
            # YAML writes .inf, -.INF and .NaN what Python reads without the dot.
            return float(text.replace(".", "") if text[-1].isalpha() else text)
        reason = (
            "has too many digits" if kind in ("int", "float") else "YAML tags ('!name') are not used here; remove it"
        )
        self.faults.append(Fault(spot, reason, loc))
        return None


def _raw(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return ""
    quote = node.style if node.style in ("'", '"') else ""
    return f"{quote}{node.value}{quote}"


def _spot(mark: Any, text: str = "") -> Spot:
    return Spot(mark.line + 1, mark.column + 1, text)


def _explain(error: yaml.YAMLError, text: str) -> Fault:
    """PyYAML's words in an operator's. Its snippets are left out: the line may hold a secret."""
    if isinstance(error, yaml.reader.ReaderError):
        # A ReaderError counts characters, not lines.
        before = text[: error.position]
        spot = Spot(before.count("\n") + 1, len(before) - before.rfind("\n"))
        return Fault(spot, "a control character; is this a text file?")
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", "") or "")
    context = str(getattr(error, "context", "") or "")
    spot = _spot(mark) if mark is not None else Spot(1, 1)
    if "\\t" in problem or _starts_with_tab(text, spot.line):
        return Fault(spot, "a tab; YAML is indented with spaces only")
    opened = getattr(error, "context_mark", None)
    for needle, words in _WORDS:
        if needle in problem or needle in context:
            return Fault(_spot(opened) if "not closed" in words and opened is not None else spot, words)
    return Fault(spot, "is not valid YAML: " + re.sub(r"['\"].*", "...", problem))


def _starts_with_tab(text: str, line: int) -> bool:
    lines = text.splitlines()
    return (
        line <= len(lines) and lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())].count("\t") > 0
    )
