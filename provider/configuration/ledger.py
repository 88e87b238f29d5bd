"""The objects of a cluster and the set of resources that they make: of each object the last version that was good.

    put(object), forget(key) -> propose() -> a set, to be tried -> accept(it), or refuse(it, why) -> propose() ...

Rules:
- A version of an object is bad when it cannot be read, when it contradicts the others (consistency.py), or when the
  assembly refuses it. Then the object's last version that was in use stays in force, and the changes of other objects
  go on (attack N65). A deleted object is gone, and with it what it vouched for.
- An object that never was good has a place in the set that denies what depends on it (resources.Unusable), and so has a
  key provider that a Verifier names and that does not exist.
- A change of a key provider that is right by itself counts, even if it leaves a trust store of a Verifier without
  certificates: trust that was taken away must not live on.
- What is said of an object depends on the objects as they are now, never on what this process saw before: the replicas
  of the provider write the same status.
- A pure function of what was put in: no network, no clock, and a log line only for what nobody foresaw.

What does not belong here: the Kubernetes API (cluster.py), what a document means (documents.py), status (statuses.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from provider.configuration.consistency import STORES_PATH, check_set
from provider.configuration.documents import Findings, Place, read_document
from provider.configuration.resources import (
    CERTIFICATE_STORE,
    GROUP,
    KINDS,
    PROVIDER_NAMESPACE,
    VERSION,
    Component,
    Resource,
    ResourceSet,
    Unusable,
    assemble_set,
)
from provider.configuration.verifiers import NotationParameters
from provider.errors import ConfigurationError, Fault

MAX_OBJECT_BYTES: Final = 1024 * 1024  # of one object without its metadata and status; etcd takes some 1.5 MiB
MAX_TOLD: Final = 100  # faults and warnings that are kept of one object, and of one set; nobody reads more
MAX_REASON: Final = 300  # characters of a stand-in's reason

_log = structlog.get_logger(__name__)

Key = tuple[str, str, str]  # kind, namespace (empty for one of the whole cluster), name


def label_of(key: Key) -> str:
    """`kind/name`, or `kind/namespace/name`, as Resource.label."""
    return "/".join(part for part in key if part)


def generation_of(value: Mapping[str, Any]) -> int:
    """An object's metadata.generation, 0 when it has none."""
    generation = value["metadata"].get("generation")
    return generation if isinstance(generation, int) else 0


