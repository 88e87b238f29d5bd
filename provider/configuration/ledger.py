"""The objects of a cluster and the set of resources that they make: of each object the last version that was good.

    put(object), forget(key) -> propose() -> a set, to be tried -> accept(it), or refuse(it, why) -> propose() ...

Rules:
- A version of an object is bad when it cannot be read, when it contradicts the others (consistency.py), or when the
  assembly refuses it. Then the object's last version that was in use stays in force, and the changes of other objects
  go on (attack N65). A deleted object is gone, and with it what it vouched for.
- An object that never was good has a place in the set that denies what depends on it (resources.Unusable).
- What was good is known to this process alone: after its start, an object whose newest version is bad never was good.
- A Verifier whose key provider was deleted stays as it is, and what it needs of it is denied (RESOURCE_UNUSABLE). That
  differs from manifests, whose set is refused as a whole while the last good one stays, and it is meant to: who deletes
  an object of a cluster takes away what it vouched for, while a folder may be half copied.
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from provider.configuration.consistency import STORES_PATH, check_completeness, check_set
from provider.configuration.documents import Findings, Place, read_document
from provider.configuration.resources import (
    GROUP,
    KINDS,
    PROVIDER_NAMESPACE,
    VERSION,
    Resource,
    ResourceSet,
    Unusable,
    assemble_set,
)
from provider.errors import ConfigurationError, Fault

MAX_OBJECT_BYTES: Final = 1024 * 1024  # of one object without its metadata and status; etcd takes some 1.5 MiB
MAX_TENANT_BYTES: Final = 128 * 1024  # of one of a tenant: reading it takes time that the whole cluster waits for
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


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One version of an object, as it was read. Each is equal to itself only.

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
    """An object.

    Attributes:
        uid: the object's own, that another of its name does not have.
        generation: metadata.generation of the newest version.
        newest: the newest version.
        good: the last version that was in use.
        refused: by fingerprint, the faults of those of the two that the assembly refused.
    """

    uid: str
    generation: int
    newest: Reading
    good: Reading | None = None
    refused: dict[str, tuple[Fault, ...]] = field(default_factory=dict)

    def take(self, reading: Reading) -> None:
        """There is a newer version."""
        self.newest = reading
        kept = {one.fingerprint for one in (self.newest, self.good) if one is not None}
        self.refused = {fingerprint: faults for fingerprint, faults in self.refused.items() if fingerprint in kept}


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
        self._reconsidering = False  # what was refused is tried again, and has its faults until that succeeds

    def put(self, key: Key, value: Mapping[str, Any]) -> bool:
        """Take an object as it is now.

        Args:
            key: whose kind is one of KINDS.
            value: the object, untrusted apart from its kind, namespace, name and uid.

        Returns:
            Whether there may be something new to say: not when only metadata or status changed.
        """
        essence = _essence(key, value)
        fingerprint = hashlib.sha256(essence).hexdigest()
        uid, generation = str(value["metadata"].get("uid", "")), generation_of(value)
        record = self._records.get(key)
        if record is None or record.uid != uid:  # another object of that name was deleted: what it was counts no more
            self._records[key] = _Record(uid, generation, _read(key, essence, fingerprint, self._home))
            return True
        changed = (record.generation, record.newest.fingerprint) != (generation, fingerprint)
        record.generation = generation
        if record.newest.fingerprint != fingerprint:
            record.take(_read(key, essence, fingerprint, self._home))
        return changed

    def forget(self, key: Key) -> bool:
        """An object was deleted. Returns whether it was known."""
        return self._records.pop(key, None) is not None

    # -- proposing ------------------------------------------------------------------------------------------------

    def propose(self) -> Proposal:
        """The set that the objects make now, and what is wrong with them."""
        newest = {key: record.newest for key, record in self._records.items()}
        written = self._check({key: self._usable(key, reading) for key, reading in newest.items()})
        faults = {key: self._faults(key, newest[key]) or written.faults.get(label_of(key), ()) for key in newest}

        chosen = {key: self._prefer(key, contradicts=label_of(key) in written.faults) for key in newest}
        found = self._check(chosen, written)
        for key, reading in chosen.items():
            if reading is newest[key] and label_of(key) in found.faults:
                chosen[key] = self._prefer(key, contradicts=True)
        found = self._check(chosen, found)
        for key in chosen:
            # What a Verifier lacks of key providers denies where it is needed; anything else makes it unusable.
            if any(not fault.path.startswith(STORES_PATH) for fault in found.faults.get(label_of(key), ())):
                chosen[key] = None

        resources = [self._resource(key, reading, faults[key]) for key, reading in chosen.items()]
        told = [warning for reading in chosen.values() if reading for warning in reading.warnings]
        return Proposal(
            resources=assemble_set(
                resources,
                home=self._home,
                warnings=[*told, *found.warnings][:MAX_TOLD],
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
                healed |= record.refused.pop(reading.fingerprint, None) is not None
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
        for key, (uid, reading) in proposal.chosen.items():
            faults = by_label.get(label_of(key))
            if not faults or reading is None:
                continue
            blamed = True
            record = self._records.get(key)
            if record is not None and record.uid == uid:
                record.refused[reading.fingerprint] = tuple(faults[:MAX_TOLD])
        return blamed

    def reconsider(self) -> None:
        """Propose again what was refused: what it lacked may be there now."""
        self._reconsidering = True

    # -- versions -------------------------------------------------------------------------------------------------

    def _faults(self, key: Key, reading: Reading) -> tuple[Fault, ...]:
        return reading.faults or self._records[key].refused.get(reading.fingerprint, ())

    def _usable(self, key: Key, reading: Reading | None) -> Reading | None:
        if reading is None or reading.faults:
            return None
        return reading if self._reconsidering or reading.fingerprint not in self._records[key].refused else None

    def _prefer(self, key: Key, *, contradicts: bool) -> Reading | None:
        """The version to use: the newest, unless it is bad or contradicts the others and there is a former good one."""
        record = self._records[key]
        newest, good = self._usable(key, record.newest), self._usable(key, record.good)
        return (good or newest) if contradicts else (newest or good)

    def _resource(self, key: Key, reading: Reading | None, faults: Sequence[Fault] = ()) -> Resource:
        """The resource of a version, or a stand-in that says what is wrong with the newest."""
        if reading is not None and reading.resource is not None:
            return reading.resource
        told = ": ".join(part for fault in faults[:1] for part in (fault.path, fault.message) if part)
        reason = f"{label_of(key)} cannot be used: {told or 'it has a fault'}"
        return _stand_in(key, reason, self._records[key].newest.artifact_types)

    # -- what they say of each other ------------------------------------------------------------------------------

    def _check(self, chosen: Mapping[Key, Reading | None], earlier: _Contradictions | None = None) -> _Contradictions:
        """What these versions say of each other.

        Args:
            chosen: the versions; stand-ins for None.
            earlier: the outcome for others, that holds if they are the same.
        """
        if earlier is not None and earlier.chosen == chosen:
            return earlier
        findings = Findings()
        check_set(assemble_set((self._resource(*one) for one in chosen.items()), home=self._home), findings)
        by_label: dict[str, list[Fault]] = {}
        for fault in findings.faults:
            by_label.setdefault(fault.resource, []).append(fault)
        faults = {label: tuple(those[:MAX_TOLD]) for label, those in by_label.items()}
        return _Contradictions(dict(chosen), faults, findings.warnings)

    def _missing(self, resources: Iterable[Resource]) -> tuple[Fault, ...]:
        """What no scope has of what can be used."""
        findings = Findings()
        usable = (resource for resource in resources if resource.is_usable)
        check_completeness(assemble_set(usable, home=self._home), findings)
        return tuple(findings.faults)


@dataclass(frozen=True, slots=True)
class _Contradictions:
    """What versions of objects say of each other: faults by label, and warnings."""

    chosen: Mapping[Key, Reading | None]
    faults: Mapping[str, tuple[Fault, ...]]
    warnings: Sequence[Fault]


def _essence(key: Key, value: Mapping[str, Any]) -> bytes:
    """What counts of an object, as JSON: neither status nor anything of its metadata but the names."""
    kind, namespace, name = key
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    document = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": metadata}
    document |= {part: content for part, content in value.items() if part not in (*document, "status")}
    return json.dumps(document, sort_keys=True).encode()


def _read(key: Key, essence: bytes, fingerprint: str, home: str) -> Reading:
    label = label_of(key)
    limit = MAX_OBJECT_BYTES if key[1] in ("", home) else MAX_TENANT_BYTES
    if len(essence) > limit:
        return Reading(fingerprint, None, (Fault(label, label, "", f"has more than {limit} bytes"),))
    findings = Findings()
    document = json.loads(essence)
    resources: tuple[Resource, ...] = ()
    try:
        resources = read_document(document, Place(label), findings, home=home)
    except Exception:  # noqa: BLE001 - an object that nobody foresaw must not end the process, which decides for all
        _log.exception("reading a resource failed unexpectedly", resource=label)
    if not resources and not findings.faults:
        findings.faults.append(Fault(label, label, "", "cannot be read; the log says why"))
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


def _stand_in(key: Key, reason: str, artifact_types: frozenset[str]) -> Resource:
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


def _digest(resources: Sequence[Resource], chosen: Mapping[Key, Reading | None]) -> str:
    """Says what is in force: equal for equal content."""
    fingerprints = {label_of(key): reading.fingerprint for key, reading in chosen.items() if reading is not None}
    lines = []
    for resource in resources:
        if isinstance(resource.parameters, Unusable):
            what = [resource.parameters.reason, *sorted(resource.artifact_types)]
        else:
            what = [fingerprints[resource.label]]
        lines.append(json.dumps([resource.label, *what]))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
