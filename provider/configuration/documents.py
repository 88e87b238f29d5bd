"""Reading documents: an untrusted value in, checked resources out, and everything that is wrong or odd told.

Rules:
- A document of another group is not ours and is ignored with a warning, because people keep constraints and templates
  beside the resources. One whose group looks like a misspelling of ours is a fault.
- A fault in one part of a resource does not hide those in others.
- Fields of Ratify's plugin mechanism have no effect; where they would make Ratify download or reach a program, the
  resource is refused rather than read as something weaker.

What does not belong here: text (strict_yaml.py, manifests.py), what resources say of each other (consistency.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from provider.configuration.key_providers import parse_duration
from provider.configuration.resources import (
    CERTIFICATE_STORE,
    FORMER_VERSION,
    GROUP,
    KINDS,
    LATER,
    PARAMETERS,
    POLICY_NAME,
    PROVIDER_NAMESPACE,
    VERSION,
    Component,
    KindEntry,
    Metadata,
    Resource,
    ResourceObject,
)
from provider.configuration.sections import (
    NAMESPACE_NAME,
    OBJECT_NAME,
    Flaw,
    Section,
    SectionT,
    Surroundings,
    describe,
    inspect,
    join,
    quote,
    step,
    suggest,
)
from provider.errors import Fault, printable
from provider.verifiers.notation import ARTIFACT_TYPE as NOTATION_ARTIFACT_TYPE

MAX_LIST_ITEMS: Final = 10_000  # of one document of kind List
ANY_TYPE: Final = "*"

_MAX_GROUP: Final = 253  # characters, as Kubernetes allows
_TYPE_PART: Final = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838 section 4.2
_ARTIFACT_TYPE: Final = re.compile(f"{_TYPE_PART}/{_TYPE_PART}")

Identity = tuple[Component, str, str]  # component, namespace, name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document was found.

    Attributes:
        source: for faults: file and document, or the cluster's object.
        folder: the file's folder, where relative paths begin; None when there is none.
    """

    source: str
    folder: Path | None = None


@dataclass(slots=True)
class Findings:
    """What was found wrong or odd so far.

    Attributes:
        faults: each forbids the whole set.
        warnings: each is to be told, no more.
        broken: resources that have a fault; that they are missing from the set is no further fault.
    """

    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    broken: set[Identity] = field(default_factory=set)


def read_document(
    value: Any, place: Place, findings: Findings, *, home: str = PROVIDER_NAMESPACE
) -> tuple[Resource, ...]:
    """Read one document: a resource, or a List of resources as `kubectl get -o yaml` prints them.

    Args:
        value: the document, untrusted.
        place: where it was found.
        findings: takes what is wrong or odd.
        home: the provider's own namespace, for a CertificateStore that names none.

    Returns:
        The resources that have no fault; none for a document that is not ours. Nothing is raised.
    """
    if isinstance(value, dict) and (value.get("apiVersion"), value.get("kind")) == ("v1", "List"):
        items = value.get("items")
        if not isinstance(items, list) or len(items) > MAX_LIST_ITEMS:
            message = f"must be a list of at most {MAX_LIST_ITEMS} resources, found {describe(items)}"
            findings.faults.append(Fault(place.source, "", "items", message))
            return ()
        readers = [_Reader(item, place, findings, home, f"items{step(index)}") for index, item in enumerate(items)]
    else:
        readers = [_Reader(value, place, findings, home, "")]
    return tuple(resource for reader in readers for resource in reader.read())