@dataclass(frozen=True, slots=True)
class Reading:
    """One version of an object, as it was read.

    Attributes:
        fingerprint: SHA-256 of all that counts of it, in hex.
        resource: the resource, None when it has a fault.
        faults: what is wrong with it by itself.
        warnings: what is odd.
        artifact_types: what a Verifier judges; empty when that cannot be read.
    """

    fingerprint: str
    resource: Resource | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    artifact_types: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Record:
    """An object: its newest version, and the last one that was in use."""

    uid: str
    generation: int
    newest: Reading
    good: Reading | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A set of resources, and what there is to say of the objects that it was made from.

    Attributes:
        resources: the set; its digest says what is in force.
        faults: what is wrong with the newest version of each object, nothing when it is good.
        missing: what the set lacks to decide anything at all; empty when it can.
        newest: the newest version of each object, where that can be read.
        generations: the metadata.generation of the newest version of each object.
        chosen: the version of each object that is in the set, with the object's uid; for `accept` and `refuse`.
    """

    resources: ResourceSet
    faults: Mapping[Key, tuple[Fault, ...]]
    missing: tuple[Fault, ...]
    newest: Mapping[Key, Resource]
    generations: Mapping[Key, int]
    chosen: Mapping[Key, tuple[str, Reading | None]] = field(repr=False)

    @property
    def error(self) -> ConfigurationError | None:
        """All that is wrong, for the log."""
        faults = [*self.missing, *(fault for faults in self.faults.values() for fault in faults)]
        if not faults:
            return None
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return ConfigurationError("CONFIG_INVALID", f"{faults[0]}{more}", faults=faults[:MAX_TOLD])


class Ledger:
    """Keeps the objects.

    Args:
        home: the provider's own namespace.
    """

    def __init__(self, home: str = PROVIDER_NAMESPACE) -> None:
        self._home = home
        self._records: dict[Key, _Record] = {}
        self._refused: dict[tuple[Key, str], tuple[Fault, ...]] = {}  # by object and fingerprint
        self._reconsidering = False  # what was refused is tried again, and has its faults until that succeeds

    def put(self, key: Key, value: Mapping[str, Any]) -> bool:
        """Take an object as it is now.

        Args:
            key: whose kind is one of KINDS.
            value: the object, untrusted apart from its kind, namespace, name and uid.

        Returns:
            Whether there may be something new to say: not when only metadata or status changed.
        """
        document, fingerprint = _essence(key, value)
        uid, generation = str(value["metadata"].get("uid", "")), generation_of(value)
        record = self._records.get(key)
        if record is None or record.uid != uid:  # another object of that name was deleted: what it was counts no more
            self.forget(key)
            self._records[key] = _Record(uid, generation, _read(key, document, fingerprint, self._home))
            return True
        changed = (record.generation, record.newest.fingerprint) != (generation, fingerprint)
        record.generation = generation
        if record.newest.fingerprint != fingerprint:
            record.newest = _read(key, document, fingerprint, self._home)
        return changed

    def forget(self, key: Key) -> bool:
        """An object was deleted. Returns whether it was known."""
        known = self._records.pop(key, None) is not None
        for refused in [one for one in self._refused if one[0] == key]:
            del self._refused[refused]
        return known

    def keys(self, kind: str) -> frozenset[Key]:
        """The objects of a kind."""
        return frozenset(key for key in self._records if key[0] == kind)

    # -- proposing ------------------------------------------------------------------------------------------------

    def propose(self) -> Proposal:
        """The set that the objects make now, and what is wrong with them."""
        newest = {key: record.newest for key, record in self._records.items()}
        written = {key: self._resource(key, self._usable(key, reading)) for key, reading in newest.items()}
        contradictions, _ = self._check(written.values())
        faults = {key: self._faults(key, newest[key]) or contradictions.get(label_of(key), ()) for key in newest}

        chosen = {key: self._prefer(key, contradicts=bool(contradictions.get(label_of(key)))) for key in newest}
        contradictions, _ = self._check(self._resource(*one) for one in chosen.items())
        for key, reading in chosen.items():
            if reading is newest[key] and contradictions.get(label_of(key)):
                chosen[key] = self._prefer(key, contradicts=True)
        contradictions, warnings = self._check(self._resource(*one) for one in chosen.items())
        for key in chosen:
            # What a Verifier lacks of key providers denies where it is needed; anything else makes it unusable.
            if any(not fault.path.startswith(STORES_PATH) for fault in contradictions.get(label_of(key), ())):
                chosen[key] = None

        resources = [self._resource(*one) for one in chosen.items()]
        resources += _absent(assemble_set(resources, home=self._home))
        told = [warning for reading in chosen.values() if reading for warning in reading.warnings]
        return Proposal(
            resources=assemble_set(
                resources,
                home=self._home,
                warnings=[*told, *warnings][:MAX_TOLD],
                digest=_digest(resources, chosen),
                may_be_incomplete=True,
            ),
            faults=faults,
            missing=self._missing(resources),
            newest={key: reading.resource for key, reading in newest.items() if reading.resource is not None},
            generations={key: record.generation for key, record in self._records.items()},
            chosen={key: (self._records[key].uid, reading) for key, reading in chosen.items()},
        )

    def accept(self, proposal: Proposal) -> bool:
        """The set is in use: what is in it is good.

        Returns:
            Whether something in it was refused before, so that there are fewer faults now.
        """
        healed = False
        for key, (uid, reading) in proposal.chosen.items():
            record = self._records.get(key)
            if record is not None and record.uid == uid and reading is not None:
                record.good = reading
                healed |= self._refused.pop((key, reading.fingerprint), None) is not None
        self._reconsidering = False
        return healed

    def refuse(self, proposal: Proposal, error: ConfigurationError) -> bool:
        """The set cannot be used: the versions that the faults name are bad.

        Returns:
            Whether any was named, so that the next proposal differs.
        """
        by_label: dict[str, list[Fault]] = {}
        for fault in error.faults:
            by_label.setdefault(fault.resource, []).append(fault)
        self._reconsidering = blamed = False
        for key, (_, reading) in proposal.chosen.items():
            faults = by_label.get(label_of(key))
            if faults and reading is not None:
                self._refused[key, reading.fingerprint] = tuple(faults[:MAX_TOLD])
                blamed = True
        return blamed

    def reconsider(self) -> None:
        """Propose again what was refused: what it lacked may be there now."""
        self._reconsidering = True

    # -- versions -------------------------------------------------------------------------------------------------

    def _faults(self, key: Key, reading: Reading) -> tuple[Fault, ...]:
        return reading.faults or self._refused.get((key, reading.fingerprint), ())

    def _usable(self, key: Key, reading: Reading | None) -> Reading | None:
        if reading is None or reading.faults:
            return None
        return reading if self._reconsidering or (key, reading.fingerprint) not in self._refused else None

    def _prefer(self, key: Key, *, contradicts: bool) -> Reading | None:
        """The version to use: the newest, unless it is bad or contradicts the others and there is a former good one."""
        record = self._records[key]
        newest, good = self._usable(key, record.newest), self._usable(key, record.good)
        return (good or newest) if contradicts else (newest or good)

    def _resource(self, key: Key, reading: Reading | None) -> Resource:
        if reading is not None and reading.resource is not None:
            return reading.resource
        newest = self._records[key].newest
        why = self._faults(key, newest)
        reason = f"{why[0].path}: {why[0].message}" if why else "it contradicts the trust policy or other resources"
        return _stand_in(key, f"{label_of(key)} cannot be used: {reason}", newest.artifact_types)

    def _check(self, resources: Iterable[Resource]) -> tuple[dict[str, tuple[Fault, ...]], list[Fault]]:
        """What resources say of each other: faults by label, and warnings."""
        findings = Findings()
        check_set(assemble_set(resources, home=self._home), findings)
        by_label: dict[str, tuple[Fault, ...]] = {}
        for fault in findings.faults:
            by_label[fault.resource] = (*by_label.get(fault.resource, ()), fault)[:MAX_TOLD]
        return by_label, findings.warnings

    def _missing(self, resources: Iterable[Resource]) -> tuple[Fault, ...]:
        """What no scope has of what can be used."""
        faults, _ = self._check(resource for resource in resources if resource.is_usable)
        return faults.get("", ())


def _essence(key: Key, value: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What counts of an object, and its fingerprint: neither status nor anything of its metadata but the names."""
    kind, namespace, name = key
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    document = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": metadata}
    document |= {part: content for part, content in value.items() if part not in (*document, "status")}
    return document, hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _read(key: Key, document: dict[str, Any], fingerprint: str, home: str) -> Reading:
    label = label_of(key)
    if len(json.dumps(document)) > MAX_OBJECT_BYTES:
        return Reading(fingerprint, None, (Fault(label, label, "", f"has more than {MAX_OBJECT_BYTES} bytes"),))
    findings = Findings()
    try:
        resources = read_document(document, Place(label), findings, home=home)
    except Exception:  # noqa: BLE001 - an object that nobody foresaw must not end the process, which decides for all
        _log.exception("reading a resource failed unexpectedly", resource=label)
        return Reading(fingerprint, None, (Fault(label, label, "", "cannot be read; the log says why"),))
    return Reading(
        fingerprint,
        resources[0] if resources else None,
        tuple(findings.faults[:MAX_TOLD]),
        tuple(findings.warnings[:MAX_TOLD]),
        _artifact_types(document.get("spec")),
    )


