"""The status of the custom resources: what it says, and how it gets there.

    issuccess, error, brieferror, observedGeneration        all kinds
    lastfetchedtime, properties                             KeyManagementProvider and its kin

Rules:
- A status says whether the newest version of an object is good, and if not, every fault with its key path. While a
  former version stays in force, `properties` are left as they are: they tell of that one.
- Several replicas write the same status, so they must not fight. Its content depends on the cluster's objects alone and
  names no replica; the time is written with a change and never changed alone; a write carries the resourceVersion that
  it was decided on, so that of two one fails and finds nothing left to do. Where replicas do see different things, such
  as a key service that one of them cannot reach, each writes only when what it sees has changed, and all again after a
  while.
- Writing is no part of deciding: what goes wrong here is logged and changes nothing else.

RBAC needed: `patch` on the `/status` of each kind.

What does not belong here: what is wrong with an object (ledger.py), the list and watch (cluster.py).
Source: Ratify v1.4 custom resource definitions; observedGeneration is ours, after the Kubernetes API conventions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, NoReturn

import httpx2
import msgspec
import structlog
from lightkube import AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.types import PatchType

from provider.configuration.key_providers import InlineParameters
from provider.configuration.ledger import Key, Proposal, generation_of, label_of
from provider.configuration.resources import GROUP, KINDS, VERSION, Component, Resource
from provider.errors import CountersignError, Fault, printable
from provider.interfaces import KeyManagementProvider

MAX_ERROR: Final = 4096  # characters of `error`
MAX_BRIEF_ERROR: Final = 100  # characters of `brieferror`, as in Ratify: it is a column of kubectl get
LOOK_SECONDS: Final = 5.0  # between two looks at the material of key providers
JITTER_SECONDS: Final = 0.25  # so that replicas do not write at the same moment
RESYNC_SECONDS: Final = 600.0  # after this, what others have written is looked at again
FIELD_MANAGER: Final = "countersign"

_log = structlog.get_logger(__name__)

Status = Mapping[str, Any]

# What can go wrong with a request: no connection, no HTTP, a bad status, and lightkube's reading of strange answers.
_PROBLEMS: Final = (
    *(httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, msgspec.MsgspecError, ConfigError),
    *(OSError, ValueError, KeyError, AttributeError, RecursionError),
)

_PASSING: Final = frozenset({401, 408, 429})  # a token that expires, a server that is busy

_CREATE: Final = {True: create_namespaced_resource, False: create_global_resource}
_CLASSES: Final[Mapping[str, Any]] = {
    kind: _CREATE[entry.namespaced](GROUP, VERSION, kind, entry.plural) for kind, entry in KINDS.items()
}


class Observed(NamedTuple):
    """What the API server last told of an object.

    Attributes:
        uid: the object's own, that another of its name does not have.
        resource_version: its version, status included.
        generation: the version of its spec.
        status: its status.
    """

    uid: str
    resource_version: str
    generation: int
    status: Status

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Observed:
        """Read an object's metadata and status."""
        metadata, status = value["metadata"], value.get("status")
        return cls(
            str(metadata.get("uid", "")),
            str(metadata.get("resourceVersion", "")),
            generation_of(value),
            status if isinstance(status, dict) else {},
        )


def status_of(faults: Iterable[Fault], generation: int, properties: Status | None = None) -> Status:
    """What the status of an object is to say, without the time. A pure function.

    Args:
        faults: what is wrong with the object.
        generation: of the version that has the faults.
        properties: of a key provider that is good; None for other kinds, and to leave them as they are.
    """
    messages = [": ".join(part for part in (fault.path, fault.message) if part) for fault in faults]
    status: dict[str, Any] = {"issuccess": not messages, "observedGeneration": generation}
    if messages:
        status |= {"error": printable("; ".join(messages), MAX_ERROR), "brieferror": _brief(messages)}
    else:
        status |= {"error": None, "brieferror": None}  # a merge patch takes them away
        if properties is not None:
            status["properties"] = _patch_of(properties)
    return status


def says(observed: Status, wanted: Status) -> bool:
    """Whether a status says already what it is to say."""
    return all(_as_told(observed.get(name)) == _as_told(value) for name, value in wanted.items())


def _as_told(value: Any) -> Any:
    """A value as the server gives it back: what a merge patch takes away is not there."""
    if isinstance(value, Mapping):
        return {key: _as_told(part) for key, part in value.items() if part is not None}
    return value or None if isinstance(value, str) else value


def _patch_of(properties: Status) -> Status:
    """A merge patch that leaves nothing of former properties."""
    return {"Certificates": None, "Keys": None, **properties}


def _brief(messages: Sequence[str]) -> str:
    """The first fault with as much of its key path as there is room for."""
    more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    room = MAX_BRIEF_ERROR - len(more)
    brief = messages[0]
    path, colon, message = brief.partition(": ")
    if len(brief) > room and colon:
        brief = f"{path.rpartition('.')[2]}: {message}"
    return printable(brief if len(brief) <= room else f"{brief[: room - 3]}...", room) + more


@dataclass(slots=True)
class _Said:
    """What was written of an object, or found written."""

    uid: str
    status: Status