class _Reader:
    """Reads one object."""

    def __init__(self, value: Any, place: Place, findings: Findings, home: str, root: str) -> None:
        self._value = value
        self._place = place
        self._findings = findings
        self._home = home
        self._root = root
        self._label = ""
        self._tenant = ""  # the namespace, when the resource belongs to one that is not the provider's own
        self._sound = True

    def read(self) -> Iterator[Resource]:
        entry = self._entry()
        if entry is None:
            return
        kind: str = self._value["kind"]
        self._examine(ResourceObject, self._value, "")
        name, namespace = self._metadata(kind, entry)
        resource = self._resource(kind, entry, name, namespace)
        if resource is not None and self._sound:
            yield resource
        else:
            self._findings.broken.add((entry.component, namespace, name))

    # -- what it is -----------------------------------------------------------------------------------------------

    def _entry(self) -> KindEntry | None:
        """The kind's entry, or None when the object is not ours or does not say what it is."""
        if not isinstance(self._value, dict):
            self._fault("", f"must be a mapping with apiVersion and kind, found {describe(self._value)}")
            return None
        texts = {key: self._value.get(key) for key in ("apiVersion", "kind")}
        for key, text in texts.items():
            if not isinstance(text, str) or not text:
                self._fault(key, "is required" if text is None else f"must be text, found {describe(text)}")
        if not self._sound:
            return None
        group, _, version = str(texts["apiVersion"]).rpartition("/")
        kind = str(texts["kind"])
        self._label = printable(kind)
        if group != GROUP:
            self._foreign(group, kind)
            return None
        if kind not in KINDS:
            self._fault("kind", f"{quote(kind)} is no kind of {GROUP}{suggest(kind, KINDS)}")
            self._break_all()
            return None
        self._version(version, KINDS[kind])
        return KINDS[kind]

    def _foreign(self, group: str, kind: str) -> None:
        if len(group) <= _MAX_GROUP and difflib.SequenceMatcher(None, group, GROUP).ratio() > 0.8:
            self._fault("apiVersion", f"must be {GROUP}/{VERSION}, found group {quote(group)}")
            self._break_all()
        elif group.startswith("config.ratify."):
            self._warn("", f"is ignored: resources of {group} are Ratify v2's, this is the place of {GROUP}/{VERSION}")
        else:
            known = f", although {kind} is a kind of {GROUP}" if kind in KINDS else ""
            self._warn("", f"is ignored: it is of group {printable(group) or 'core'}{known}")

    def _break_all(self) -> None:
        """It may have been anything: that something is missing may be because of it."""
        self._findings.broken.update((component, "", "") for component in Component)

    def _version(self, version: str, entry: KindEntry) -> None:
        if version == FORMER_VERSION and entry.former_version:
            self._warn("apiVersion", f"{FORMER_VERSION} is deprecated: write {GROUP}/{VERSION}")
        elif version != VERSION:
            self._fault("apiVersion", f"must be {GROUP}/{VERSION}, found version {quote(version)}")

    # -- whose it is ----------------------------------------------------------------------------------------------

    def _metadata(self, kind: str, entry: KindEntry) -> tuple[str, str]:
        """Name and namespace, as good as they can be had."""
        raw = self._value.get("metadata")
        if not isinstance(raw, dict):
            return "", ""  # a fault already
        metadata = self._examine(Metadata, raw, "metadata")
        name, namespace = (str(raw[key]) if isinstance(raw.get(key), str) else "" for key in ("name", "namespace"))
        self._label = printable("/".join(part for part in (kind, entry.namespaced and namespace, name) if part))
        if metadata is None:
            return name, namespace if entry.namespaced else ""
        if entry.component is Component.POLICY and name != POLICY_NAME:
            self._fault("metadata.name", f"must be {POLICY_NAME}, found {quote(name)}: no other Policy is evaluated")
        elif OBJECT_NAME.fullmatch(name) is None:
            self._fault("metadata.name", f"must be a Kubernetes name (a-z, 0-9, '-', '.'), found {quote(name)}")
        return name, self._namespace(kind, entry, namespace)

    def _namespace(self, kind: str, entry: KindEntry, namespace: str) -> str:
        if not entry.namespaced:
            if namespace:
                self._warn("metadata.namespace", f"has no effect: a {kind} is cluster-wide, a Namespaced{kind} is not")
            return ""
        if not namespace and kind == CERTIFICATE_STORE:
            return self._home
        if not namespace:
            self._fault("metadata.namespace", f"is required: a {kind} decides for one namespace")
        elif NAMESPACE_NAME.fullmatch(namespace) is None:
            self._fault("metadata.namespace", f"must be a Kubernetes namespace, found {quote(namespace)}")
        return namespace

    # -- what it says ---------------------------------------------------------------------------------------------

    def _resource(self, kind: str, entry: KindEntry, name: str, namespace: str) -> Resource | None:
        raw = self._value.get("spec")
        if not isinstance(raw, dict):
            return None  # a fault already
        self._tenant = "" if kind == CERTIFICATE_STORE and namespace == self._home else namespace
        self._examine(entry.spec, raw, "spec")
        key, type_name = _type_of(kind, raw)
        parameters = self._parameters(kind, entry.component, raw.get("parameters"), f"spec.{key}", type_name)
        self._plugin_fields(raw)
        if kind == CERTIFICATE_STORE:
            advice = "make it a KeyManagementProvider with the same type and contentType: certificate"
            self._warn("", f"CertificateStore is deprecated: {advice}")
        artifact_types = self._artifact_types(raw) if entry.component is Component.VERIFIER else frozenset[str]()
        refresh = self._refresh_interval(raw) if entry.component is Component.KEY_PROVIDER else None
        if parameters is None:
            return None
        return Resource(
            kind=kind,
            component=entry.component,
            namespace=namespace,
            name=name,
            source=self._place.source,
            type=_canonical_type(entry.component, type_name),
            parameters=parameters,
            artifact_types=artifact_types,
            refresh_seconds=refresh,
        )

    def _parameters(self, kind: str, component: Component, raw: Any, path: str, type_name: str) -> Section | None:
        value = {} if raw is None else raw
        if not type_name or not isinstance(value, dict):
            return None  # a fault already
        model = PARAMETERS.get((component, _canonical_type(component, type_name)))
        if model is None:
            self._fault(path, _unsupported(component, type_name))
            return None
        if kind == CERTIFICATE_STORE and type_name == "inline":
            value = {"contentType": "certificate", **value}  # it knew no other
        parameters = self._examine(model, value, "spec.parameters")
        for oddity in parameters.oddities() if parameters is not None else ():
            self._warn(join("spec.parameters", oddity.path), oddity.message)
        return parameters

    def _plugin_fields(self, raw: dict[str, Any]) -> None:
        source = raw.get("source")
        artifact = source.get("artifact") if isinstance(source, dict) else None
        address = raw.get("address")
        if artifact:
            self._fault("spec.source.artifact", "plugins are not downloaded: remove it or the resource")
        elif source:
            self._warn("spec.source", "has no effect: plugins are not downloaded")
        if isinstance(address, str) and "://" in address:
            self._fault("spec.address", "plugins are not run: remove it or the resource")
        elif address:
            self._warn("spec.address", "has no effect: plugins are not run")
        if raw.get("version"):
            self._warn("spec.version", "has no effect: plugins are not run")

    def _artifact_types(self, raw: dict[str, Any]) -> frozenset[str]:
        text = raw.get("artifactTypes")
        if not isinstance(text, str) or not text:
            return frozenset()  # a fault already
        types = frozenset(part.strip() for part in text.split(","))
        wrong = sorted(kind for kind in types if kind != ANY_TYPE and _ARTIFACT_TYPE.fullmatch(kind) is None)
        for kind in wrong:
            self._fault("spec.artifactTypes", f"must be artifact types, separated by commas, or *; found {quote(kind)}")
        if ANY_TYPE in types:
            return frozenset({ANY_TYPE})
        if not wrong and _type_of("", raw)[1] == "notation" and NOTATION_ARTIFACT_TYPE not in types:
            self._warn("spec.artifactTypes", f"lacks {NOTATION_ARTIFACT_TYPE}: no signature will be verified")
        return types

    def _refresh_interval(self, raw: dict[str, Any]) -> float | None:
        text = raw.get("refreshInterval")
        if not isinstance(text, str) or not text:
            return None
        try:
            return parse_duration(text)
        except ValueError as error:
            self._fault("spec.refreshInterval", str(error))
            return None

    # -- telling --------------------------------------------------------------------------------------------------

    def _examine(self, model: type[SectionT], value: Any, path: str) -> SectionT | None:
        section, flaws = inspect(model, value, Surroundings(self._place.folder, self._tenant))
        self._tell(path, flaws)
        return section

    def _tell(self, path: str, flaws: list[Flaw]) -> None:
        for one in flaws:
            self._fault(join(path, one.path), one.message)

    def _fault(self, path: str, message: str) -> None:
        self._sound = False
        self._findings.faults.append(Fault(self._place.source, self._label, join(self._root, path), message))

    def _warn(self, path: str, message: str) -> None:
        self._findings.warnings.append(Fault(self._place.source, self._label, join(self._root, path), message))


