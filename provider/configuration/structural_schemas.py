"""Structural schemas of the models: what the API server can check of a section before anybody reads it.

Rules:
- What a model says is said in the schema too where a structural schema can say it: types, required keys, limits,
  choices, what only resources of the whole cluster may set. What it cannot say, the reader does (documents.py).
- A section inside another keeps keys that it does not know. An API server cuts unknown keys off, unless the client asks
  it to be strict; then a misspelled `version` or `caFile` would be no fault but a weaker setting. Kept, it reaches the
  reader, which refuses it.
- Where a pattern would be all that somebody is told, a rule with a sentence stands in its place, unless the list that
  it is in is so long that the API server would not take the cost of the rule.
- A rule must not be about a text that may be secret: API servers repeat the text in the error. It stands one level up.

What does not belong here: the definitions of kinds, and what is known of single fields (schemas.py).
Source: Kubernetes "Extend the Kubernetes API with CustomResourceDefinitions", "Specifying a structural schema",
"Validation rules". Seen on Kubernetes 1.36: `has()` is false for null, rules are not asked about null, and an enum
refuses null whatever `nullable` says.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic.fields import FieldInfo

from provider.configuration.sections import CLUSTER_ONLY, Section, Surroundings
from provider.configuration.sections import inspect as read_section

Schema = dict[str, Any]
FieldKey = tuple[type[Section], str]  # a model and the name of its attribute

PRESERVE: Final = "x-kubernetes-preserve-unknown-fields"
RULES: Final = "x-kubernetes-validations"
MAX_TEXT: Final = 2048  # characters of a text that a rule is about; bounds what the rule costs the API server

_KEPT: Final = (
    *("type", "enum", "required", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern"),
    PRESERVE,
)


def anything() -> Schema:
    """A value of any kind."""
    return {PRESERVE: True}


def rule(expression: str, message: str) -> Schema:
    """A CEL rule and what it tells whoever breaks it."""
    return {"rule": expression, "message": message}


def text(pattern: str | None = None, **more: Any) -> Schema:
    """A text, as a whole of a pattern; where it is wrong the pattern is all that is told."""
    return {"type": "string", **({"pattern": f"^(?:{pattern})$"} if pattern else {}), **more}


def told_text(pattern: str, message: str, *, max_length: int = MAX_TEXT) -> Schema:
    """A text, as a whole of a pattern, with a sentence for one that is not. Never of what may be secret."""
    return {"type": "string", "maxLength": max_length, RULES: [rule(f"self.matches(r'^(?:{pattern})$')", message)]}


def choice(choices: Iterable[Any]) -> Schema:
    """One of several texts, or of the values of an enumeration."""
    return {"type": "string", "enum": [getattr(one, "value", one) for one in choices]}


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    if "enum" not in schema:
        return {**schema, "nullable": True}
    choices = [str(one) for one in schema["enum"]]
    told = ", ".join(one or "empty" for one in choices)
    listed = ", ".join(f"'{one}'" for one in choices)
    rest = {key: value for key, value in schema.items() if key != "enum"}
    return {**rest, "maxLength": MAX_TEXT, RULES: [rule(f"self in [{listed}]", f"must be {told}")], "nullable": True}


@dataclass(frozen=True, slots=True)
class Describer:
    """Makes schemas of models.

    Attributes:
        overrides: fields whose schema is written by hand, without what their types say.
        rules: rules of sections beyond those of single fields.
        tenant: for resources of one namespace: what only those of the whole cluster may set is refused.
    """

    overrides: Mapping[FieldKey, Schema] = field(default_factory=dict)
    rules: Mapping[type[Section], tuple[Schema, ...]] = field(default_factory=dict)
    tenant: bool = False

    def section(self, model: type[Section]) -> Schema:
        """The schema of a section, closed: keys that it does not know are refused, or cut off."""
        document = model.model_json_schema(by_alias=True)
        return self._complete(model, _structural(document, document.get("$defs", {})))

    def union(self, models: Iterable[type[Section]]) -> Schema:
        """What several models say of their keys, open; a key that two of them see differently may be anything."""
        properties: Schema = {}
        rules: list[Schema] = []
        for model in models:
            schema = self.section(model)
            rules += (one for one in schema.get(RULES, ()) if one not in rules)
            for name, described in schema["properties"].items():
                known = properties.setdefault(name, described)
                if _unexplained(known) != _unexplained(described):
                    properties[name] = anything()
        return {"type": "object", "properties": properties, PRESERVE: True, **({RULES: rules} if rules else {})}

    def _complete(self, model: type[Section], schema: Schema) -> Schema:
        """Add what is known of fields beyond their types, and the words of the class's docstring."""
        keys = {name: info.alias or name for name, info in model.model_fields.items()}
        texts = _attribute_texts(model)
        other_names = re.compile("|".join(rf"\b{name}\b" for name, key in keys.items() if name != key) or r"(?!)")
        for name, info in model.model_fields.items():
            key = keys[name]
            described = self._field(model, name, info, schema["properties"][key])
            why = _cluster_only(model, key) if self.tenant else None
            if why is not None:
                described = _refused(described, why)
            if name in texts:
                words = other_names.sub(lambda match: keys[match[0]], texts[name])
                described = {"description": words, **described}
            schema["properties"][key] = described
        if model in self.rules:
            schema[RULES] = list(self.rules[model])
        return schema

    def _field(self, model: type[Section], name: str, info: FieldInfo, schema: Schema) -> Schema:
        override, nested = self.overrides.get((model, name)), nested_section(info.annotation)
        if override is not None:
            return nullable(override) if schema.get("nullable") else dict(override)
        if nested is not None:
            inner = schema.get("items", schema)
            self._complete(nested, inner)
            inner[PRESERVE] = True
        return schema


