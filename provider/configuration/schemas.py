"""The CustomResourceDefinitions of the nine kinds, made from the models of the resources.

Rules:
- What a model says is said in the schema too where a structural schema can say it: types, required keys, limits,
  choices. What Ratify stores and this version does not support yet stays storable: parameters that no model names are
  kept as they are, and so is what differs from type to type.
- Inside what has one meaning (the trust policy document, an entry of registries) kubectl refuses unknown keys. Whoever
  does not ask the API server to be strict has them cut off; so this is done only where a setting that is cut off leaves
  the stricter default.
- A schema refuses nothing that this version could use and Ratify did. Where it refuses what is stored already, API
  servers from 1.30 on let the object be as long as that part of it is not touched (validation ratcheting); for that, a
  rule stands as deep as it can.
- v1alpha1 has the schema of v1beta1: an object is stored once, and no version may lose what another one says.

What does not belong here: where the definitions are written to (charts/generate.py), what a reader refuses beyond them
(documents.py, consistency.py).
Sources: Kubernetes "Custom Resources: structural schemas, validation rules, ratcheting"; names, versions, columns and
status of Ratify v1.4.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from provider.configuration.key_providers import InlineParameters
from provider.configuration.resources import (
    CERTIFICATE_STORE,
    FORMER_VERSION,
    GROUP,
    KINDS,
    PARAMETERS,
    POLICY_NAME,
    VERSION,
    CertificateStoreSpec,
    Component,
    KeyManagementProviderSpec,
    KindEntry,
    PolicySpec,
    VerifierSpec,
)
from provider.configuration.sections import Section
from provider.configuration.stores import (
    CREDENTIALS,
    LATER_CREDENTIALS,
    MAX_AUTH_PROVIDERS,
    OrasParameters,
    RegistryParameters,
)
from provider.configuration.verifiers import MAX_STORES, NotationParameters
from provider.notation.trust_policy import Action, Check, Level, StoreType, VerifyTimestamp

Schema = dict[str, Any]

MAX_STATEMENTS: Final = 1000  # of a trust policy document; bounds what its rules cost the API server
MAX_ENTRIES: Final = 1000  # of a list in a statement
MAX_TEXT: Final = 2048  # characters of an entry of such a list

_PRESERVE: Final = "x-kubernetes-preserve-unknown-fields"
_RULES: Final = "x-kubernetes-validations"
_ANYTHING: Final[Schema] = {_PRESERVE: True}

_HOST: Final = r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_TYPE: Final = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*"
_ARTIFACT_TYPE: Final = rf"(?:\*|{_TYPE}/{_TYPE})"
_DURATION: Final = r"(?:[0-9]+(?:\.[0-9]*)?(?:ns|us|µs|μs|ms|s|m|h))+"
_SCOPE: Final = (
    r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?"
    r"(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+"
)


def custom_resource_definitions() -> dict[str, Schema]:
    """The definitions, by plural, as objects for the Kubernetes API."""
    return {entry.plural: _definition(kind, entry) for kind, entry in KINDS.items()}


def _definition(kind: str, entry: KindEntry) -> Schema:
    versions = [_version(kind, entry, VERSION)]
    if entry.former_version:
        warning = f"{FORMER_VERSION} of {kind} is deprecated: write {GROUP}/{VERSION}"
        versions.insert(0, {**_version(kind, entry, FORMER_VERSION), "deprecated": True, "deprecationWarning": warning})
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{entry.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": entry.plural, "singular": kind.lower()},
            "scope": "Namespaced" if entry.namespaced else "Cluster",
            "versions": versions,
        },
    }


def _version(kind: str, entry: KindEntry, name: str) -> Schema:
    columns = [("IsSuccess", "boolean", "issuccess"), ("Error", "string", "brieferror")]
    if entry.component is Component.KEY_PROVIDER:
        columns.append(("LastFetchedTime", "date", "lastfetchedtime"))
    return {
        "name": name,
        "served": True,
        "storage": name == VERSION,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": title, "type": of, "jsonPath": f".status.{field}"} for title, of, field in columns
        ],
        "schema": {"openAPIV3Schema": _root(kind, entry)},
    }


def _root(kind: str, entry: KindEntry) -> Schema:
    metadata: Schema = {"type": "object"}
    if entry.component is Component.POLICY:
        metadata["properties"] = {"name": {"type": "string", "enum": [POLICY_NAME]}}
    return {
        "type": "object",
        "description": _purpose(kind, entry),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": metadata,
            "spec": _spec(kind, entry),
            "status": _status(entry),
        },
    }


def _purpose(kind: str, entry: KindEntry) -> str:
    what = {
        Component.STORE: "Where images and their signatures are kept",
        Component.VERIFIER: "How signatures are verified, and whose",
        Component.KEY_PROVIDER: "Where trusted certificates and keys come from",
        Component.POLICY: "What an image needs to be admitted",
    }[entry.component]
    if kind == CERTIFICATE_STORE:
        return f"{what}. Deprecated: use KeyManagementProvider."
    return f"{what}, for one namespace." if entry.namespaced else f"{what}, for the whole cluster."


def _status(entry: KindEntry) -> Schema:
    properties: Schema = {
        "issuccess": {"type": "boolean", "description": "The newest version of the resource is good and in use."},
        "error": {"type": "string", "description": "Everything that is wrong, each with its key path."},
        "brieferror": {"type": "string", "description": "The first thing that is wrong, in at most 100 characters."},
        "observedGeneration": {
            "type": "integer",
            "format": "int64",
            "description": "The metadata.generation that this status is about.",
        },
    }
    if entry.component is Component.KEY_PROVIDER:
        properties["lastfetchedtime"] = {
            "type": "string",
            "format": "date-time",
            "description": "When the keys and certificates of this status were fetched first, or failed to be.",
        }
        properties["properties"] = {
            "type": "object",
            "description": "The certificates and keys in use.",
            _PRESERVE: True,
        }
    return {"type": "object", "required": ["issuccess"], "properties": properties}


# -- spec -------------------------------------------------------------------------------------------------------------


def _spec(kind: str, entry: KindEntry) -> Schema:
    schema = _section(entry.spec)
    types = {name: model for (component, name), model in PARAMETERS.items() if component is entry.component}
    if kind == CERTIFICATE_STORE:
        types = {"inline": InlineParameters}
    schema["properties"]["parameters"] = _parameters(types.values())
    rules = [rule for name, model in types.items() if (rule := _needs(kind, entry, name, model)) is not None]
    if rules:
        schema[_RULES] = rules
    return schema


def _parameters(models: Iterable[type[Section]]) -> Schema:
    """What the models of all types say of their keys; a key that two of them see differently may be anything."""
    properties: Schema = {}
    for model in models:
        for name, schema in _section(model)["properties"].items():
            properties[name] = schema if properties.get(name, schema) == schema else dict(_ANYTHING)
    return {
        "type": "object",
        "description": "Settings of the type.",
        "nullable": True,
        "properties": properties,
        _PRESERVE: True,
    }


def _needs(kind: str, entry: KindEntry, type_name: str, model: type[Section]) -> Schema | None:
    """A rule for the keys that a type cannot do without."""
    needed = [info.alias or name for name, info in model.model_fields.items() if info.is_required()]
    if kind == CERTIFICATE_STORE:
        needed.remove("contentType")  # it knows no other than certificates
    if not needed:
        return None
    the_type = {
        Component.STORE: "self.name",
        Component.VERIFIER: "(has(self.type) && self.type != '' ? self.type : self.name)",
    }.get(entry.component, "self.provider" if kind == CERTIFICATE_STORE else "self.type")
    has = " && ".join(f"has(self.parameters.{key})" for key in needed)
    return {
        "rule": f"{the_type} != '{type_name}' || (has(self.parameters) && {has})",
        "message": f"the type {type_name} needs {', '.join(f'parameters.{key}' for key in needed)}",
    }


# -- models -----------------------------------------------------------------------------------------------------------


class _Generator(GenerateJsonSchema):
    """JSON Schema of models, with a placeholder for what pydantic cannot describe."""

    def handle_invalid_for_json_schema(
        self,
        schema: core_schema.CoreSchema,  # noqa: ARG002 - pydantic's signature
        error_info: str,  # noqa: ARG002
    ) -> JsonSchemaValue:
        """What a validator of our own makes of its input is not described: see _OVERRIDES."""
        return dict(_ANYTHING)


def _section(model: type[Section]) -> Schema:
    """The structural schema of a model."""
    document = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return _describe(model, _structural(document, document.get("$defs", {})))


def _describe(model: type[Section], schema: Schema) -> Schema:
    """Add what is known of single fields beyond their types, and the words of the class's docstring."""
    keys = {name: info.alias or name for name, info in model.model_fields.items()}
    texts = _attribute_texts(model)
    other_names = re.compile("|".join(rf"\b{name}\b" for name, key in keys.items() if name != key) or r"(?!)")
    for name, info in model.model_fields.items():
        alias = keys[name]
        field = schema["properties"][alias]
        override, nested = _OVERRIDES.get((model, name)), _nested(info.annotation)
        if override is None and nested is not None:
            _describe(nested, field.get("items", field))
        elif override is not None:
            nullable = {"nullable": True} if field.get("nullable") else {}
            field = schema["properties"][alias] = {**override, **nullable}
        if name in texts:
            text = other_names.sub(lambda match: keys[match[0]], texts[name])
            schema["properties"][alias] = {"description": text, **field}
    return schema


