"""Resources for the tests of the custom resource definitions: good ones of every kind, mistakes, and as many as can be
made by writing all kinds of values into every field of the models.

test_schemas.py asks tests/simulators/structural.py about them, tests/e2e/test_crds.py a real API server.

What does not belong here: expectations beyond those of refused.yaml.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from provider.configuration.documents import Findings, Place, read_document
from provider.configuration.resources import CERTIFICATE_STORE, KINDS, PARAMETERS, Component
from provider.configuration.sections import Section
from provider.configuration.stores import CREDENTIALS
from provider.configuration.structural_schemas import nested_section
from tests.unit.configuration.samples import GOOD, PLACEHOLDERS, fill

Json = dict[str, Any]

HERE: Final = Path(__file__).parent
TENANT: Final = "team"  # the namespace of namespaced resources
ABSENT: Final = "<absent>"
STATEMENT: Final = "spec.parameters.trustPolicyDoc.trustPolicies.0"
ABBREVIATIONS: Final = {"statement": STATEMENT, "parameters": "spec.parameters"}
GROUP: Final = "config.ratify.deislabs.io"
CLIENT: Final = "11111111-2222-3333-4444-555555555555"

_KEY_VAULT: Final = f"""
apiVersion: {GROUP}/v1beta1
kind: KeyManagementProvider
metadata: {{name: kmprovider-akv}}
spec:
  type: azurekeyvault
  refreshInterval: 30m
  parameters:
    vaultURI: https://contoso.vault.azure.net
    tenantID: 66666666-7777-8888-9999-000000000000
    clientID: {CLIENT}
    certificates: [{{name: signing}}]
"""
_CERTIFICATE_STORE: Final = f"""
apiVersion: {GROUP}/v1beta1
kind: CertificateStore
metadata: {{name: certs, namespace: {TENANT}}}
spec:
  provider: inline
  parameters:
    value: @ROOT@
"""


def _load(text: str) -> Json:
    loaded: Json = yaml.safe_load(fill(text))
    return loaded


def _namespaced(resource: Json) -> Json:
    own = copy.deepcopy(resource)
    own["kind"] = f"Namespaced{own['kind']}"
    own["metadata"]["namespace"] = TENANT
    return own


_CLUSTER_WIDE: Final = {**{kind: _load(text) for kind, text in GOOD.items()}, "KeyVault": _load(_KEY_VAULT)}
# A good resource of every kind, and of what a kind can be beside; NamespacedKeyVault alone is refused as it is.
BASES: Final[Mapping[str, Json]] = {
    **_CLUSTER_WIDE,
    **{f"Namespaced{name}": _namespaced(resource) for name, resource in _CLUSTER_WIDE.items()},
    CERTIFICATE_STORE: _load(_CERTIFICATE_STORE),
}


def changed(resource: Json, edits: Mapping[str, Any]) -> Json:
    """A copy with other values at some key paths, such as `spec.parameters.registries.0.host`."""
    result = copy.deepcopy(resource)
    for path, value in edits.items():
        head, _, rest = path.partition(".")
        *parents, last = ".".join(filter(None, (ABBREVIATIONS.get(head, head), rest))).split(".")
        node: Any = result
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if value == ABSENT:
            node.pop(last, None)
        else:
            node[int(last) if isinstance(node, list) else last] = copy.deepcopy(value)
    return result


@dataclass(frozen=True)
class Mistake:
    """An entry of refused.yaml."""

    title: str
    resource: Json
    at: str
    told: str


def mistakes() -> tuple[Mistake, ...]:
    """All of refused.yaml."""

    def filled(value: Any) -> Any:
        return PLACEHOLDERS.get(value, value) if isinstance(value, str) else value

    entries = yaml.safe_load((HERE / "refused.yaml").read_text())
    return tuple(
        Mistake(
            entry["title"],
            changed(BASES[entry["of"]], {path: filled(value) for path, value in entry["set"].items()}),
            entry["at"],
            entry["told"],
        )
        for entry in entries
    )


def is_accepted(resource: Json) -> bool:
    """Whether the provider, reading a cluster, finds nothing wrong with a resource by itself."""
    findings = Findings()
    read_document(resource, Place("cluster"), findings)
    return not findings.faults


# -- every field with every kind of value ------------------------------------------------------------------------------

_STATEMENT_FIELDS: Final = (
    *("name", "registryScopes", "registryScopes.0", "signatureVerification", "signatureVerification.level"),
    *("signatureVerification.verifyTimestamp", "signatureVerification.override", "trustStores", "trustStores.0"),
    *("signatureVerification.override.revocation", "signatureVerification.override.expiry"),
    *("trustedIdentities", "trustedIdentities.0"),
)
_TEXTS: Final = (
    *(
        "",
        " ",
        "a",
        "A.b",
        "*",
        "default",
        "any",
        "all",
        "log",
        "skip",
        "enforce",
        "strict",
        "always",
        "afterCertExpiry",
    ),
    *("ca:certs", "tsa:a.b_c", "signingAuthority:x", "certs", "x509.subject: C=US, ST=WA, O=a", "x509.san:a", ":a"),
    *("registry.example.com", "registry.example.com:5000", "localhost:5000", "[::1]:5000", "docker.io", "10.0.0.1"),
    *("registry.example.com/app", "registry.example.com:5000/team/app_x.y--z", "docker.io/library/nginx"),
    *("application/vnd.cncf.notary.signature", "a/b, c/d ", " * ", "application/spdx+json,*"),
    *("10s", "1h30m", "1.5h", "2.s", "5µs", "24h", "0s"),
    *("/etc/certs", "certs/", "https://contoso.vault.azure.net", "https://Contoso.Vault.azure.cn/"),
    *("https://a-b-c.vault.usgovcloudapi.net:443", "HTTPS://contoso.vault.azure.net"),
    *("oras", "oci-layout", "notation", "inline", "azurekeyvault", "config-policy", "configPolicy", "CONFIG-POLICY"),
    *("certificate", "key", "dockerConfig", "k8Secrets", "contoso.onmicrosoft.com", CLIENT, "0" * 32, "team"),
    *(PLACEHOLDERS["@ROOT@"], PLACEHOLDERS["@CHAIN@"], PLACEHOLDERS["@PUBLIC@"]),
    "text around\r\n" + PLACEHOLDERS["@ROOT@"].replace("\n", "\r\n"),
)
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, 7, 25, 1000, -1, 0.5, 3.0, 300),
    *_TEXTS,
    *([text] for text in _TEXTS),
    *([], {}, ["*"], ["a", "b"], {"a": "b"}, {"a": ["b"]}, {"default": "all"}, {"*": "any", "a/b": "all"}),
    *([{"name": "a"}], [{"name": "a", "version": ""}], [{"name": "a", "version": "A" * 32, "versionHistoryLimit": 0}]),
    *(
        [{"host": "docker.io"}],
        [{"host": "[::1]:5000"}],
        [{"secretName": "a.b"}],
        [{"secretName": "a", "namespace": "team"}],
    ),
    *({"revocation": "skip"}, {"expiry": "log", "authenticity": "enforce"}, {"level": "audit"}, {"level": "skip"}),
    *({"allowedHosts": ["a.b"]}, {"allowPrivateAddresses": False}, {"artifact": None, "authProvider": {}}),
    *({"ca": {"certs": ["a"]}, "tsa": {}}, {"certs": ["team/a"]}, {"certs": []}),
    *({"name": name} for name in CREDENTIALS),
    *([{"name": name}] for name in CREDENTIALS),
)


def _paths(model: type[Section], prefix: str) -> Iterator[str]:
    """The key paths of a model's fields, down into its sections; `.0` for the first of a list."""
    for name, info in model.model_fields.items():
        path = f"{prefix}.{info.alias or name}"
        yield path
        section = nested_section(info.annotation)
        if section is not None and section not in CREDENTIALS.values():
            yield from _paths(section, path)
            yield from _paths(section, f"{path}.0")