def _unexplained(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "description"}


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """JSON Schema as a structural schema has it: no references, no unions, OpenAPI's words for null and bounds."""
    if "$ref" in schema:
        return _structural(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        real = [part for part in schema["anyOf"] if part.get("type") != "null"]
        inner = _structural(real[0], definitions) if len(real) == 1 else anything()
        return nullable(inner) if len(real) < len(schema["anyOf"]) else inner
    structural: Schema = {key: schema[key] for key in _KEPT if key in schema}
    if schema.get("format") == "path":  # a cluster has no folder that relative ones could begin at
        structural["pattern"] = "^/"
    if "const" in schema:
        structural["enum"] = [schema["const"]]
    if "exclusiveMinimum" in schema:
        structural |= {"minimum": schema["exclusiveMinimum"], "exclusiveMinimum": True}
    if "items" in schema:
        structural["items"] = _structural(schema["items"], definitions)
    if "properties" in schema:
        structural["properties"] = {
            name: _structural(described, definitions) for name, described in schema["properties"].items()
        }
    elif schema.get("type") == "object":
        values = schema.get("additionalProperties", True)
        if isinstance(values, Mapping):
            structural["additionalProperties"] = _structural(values, definitions)
        else:
            structural[PRESERVE] = True
    return structural


def nested_section(annotation: Any) -> type[Section] | None:
    """The section in a field: itself, or in a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(
        (found for part in getattr(annotation, "__args__", ()) if (found := nested_section(part)) is not None), None
    )


def _attribute_texts(model: type) -> dict[str, str]:
    """What the docstring of a class, and of those it is made from, says of each attribute."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        attributes = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(base.__doc__ or ""), re.MULTILINE)
        for entry in re.split(r"\n(?= {4}\w)", attributes[1].rstrip()) if attributes else ():
            name, _, text_of = entry.strip().partition(":")
            words = " ".join(text_of.split())
            texts[name] = words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")
    return texts


# -- resources of one namespace ---------------------------------------------------------------------------------------


def _cluster_only(model: type[Section], key: str) -> str | None:
    """Why a resource of one namespace may not set a key, in the reader's own words; None when it may."""
    for value in (True, "/x", ["/x"]):  # a switch, a path or text, a list
        _, flaws = read_section(model, {key: value}, Surroundings(tenant="tenant"))
        for flaw in flaws:
            if flaw.path.partition("[")[0] == key and flaw.message.startswith(CLUSTER_ONLY):
                return flaw.message
    return None


def _refused(schema: Schema, why: str) -> Schema:
    """The schema of a key that may only say what it says when it is left out."""
    kind = schema.get("type")
    expression = {"boolean": "!self", "array": "size(self) == 0", "string": "self == ''"}.get(str(kind))
    assert expression is not None, f"no rule refuses a {kind}"  # noqa: S101 - a model that the tests build
    rest = {name: value for name, value in schema.items() if name not in (RULES, "enum", "pattern")}
    bound = {"array": {"maxItems": 1000}, "string": {"maxLength": MAX_TEXT}}.get(str(kind), {})
    return {
        **rest,
        **{name: limit for name, limit in bound.items() if name not in rest},
        RULES: [rule(expression, why)],
    }