def _type_of(kind: str, raw: dict[str, Any]) -> tuple[str, str]:
    """The key that says the type, and the type; empty when that is missing or no text, which is a fault already."""
    keys = ("provider",) if kind == CERTIFICATE_STORE else ("type", "name")
    for key in keys:
        if isinstance(raw.get(key), str) and raw[key]:
            return key, raw[key]
    return keys[-1], ""


def _canonical_type(component: Component, type_name: str) -> str:
    """A type as the tables spell it. Policies are named loosely in Ratify: `config-policy`, `configPolicy`."""
    if component is not Component.POLICY:
        return type_name
    known = (name for of, name in (*PARAMETERS, *LATER) if of is component)
    return next((name for name in known if _folded(name) == _folded(type_name)), type_name)


def _folded(type_name: str) -> str:
    return type_name.lower().replace("-", "")


def _unsupported(component: Component, type_name: str) -> str:
    later = LATER.get((component, _canonical_type(component, type_name)))
    supported = ", ".join(sorted(name for of, name in PARAMETERS if of is component))
    if later is not None:
        return f"{quote(type_name)} {later} (supported: {supported})"
    plugins = ", and plugins are not run" if component in (Component.STORE, Component.VERIFIER) else ""
    return f"{quote(type_name)} is not supported by this version{plugins} (supported: {supported})"
