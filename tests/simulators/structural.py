"""What an API server makes of an object by the structural schema of its kind.

    refusals(definition, value)  ->  ["spec.type: must be one of inline, azurekeyvault", ...]

Rules:
- As kubectl asks it to be, it is strict: unknown keys are refused unless the schema preserves them.
- Only what our definitions use is known; another word in a schema is an AssertionError, so that none is passed over.
- The words are not the API server's; rules tell their own.

What does not belong here: whether a schema is structural (tests/unit/configuration/test_schemas.py).
Source: Kubernetes "Specifying a structural schema", and what version 1.36 was seen to do (tests/e2e/test_crds.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from provider.configuration.sections import OBJECT_NAME
from tests.simulators.cel import evaluate

PRESERVE: Final = "x-kubernetes-preserve-unknown-fields"
RULES: Final = "x-kubernetes-validations"
WORDS: Final = frozenset(
    {
        *("type", "description", "properties", "required", "additionalProperties", "items", "nullable", "enum"),
        *("pattern", "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "minimum", "maximum"),
        *("exclusiveMinimum", "format", PRESERVE, RULES),
    }
)
_TYPES: Final = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
}


def refusals(definition: Mapping[str, Any], value: Any) -> list[str]:
    """Why an API server would refuse an object, `path: reason` each; empty when it would not.

    Args:
        definition: the CustomResourceDefinition.
        value: the object.
    """
    if not isinstance(value, dict):
        return [": no object"]
    group, _, version = str(value.get("apiVersion")).rpartition("/")
    spec = definition["spec"]
    served = {one["name"]: one for one in spec["versions"] if one["served"]}
    if group != spec["group"] or version not in served:
        return [f"apiVersion: no matches for {value.get('apiVersion')}"]
    if value.get("kind") != spec["names"]["kind"]:
        return ["kind: no matches"]
    name = value["metadata"].get("name") if isinstance(value.get("metadata"), dict) else None
    if not isinstance(name, str) or OBJECT_NAME.fullmatch(name) is None:
        return ["metadata.name: no name of an object"]
    root = served[version]["schema"]["openAPIV3Schema"]
    metadata = {**root["properties"]["metadata"], PRESERVE: True}
    return list(_value({**root, "properties": {**root["properties"], "metadata": metadata}}, value, ""))


def _value(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
    assert schema.keys() <= WORDS, f"{path}: this does not know {schema.keys() - WORDS}"
    if value is None and schema.get("nullable"):
        if "enum" in schema:
            yield f"{path}: must be one of {schema['enum']}"
        return
    kind = schema.get("type")
    if kind is None:
        assert schema.get(PRESERVE), f"{path}: has no type"
        return
    if not _TYPES[kind](value):
        yield f"{path}: must be of type {kind}"
        return
    before = [*(f"{path}: {fault}" for fault in _bounds(schema, value)), *_children(schema, value, path)]
    yield from before
    if not before:  # an API server asks the rules about what is valid without them
        for one in schema.get(RULES, ()):
            try:
                holds = evaluate(one["rule"], {"self": value})
            except (KeyError, TypeError) as error:
                yield f"{path}: the rule {one['rule']} failed: {error!r}"
            else:
                if not holds:
                    yield f"{path}: {one['message']}"


def _bounds(schema: Mapping[str, Any], value: Any) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"must be one of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"must match {schema['pattern']}"
    if isinstance(value, (str, list, dict)):
        ends = {str: ("minLength", "maxLength"), list: ("minItems", "maxItems"), dict: ("", "maxProperties")}[
            type(value)
        ]
        if not schema.get(ends[0], 0) <= len(value) <= schema.get(ends[1], len(value)):
            yield f"must have {schema.get(ends[0], 0)} to {schema.get(ends[1])} entries, found {len(value)}"
    elif not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if value < low or value > high or (schema.get("exclusiveMinimum") and value == low):
            yield f"must be between {low} and {high}"


def _children(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _value(schema["items"], item, f"{path}[{index}]")
    if not isinstance(value, dict):
        return
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{_join(path, key)}: is required"
    properties = schema.get("properties", {})
    for key, child in value.items():
        if key in properties:
            yield from _value(properties[key], child, _join(path, key))
        elif "additionalProperties" in schema:
            yield from _value(schema["additionalProperties"], child, _join(path, key))
        elif not schema.get(PRESERVE):
            yield f"{_join(path, key)}: unknown field"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