def _artifact_types(spec: Any) -> frozenset[str]:
    text = spec.get("artifactTypes") if isinstance(spec, dict) else None
    return frozenset(part.strip() for part in text.split(",")) - {""} if isinstance(text, str) else frozenset()


def _stand_in(key: Key, reason: str, artifact_types: frozenset[str] = frozenset()) -> Resource:
    kind, namespace, name = key
    if len(reason) > MAX_REASON:
        reason = f"{reason[: MAX_REASON - 1]}…"
    return Resource(
        kind=kind,
        component=KINDS[kind].component,
        namespace=namespace,
        name=name,
        source=label_of(key),
        type="",
        parameters=Unusable(reason=reason),
        artifact_types=artifact_types,
    )


def _absent(resources: ResourceSet) -> Iterator[Resource]:
    """Stand-ins for the key providers that Verifiers name and that are not there."""
    absent: dict[Key, Resource] = {}
    for verifier in resources.verifiers:
        if not isinstance(verifier.parameters, NotationParameters):
            continue
        for entry in verifier.parameters.verification_cert_stores.values():
            for reference in entry.references:
                if resources.find_key_provider(reference, verifier.namespace) is None:
                    key = _meant(reference, verifier.namespace)
                    reason = f"{label_of(key)} does not exist, and {verifier.label} needs it"
                    absent.setdefault(key, _stand_in(key, reason))
    known = {resource.label for resource in resources}
    return (stand_in for stand_in in absent.values() if stand_in.label not in known)


def _meant(reference: str, namespace: str) -> Key:
    """The object that a Verifier of a namespace would find by this reference."""
    home, _, name = reference.rpartition("/")
    if not home:
        return (Component.KEY_PROVIDER.value, "", name)
    return ("NamespacedKeyManagementProvider" if home == namespace else CERTIFICATE_STORE, home, name)


def _digest(resources: Sequence[Resource], chosen: Mapping[Key, Reading | None]) -> str:
    """Says what is in force: equal for equal content."""
    fingerprints = {label_of(key): reading.fingerprint for key, reading in chosen.items() if reading is not None}
    lines = [
        f"{resource.label} {fingerprints.get(resource.label) or getattr(resource.parameters, 'reason', '')}"
        for resource in resources
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