def fields(base: str) -> tuple[str, ...]:
    """The key paths of everything that can be said in a resource like one of BASES."""
    entry = KINDS[BASES[base]["kind"]]
    found = dict.fromkeys(_paths(entry.spec, "spec"))
    for (component, _), model in PARAMETERS.items():
        if component is entry.component:
            found |= dict.fromkeys(_paths(model, "spec.parameters"))
    if entry.component is Component.VERIFIER:
        found |= dict.fromkeys(f"{STATEMENT}.{field}" for field in _STATEMENT_FIELDS)
    if entry.component is Component.STORE:
        for model in CREDENTIALS.values():
            found |= dict.fromkeys(_paths(model, "spec.parameters.authProvider"))
    return tuple(found)


def with_values(base: str, *pairs: tuple[str, Any]) -> Json | None:
    """A resource like one of BASES with some values, or None where there is no such place in it."""
    resource = BASES[base]
    try:
        for path, value in pairs:
            resource = changed(resource, _edits(path, value))
    except (AttributeError, TypeError, IndexError, ValueError):
        return None
    return resource


def _edits(path: str, value: Any) -> Json:
    """What has to be written for a value to be at a path."""
    head, inside, rest = path.partition(".0.")
    if inside and not path.startswith(STATEMENT):  # in a list that is not there yet
        return {head: [changed(_FIRST.get(head.rpartition(".")[2], {}), {rest: value})]}
    _, inside, rest = path.partition(".authProvider.")
    if inside and rest != "name":
        return {"spec.parameters.authProvider.name": _owner(rest.split(".")[0]), path: value}
    return {path: value}


_FIRST: Final[Mapping[str, Json]] = {
    "registries": {"host": "registry.example.com"},
    "certificates": {"name": "signing"},
    "keys": {"name": "signing"},
}


def _owner(key: str) -> str:
    """A source of credentials that has this key."""
    return next(
        name
        for name, model in CREDENTIALS.items()
        if key in {info.alias or field for field, info in model.model_fields.items()}
    )


@functools.cache
def accepted() -> tuple[Json, ...]:
    """Every resource that the provider accepts of those with one value in one field."""
    candidates = (
        with_values(base, (path, value)) for base in BASES for path, value in itertools.product(fields(base), VALUES)
    )
    return (*(one for one in candidates if one is not None and is_accepted(one)),)
