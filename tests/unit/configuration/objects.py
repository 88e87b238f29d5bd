"""Objects of a cluster for the tests: the good set of samples.py as an API server gives it, and changes to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from provider.configuration.ledger import Key, Ledger
from provider.configuration.resources import KINDS
from tests.unit.configuration.samples import GOOD, fill

Object = dict[str, Any]

KMP = ("KeyManagementProvider", "", "ratify-notation-inline-cert-0")
VERIFIER = ("Verifier", "", "verifier-notation")
STORE = ("Store", "", "store-oras")
POLICY = ("Policy", "", "ratify-policy")


def from_yaml(text: str, *, uid: str = "1", generation: int = 1) -> Object:
    """An object of one YAML document, with what an API server adds."""
    value: Object = yaml.safe_load(fill(text))
    value["metadata"] |= {"uid": uid, "generation": generation, "resourceVersion": str(generation)}
    return value


def one(kind: str, *changes: tuple[str, str], **metadata: Any) -> Object:
    """An object of the good set in which texts were replaced."""
    text = GOOD[kind]
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return from_yaml(text, **metadata)


def tenant(value: Object, namespace: str = "team-a") -> Object:
    """The same for one namespace."""
    value = copy.deepcopy(value)
    value["kind"] = f"Namespaced{value['kind']}"
    value["metadata"]["namespace"] = namespace
    return value


def key_of(value: Mapping[str, Any]) -> Key:
    """What the ledger keeps it under."""
    namespace = value["metadata"].get("namespace", "") if KINDS[value["kind"]].namespaced else ""
    return value["kind"], namespace, value["metadata"]["name"]


def ledger_of(*objects: Object) -> Ledger:
    """A ledger with these objects, put in their order."""
    ledger = Ledger()
    for value in objects:
        ledger.put(key_of(value), value)
    return ledger


def good() -> list[Object]:
    """The good set."""
    return [one(kind) for kind in GOOD]
