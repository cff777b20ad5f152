"""Values of a pydantic model, made from its own JSON Schema."""

from __future__ import annotations

from typing import Any, TypeVar

from hypothesis import strategies as st
from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
"""Whatever JSON can hold."""


def instances(model: type[Model]) -> st.SearchStrategy[Model]:
    """Any value of the model."""
    return values(model.model_json_schema()).map(model.model_validate)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Whatever a JSON Schema allows."""
    return _values(schema, schema.get("$defs", {}))


def _values(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one a type
    if "$ref" in schema:
        return _values(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(*(_values(one, defs) for one in schema["anyOf"]))
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", -(2**53)), schema.get("maximum", 2**53))
        case "number":
            return _numbers(schema)
        case "string":
            return _texts(schema)
        case "array":
            most = min(3, schema.get("maxItems", 3))
            return st.lists(_values(schema["items"], defs), min_size=schema.get("minItems", 0), max_size=most)
        case "object":
            return _objects(schema, defs)
    return JSON


def _numbers(schema: dict[str, Any]) -> st.SearchStrategy[float]:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    return st.floats(low, high, exclude_min="exclusiveMinimum" in schema, allow_nan=False, allow_infinity=False)


def _texts(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].removesuffix("$") + r"\Z")
    most = min(40, schema.get("maxLength", 40))
    return st.text(st.characters(exclude_categories=("Cs",)), min_size=schema.get("minLength", 0), max_size=most)


def _objects(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = schema.get("properties", {})
    if not fields:
        for pattern, others in schema.get("patternProperties", {}).items():
            return st.dictionaries(_texts({"pattern": pattern}), _values(others, defs), max_size=3)
        others = schema.get("additionalProperties", True)
        names = _texts(schema.get("propertyNames", {}))
        return st.dictionaries(names, JSON if others is True else _values(others, defs), max_size=3)
    needed = schema.get("required", [])
    return st.fixed_dictionaries(
        {name: _values(one, defs) for name, one in fields.items() if name in needed},
        optional={name: _values(one, defs) for name, one in fields.items() if name not in needed},
    )