class StatusWriter:
    """Writes status as it changes.

    Args:
        client: of the Kubernetes API; stays its owner's to close.
        observed: what is known of the objects now.
        key_providers: the key providers in use, by label, as Assembler.key_providers gives them.
        clock: the time for lastfetchedtime (aware, UTC).
        look_seconds: see LOOK_SECONDS.
        resync_seconds: see RESYNC_SECONDS.
    """

    def __init__(
        self,
        client: AsyncClient,
        observed: Mapping[Key, Observed],
        key_providers: Callable[[], Mapping[str, KeyManagementProvider]],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        look_seconds: float = LOOK_SECONDS,
        resync_seconds: float = RESYNC_SECONDS,
    ) -> None:
        self._client = client
        self._observed = observed
        self._key_providers = key_providers
        self._clock = clock
        self._look_seconds = look_seconds
        self._resync_seconds = resync_seconds
        self._proposal: Proposal | None = None
        self._said: dict[Key, _Said] = {}
        self._complained: dict[Key, str] = {}
        self._wake = asyncio.Event()

    def tell(self, proposal: Proposal | None = None) -> None:
        """There may be something to write.

        Args:
            proposal: what is now known to be wrong with the objects; None when an object was changed by another.
        """
        self._proposal = proposal or self._proposal
        self._wake.set()

    async def run(self) -> NoReturn:
        """Write, until cancelled."""
        loop = asyncio.get_running_loop()
        resync = loop.time() + self._resync_seconds
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(random.uniform(0, JITTER_SECONDS))  # noqa: S311 - spreads load, protects nothing
            if loop.time() >= resync:
                self._said.clear()
                resync = loop.time() + self._resync_seconds * random.uniform(0.9, 1.1)  # noqa: S311 - see above
            try:
                for key, wanted in tuple(self._wanted()):
                    await self._see_to(key, wanted)
            except Exception:  # noqa: BLE001 - what nobody foresaw must not end the process that decides
                _log.exception("writing status failed unexpectedly")

    def _wanted(self) -> Iterator[tuple[Key, Status]]:
        """What every object's status is to say, of those about which something is known."""
        if self._proposal is None:
            return
        for lost in self._said.keys() - self._observed.keys():
            del self._said[lost]
            self._complained.pop(lost, None)
        providers = self._key_providers()
        for key, faults in self._proposal.faults.items():
            seen = self._observed.get(key)
            if seen is None or seen.generation != self._proposal.generations[key]:
                continue  # gone, or newer than what is known of it
            if faults or KINDS[key[0]].component is not Component.KEY_PROVIDER:
                yield key, status_of(faults, seen.generation)
                continue
            status = _of_key_provider(self._proposal.newest[key], providers.get(label_of(key)), seen.generation)
            if status is not None:
                yield key, status

    async def _see_to(self, key: Key, wanted: Status) -> None:
        """Write one status if that is called for."""
        seen = self._observed.get(key)
        if seen is None:
            return
        said = self._said.get(key)
        if said is not None and said.uid == seen.uid and said.status == wanted:
            return
        if says(seen.status, wanted) or await self._write(key, seen, wanted):
            self._said[key] = _Said(seen.uid, wanted)

    async def _write(self, key: Key, seen: Observed, wanted: Status) -> bool:
        """Write a status. Returns whether that is settled, be it in vain; not when it is worth another try."""
        kind, namespace, name = key
        status = dict(wanted)
        if KINDS[kind].component is Component.KEY_PROVIDER:
            status["lastfetchedtime"] = self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
        patch = {"metadata": {"resourceVersion": seen.resource_version}, "status": status}
        place: dict[str, Any] = {"namespace": namespace} if namespace else {}
        send: Any = self._client.patch  # its overloads tell kinds of the cluster and of namespaces apart by their type
        try:
            await send(
                _CLASSES[kind].Status, name, patch, patch_type=PatchType.MERGE, field_manager=FIELD_MANAGER, **place
            )
        except httpx2.HTTPStatusError as error:
            code = error.response.status_code
            if code == 409:  # somebody was quicker; the watch will bring what they wrote
                return False
            if code != 404:
                self._complain(key, f"the API server answered {code}")
            return 400 <= code < 500 and code not in _PASSING
        except _PROBLEMS as error:
            self._complain(key, type(error).__name__)
            return False
        self._complained.pop(key, None)
        return True

    def _complain(self, key: Key, problem: str) -> None:
        """Log what goes wrong, once."""
        if self._complained.get(key) != problem:
            self._complained[key] = problem
            _log.warning("status not written", resource=label_of(key), reason=problem)


def _of_key_provider(resource: Resource, provider: KeyManagementProvider | None, generation: int) -> Status | None:
    """The status of a key provider without faults; None when nothing is known yet."""
    try:
        if isinstance(resource.parameters, InlineParameters):
            material = resource.parameters.material()
        elif provider is None:
            return None
        else:
            material = provider.material()
    except CountersignError as error:
        return status_of((Fault("", resource.label, "", str(error)),), generation)
    return status_of((), generation, material.properties)
