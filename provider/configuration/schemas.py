"""The CustomResourceDefinitions of the nine kinds, made from the models of the resources.

Rules:
- What Ratify stores and this version does not support yet stays storable: parameters that no model names are kept as
  they are, and so is what differs from type to type.
- A schema refuses nothing that this version could use, up to the sizes below, which bound what the rules cost the API
  server. Where it refuses what is stored already, API servers from 1.30 on let the object be as long as that part of it
  is not touched (validation ratcheting); for that, a rule stands as deep as it can.
- Closed, so that kubectl refuses unknown keys and others have them cut off, are only a spec and, inside the trust
  policy, what cannot do without its keys. What would be a weaker policy without a misspelled key is left open
  (structural_schemas.py); the reader refuses it, and the resource's status says so.
- Lists stay atomic: who applies last decides for all of a list. Merged, a statement that one tool removed would stay
  because of another.
- v1alpha1 has the schema of v1beta1: an object is stored once, and no version may lose what another one says.

What does not belong here: how a model becomes a schema (structural_schemas.py), where the definitions are written to
(charts/generate.py), what a reader refuses beyond them (documents.py, consistency.py).
Sources: Kubernetes "Custom Resources: structural schemas, validation rules, ratcheting"; names, versions, columns and
status of Ratify v1.4.
"""

from __future__ import annotations

from typing import Final

from provider.configuration.key_providers import (
    VAULT_ZONES,
    AzureKeyVaultParameters,
    InlineParameters,
    VaultObjectParameters,
)
from provider.configuration.resources import (
    CERTIFICATE_STORE,
    FORMER_VERSION,
    GROUP,
    KINDS,
    LATER,
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
from provider.configuration.sections import CLUSTER_ONLY, Section, Surroundings
from provider.configuration.sections import inspect as read_section
from provider.configuration.stores import (
    CREDENTIALS,
    LATER_CREDENTIALS,
    MAX_AUTH_PROVIDERS,
    KubernetesSecretsParameters,
    OrasParameters,
    RegistryParameters,
    SecretReference,
)
from provider.configuration.structural_schemas import (
    PRESERVE,
    RULES,
    Describer,
    FieldKey,
    Schema,
    anything,
    choice,
    nullable,
    rule,
    text,
    told_text,
)
from provider.configuration.verifiers import MAX_STORES, NotationParameters, RevocationParameters
from provider.notation.trust_policy import MAX_IDENTITIES, Action, Check, Level, StoreType, VerifyTimestamp

MAX_STATEMENTS: Final = 500  # of a trust policy document
MAX_SCOPES: Final = 10_000  # of a statement; a repository each, so there may be many. This times the last is the limit
MAX_STATEMENT_STORES: Final = 1000  # of a statement
MAX_HOSTS: Final = 1000  # of a list
MAX_MATERIAL: Final = 1024 * 1024  # characters of inline certificates; etcd holds little more in one object

_HOST: Final = r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_OBJECT_NAME: Final = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
_TYPE: Final = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*"
_ARTIFACT_TYPE: Final = rf"(?:\*|{_TYPE}/{_TYPE})"
_DURATION: Final = r"(?:[0-9]+(?:\.[0-9]*)?(?:ns|us|µs|μs|ms|s|m|h))+"
_GUID: Final = r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_DOMAIN: Final = r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"
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
            PRESERVE: True,
        }
    return {"type": "object", "required": ["issuccess"], "properties": properties}


# -- spec -------------------------------------------------------------------------------------------------------------


def _spec(kind: str, entry: KindEntry) -> Schema:
    tenant = entry.namespaced and kind != CERTIFICATE_STORE  # that one is its namespace's in name only, as in Ratify
    describer = Describer({**_OVERRIDES, **_credentials(tenant=tenant)}, _SECTION_RULES, tenant)
    types = {name: model for (component, name), model in PARAMETERS.items() if component is entry.component}
    if kind == CERTIFICATE_STORE:  # its Key Vault was written otherwise
        types = {"inline": InlineParameters}
    schema = describer.section(entry.spec)
    parameters = {"description": "Settings of the type.", **describer.union(types.values())}
    schema["properties"]["parameters"] = nullable(parameters)
    rules = [one for name, model in types.items() for one in _type_rules(kind, entry, name, model)]
    if rules:
        schema[RULES] = rules
    return schema