def _nested(annotation: Any) -> type[Section] | None:
    """The section in a field: itself, or in a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _nested(part)) is not None), None)


def _attribute_texts(model: type) -> dict[str, str]:
    """What the docstring of a class, and of those it is made from, says of each attribute."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        attributes = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(base.__doc__ or ""), re.MULTILINE)
        for entry in re.split(r"\n(?= {4}\w)", attributes[1].rstrip()) if attributes else ():
            name, _, text = entry.strip().partition(":")
            words = " ".join(text.split())
            texts[name] = words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")
    return texts


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """JSON Schema as a structural schema has it: no references, no unions, OpenAPI's words for null and bounds."""
    if "$ref" in schema:
        return _structural(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        real = [part for part in schema["anyOf"] if part.get("type") != "null"]
        inner = _structural(real[0], definitions) if len(real) == 1 else dict(_ANYTHING)
        return {**inner, "nullable": True} if len(real) < len(schema["anyOf"]) else inner
    structural: Schema = {key: schema[key] for key in _KEPT if key in schema}
    if "const" in schema:
        structural["enum"] = [schema["const"]]
    if "exclusiveMinimum" in schema:
        structural |= {"minimum": schema["exclusiveMinimum"], "exclusiveMinimum": True}
    if "items" in schema:
        structural["items"] = _structural(schema["items"], definitions)
    if "properties" in schema:
        structural["properties"] = {
            name: _structural(field, definitions) for name, field in schema["properties"].items()
        }
    elif schema.get("type") == "object":
        values = schema.get("additionalProperties", True)
        if isinstance(values, Mapping):
            structural["additionalProperties"] = _structural(values, definitions)
        else:
            structural[_PRESERVE] = True
    return structural


_KEPT: Final = (
    "type",
    "enum",
    "required",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
    _PRESERVE,
)


# -- what a model's types do not say ----------------------------------------------------------------------------------


def _text(pattern: str | None = None, **more: Any) -> Schema:
    return {"type": "string", **({"pattern": f"^(?:{pattern})$"} if pattern else {}), **more}


def _choice(choices: Iterable[Any]) -> Schema:
    return {"type": "string", "enum": [getattr(choice, "value", choice) for choice in choices]}


def _any_case(text: str) -> str:
    """A pattern for a name as Ratify compares it: whatever the case, with or without its hyphen."""
    return "".join("-?" if letter == "-" else f"[{letter}{letter.upper()}]" for letter in text)


def _list_of(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "maxItems": MAX_ENTRIES, "items": items, **more}


def _rule(rule: str, message: str) -> Schema:
    return {"rule": rule, "message": message}


_MAY_BE_LOGGED: Final = (Action.ENFORCE, Action.LOG)  # only revocation may be skipped, integrity not even logged
_STATEMENT: Final[Schema] = {
    "type": "object",
    "required": ["name", "registryScopes", "signatureVerification"],
    "properties": {
        "name": _text(minLength=1),
        "registryScopes": _list_of(
            _text(rf"\*|{_SCOPE}", maxLength=MAX_TEXT),
            minItems=1,
            description="Repositories in full (registry.example.com/team/app), or * alone for all others.",
            **{_RULES: [_rule("!('*' in self) || size(self) == 1", "* stands alone")]},
        ),
        "signatureVerification": {
            "type": "object",
            "required": ["level"],
            "properties": {
                "level": _choice(Level),
                "verifyTimestamp": {**_choice((*VerifyTimestamp, "")), "nullable": True},
                "override": {
                    "type": "object",
                    "nullable": True,
                    "properties": {
                        check.value: _choice(Action if check is Check.REVOCATION else _MAY_BE_LOGGED)
                        for check in Check
                        if check is not Check.INTEGRITY
                    },
                },
            },
        },
        "trustStores": _list_of(
            _text(f"(?:{'|'.join(kind.value for kind in StoreType)}):[a-zA-Z0-9_.-]+", maxLength=MAX_TEXT),
            description="Trust stores as type:name, such as ca:company.",
        ),
        "trustedIdentities": _list_of(
            _text(minLength=1, maxLength=MAX_TEXT),
            description="Subjects such as `x509.subject: C=US, ST=WA, O=contoso.com`, or * alone for any.",
            **{_RULES: [_rule("!('*' in self) || size(self) == 1", "* stands alone")]},
        ),
    },
    _RULES: [
        _rule(
            "self.signatureVerification.level == 'skip' || (has(self.trustStores) && size(self.trustStores) > 0"
            " && has(self.trustedIdentities) && size(self.trustedIdentities) > 0)",
            "trustStores and trustedIdentities are needed, unless the level is skip",
        ),
        _rule(
            "self.signatureVerification.level != 'skip' || !('*' in self.registryScopes)",
            "the level skip needs registryScopes that name repositories, not *",
        ),
    ],
}
TRUST_POLICY: Final[Schema] = {
    "type": "object",
    "required": ["version", "trustPolicies"],
    "properties": {
        "version": {"type": "string", "enum": ["1.0"]},
        "trustPolicies": {"type": "array", "minItems": 1, "maxItems": MAX_STATEMENTS, "items": _STATEMENT},
    },
}
_CREDENTIALS: Final[Schema] = {
    "type": "object",
    "properties": {"name": _choice((*CREDENTIALS, *sorted(LATER_CREDENTIALS)))},
    _PRESERVE: True,
}
_HOSTS: Final = _list_of(_text(_HOST))
_OVERRIDES: Final[Mapping[tuple[type[Section], str], Schema]] = {
    (VerifierSpec, "artifact_types"): _text(rf"\s*{_ARTIFACT_TYPE}\s*(?:,\s*{_ARTIFACT_TYPE}\s*)*"),
    (KeyManagementProviderSpec, "type"): _choice(("inline", "azurekeyvault")),
    (KeyManagementProviderSpec, "refresh_interval"): _text(rf"|{_DURATION}"),
    (PolicySpec, "type"): _text("|".join(map(_any_case, ("config-policy", "rego-policy")))),
    (CertificateStoreSpec, "provider"): _choice(("inline", "azurekeyvault")),
    (OrasParameters, "auth_provider"): _CREDENTIALS,
    (OrasParameters, "auth_providers"): {"type": "array", "maxItems": MAX_AUTH_PROVIDERS, "items": _CREDENTIALS},
    (RegistryParameters, "host"): _text(_HOST),
    (RegistryParameters, "token_hosts"): _HOSTS,
    (RegistryParameters, "redirect_hosts"): _HOSTS,
    (NotationParameters, "trust_policy_doc"): TRUST_POLICY,
    (NotationParameters, "verification_cert_stores"): {
        "type": "object",
        "maxProperties": MAX_STORES,
        "additionalProperties": dict(_ANYTHING),
    },
    (NotationParameters, "revocation"): {"type": "object", _PRESERVE: True},
    (InlineParameters, "value"): {
        "type": "string",
        "pattern": "-----BEGIN [A-Z0-9 ]+-----",
        _RULES: [
            _rule(
                "!self.contains('PRIVATE KEY-----')", "it holds a private key, which must not be here: replace the key"
            )
        ],
    },
}