def _type_rules(kind: str, entry: KindEntry, type_name: str, model: type[Section]) -> list[Schema]:
    """Rules for the keys that a type cannot do without."""
    needed = [info.alias or name for name, info in model.model_fields.items() if info.is_required()]
    if kind == CERTIFICATE_STORE:
        needed.remove("contentType")  # it knows no other than certificates
    the_type = {
        Component.STORE: "self.name",
        Component.VERIFIER: "(has(self.type) && self.type != '' ? self.type : self.name)",
    }.get(entry.component, "self.provider" if kind == CERTIFICATE_STORE else "self.type")
    rules = []
    if needed:
        has = " && ".join(f"has(self.parameters.{key})" for key in needed)
        told = ", ".join(f"parameters.{key}" for key in needed)
        expression = f"{the_type} != '{type_name}' || (has(self.parameters) && {has})"
        rules.append(rule(expression, f"the type {type_name} needs {told}"))
    if model is AzureKeyVaultParameters:
        lists = [f"self.parameters.{key}" for key in ("certificates", "keys")]
        some = " || ".join(f"(has({one}) && size({one}) > 0)" for one in lists)
        told = (
            f"the type {type_name} needs parameters.certificates or parameters.keys: name what to take from the vault"
        )
        rules.append(rule(f"{the_type} != '{type_name}' || !has(self.parameters) || {some}", told))
    return rules


def _credentials(*, tenant: bool) -> dict[FieldKey, Schema]:
    """The schemas of authProvider and authProviders."""
    surroundings = Surroundings(tenant="tenant" if tenant else "")
    models = {
        name: model
        for name, model in CREDENTIALS.items()
        if not any(CLUSTER_ONLY in flaw.message for flaw in read_section(model, {"name": name}, surroundings)[1])
    }
    schema = Describer(_OVERRIDES, _SECTION_RULES, tenant).union(models.values())
    schema["properties"]["name"] = choice((*models, *sorted(LATER_CREDENTIALS)))
    if tenant:
        schema["required"] = ["name"]  # left out it is dockerConfig, which is the provider's own
    return {
        (OrasParameters, "auth_provider"): nullable(schema),
        (OrasParameters, "auth_providers"): {"type": "array", "maxItems": MAX_AUTH_PROVIDERS, "items": schema},
    }


# -- the trust policy document ----------------------------------------------------------------------------------------

_OVERRIDABLE: Final = [check.value for check in Check if check is not Check.INTEGRITY]
_STANDS_ALONE: Final = "!('*' in self) || size(self) == 1"
_LEFT_OUT: Final = " && ".join(
    f"(!has(self.{key}) || size(self.{key}) == 0)"
    for key in ("trustStores", "trustedIdentities", "signatureVerification.override")
)

# A mapping of any keys: a misspelled check is refused, and not cut off, which might weaken the policy.
_OVERRIDE: Final[Schema] = {
    "type": "object",
    "maxProperties": len(_OVERRIDABLE),
    "additionalProperties": choice(Action),
    "description": f"What a failed check leads to, where it differs from the level: {', '.join(_OVERRIDABLE)}.",
    RULES: [
        rule(
            f"self.all(check, check in {_OVERRIDABLE})",
            f"must name {', '.join(_OVERRIDABLE)}; integrity is always enforced",
        ),
        rule("self.all(check, check == 'revocation' || self[check] != 'skip')", "only revocation can be skipped"),
    ],
}
_STATEMENT: Final[Schema] = {
    "type": "object",
    "required": ["name", "registryScopes", "signatureVerification"],
    "properties": {
        "name": {"type": "string", "pattern": r"\S"},
        "registryScopes": {
            "type": "array",
            "description": "Repositories in full (registry.example.com/team/app), or * alone for all others.",
            "minItems": 1,
            "maxItems": MAX_SCOPES,
            "items": text(rf"\*|{_SCOPE}"),
            RULES: [rule(_STANDS_ALONE, "* must stand alone: it is every repository that no other statement names")],
        },
        "signatureVerification": {
            "type": "object",
            "required": ["level"],
            "properties": {
                "level": choice(Level),
                "verifyTimestamp": nullable(choice((*VerifyTimestamp, ""))),
                "override": nullable(_OVERRIDE),
            },
            PRESERVE: True,
        },
        "trustStores": nullable(
            {
                "type": "array",
                "description": "Trust stores as type:name, such as ca:company.",
                "maxItems": MAX_STATEMENT_STORES,
                "items": text(f"(?:{'|'.join(kind.value for kind in StoreType)}):[a-zA-Z0-9_.-]+"),
            }
        ),
        "trustedIdentities": nullable(
            {
                "type": "array",
                "description": "Subjects such as `x509.subject: C=US, ST=WA, O=contoso.com`, or * alone for any.",
                "maxItems": MAX_IDENTITIES,
                "items": text(r"\*|[^:]*:(?s:.)*"),
                RULES: [rule(_STANDS_ALONE, "* must stand alone: it is every identity")],
            }
        ),
    },
    RULES: [
        rule(
            "self.signatureVerification.level == 'skip' || (has(self.trustStores) && size(self.trustStores) > 0"
            " && has(self.trustedIdentities) && size(self.trustedIdentities) > 0)",
            "needs trustStores and trustedIdentities, unless the level is skip",
        ),
        rule(
            "self.signatureVerification.level != 'skip' || !('*' in self.registryScopes)",
            "the level skip needs registryScopes that name repositories, not *",
        ),
        rule(
            f"self.signatureVerification.level != 'skip' || ({_LEFT_OUT})",
            "the level skip verifies nothing: leave trustStores, trustedIdentities and override out",
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


# -- what a model's types do not say ----------------------------------------------------------------------------------


def _any_case(name: str) -> str:
    """A pattern for a name as Ratify compares it: whatever the case, with or without its hyphen."""
    return "".join("-?" if letter == "-" else f"[{letter}{letter.upper()}]" for letter in name)


def _types(component: Component) -> list[str]:
    return sorted({name for of, name in (*PARAMETERS, *LATER) if of is component})


_KEY_PROVIDER_TYPE: Final = choice(_types(Component.KEY_PROVIDER))
_HOSTS: Final[Schema] = {"type": "array", "maxItems": MAX_HOSTS, "items": text(_HOST)}
_NAME: Final = told_text(_OBJECT_NAME, "must be a Kubernetes name (a-z, 0-9, '-', '.')", max_length=253)

_OVERRIDES: Final[dict[FieldKey, Schema]] = {
    (VerifierSpec, "artifact_types"): told_text(
        rf"\s*{_ARTIFACT_TYPE}\s*(?:,\s*{_ARTIFACT_TYPE}\s*)*",
        "must be artifact types such as application/vnd.cncf.notary.signature, separated by commas, or *",
    ),
    (KeyManagementProviderSpec, "type"): _KEY_PROVIDER_TYPE,
    (KeyManagementProviderSpec, "refresh_interval"): told_text(
        rf"|{_DURATION}", "must be a duration such as 30m or 1h30m"
    ),
    (PolicySpec, "type"): told_text(
        "|".join(map(_any_case, _types(Component.POLICY))), "must be config-policy", max_length=64
    ),
    (CertificateStoreSpec, "provider"): _KEY_PROVIDER_TYPE,
    (RegistryParameters, "host"): told_text(
        _HOST, "must be a registry host such as registry.example.com:5000 or docker.io", max_length=300
    ),
    (RegistryParameters, "token_hosts"): _HOSTS,
    (RegistryParameters, "redirect_hosts"): _HOSTS,
    (KubernetesSecretsParameters, "service_account_name"): _NAME,
    (SecretReference, "secret_name"): _NAME,
    (NotationParameters, "trust_policy_doc"): TRUST_POLICY,
    (NotationParameters, "verification_cert_stores"): nullable(
        {"type": "object", "maxProperties": MAX_STORES, "additionalProperties": anything()}
    ),
    (RevocationParameters, "allowed_hosts"): _HOSTS,
    (InlineParameters, "value"): {"type": "string", "maxLength": MAX_MATERIAL},
    (AzureKeyVaultParameters, "vault_uri"): told_text(
        rf"(?i:https://[a-z0-9-]{{3,24}}\.(?:{'|'.join(zone.replace('.', '[.]') for zone in VAULT_ZONES)})(?::443)?/?)",
        f"must be the URI of a vault, https://<name>.<one of {', '.join(VAULT_ZONES)}>",
        max_length=256,
    ),
    (AzureKeyVaultParameters, "tenant_id"): told_text(
        f"|{_GUID}|{_DOMAIN}", "must be the id of a tenant, or one of its domains", max_length=256
    ),
    (AzureKeyVaultParameters, "client_id"): told_text(
        f"|{_GUID}", "must be the client id of an identity, 8-4-4-4-12 hexadecimal digits", max_length=64
    ),
    (AzureKeyVaultParameters, "max_age"): told_text(_DURATION, "must be a duration such as 24h"),
    (VaultObjectParameters, "name"): told_text(
        "[0-9A-Za-z-]{1,127}", "must be a name in Key Vault (letters, digits, '-')", max_length=256
    ),
    (VaultObjectParameters, "version"): told_text(
        "|[0-9A-Fa-f]{32}", "must be a version in Key Vault, 32 hexadecimal digits", max_length=256
    ),
}

_SECTION_RULES: Final[dict[type[Section], tuple[Schema, ...]]] = {
    # One level above the value: an API server repeats a text that breaks a rule, and this one may be a private key.
    InlineParameters: (
        rule(
            "!has(self.value) || self.value.contains('-----BEGIN ')",
            "value must be PEM: the content of the file, from -----BEGIN on",
        ),
        rule(
            "!has(self.value) || !self.value.matches('-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----')",
            "value holds a private key, which is not needed here: take it out, and replace it if others could read it",
        ),
    ),
    OrasParameters: (
        rule(
            "!has(self.authProvider) || !has(self.authProviders) || size(self.authProviders) == 0",
            "authProviders stands beside authProvider: give one of the two",
        ),
    ),
    RegistryParameters: (
        rule("!has(self.caBundle) || !has(self.caFile)", "caFile stands beside caBundle: give one of the two"),
        rule("!has(self.clientKeyFile) || has(self.clientCertFile)", "clientKeyFile needs clientCertFile"),
        rule(
            "!has(self.plainHttp) || !self.plainHttp"
            " || !(has(self.caBundle) || has(self.caFile) || has(self.clientCertFile))",
            "plainHttp contradicts the TLS settings beside it",
        ),
    ),
}
