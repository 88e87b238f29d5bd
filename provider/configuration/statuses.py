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
  while. An error whose words change and nothing else is written now and then.
- A server that fails is left alone for a moment, and one object that cannot be written holds up no other.
- Writing is no part of deciding: what goes wrong here is logged and changes nothing else.

RBAC needed: `patch` on the `/status` of each kind.

What does not belong here: what is wrong with an object (ledger.py), the list and watch (cluster.py).
Source: Ratify v1.4 custom resource definitions; observedGeneration is ours, after the Kubernetes API conventions.
"""

from __future__ import annotations

import asyncio
import enum
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, NoReturn

import httpx2
import structlog
from lightkube.core.exceptions import ConfigError

from provider.configuration.key_providers import InlineParameters
from provider.configuration.ledger import Key, Proposal, generation_of, label_of
from provider.configuration.resources import GROUP, KINDS, VERSION, Component, Resource
from provider.errors import CountersignError, Fault, printable
from provider.interfaces import KeyManagementProvider

MAX_ERROR: Final = 4096  # characters of `error`
MAX_BRIEF_ERROR: Final = 100  # characters of `brieferror`, as in Ratify: it is a column of kubectl get
MAX_FAILURES: Final = 3  # writes in a row that fail before the server is left alone
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024  # the object comes back; etcd lets it have some 1.5 MiB
FIELD_MANAGER: Final = "countersign"

_log = structlog.get_logger(__name__)

Status = Mapping[str, Any]

_PASSING: Final = frozenset({401, 408, 429})  # a token that expires, a server that is busy


@dataclass(frozen=True, slots=True)
class StatusSettings:
    """Times, in seconds.

    Attributes:
        look: between two looks at the material of key providers, and the pause after a server failed.
        jitter: the most that a change waits, so that replicas do not write at the same moment.
        resync: after this, what others have written is looked at again, and times are renewed.
        calm: between two writes of one object that only say in other words that it is bad.
        answer: until the server has taken a status.
    """

    look: float = 5.0
    jitter: float = 0.25
    resync: float = 600.0
    calm: float = 60.0
    answer: float = 10.0


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
        properties: of a key provider that has something; None for other kinds, and to leave them as they are.
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


def _timeless(value: Any) -> Any:
    """A status without the times at which keys were loaded: they alone are no reason to write it."""
    if isinstance(value, Mapping):
        return {key: _timeless(part) for key, part in value.items() if key != "LastRefreshed"}
    return [_timeless(part) for part in value] if isinstance(value, list | tuple) else value


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


@dataclass(frozen=True, slots=True)
class _Said:
    """What was written of an object, or found written.

    Attributes:
        uid: of the object.
        status: what it says.
        when: time of the loop.
    """

    uid: str
    status: Status
    when: float

    def suffices(self, uid: str, wanted: Status, since: float) -> bool:
        """Whether nothing has to be written now to say what is wanted; other words for bad do if newer than `since`."""
        if self.uid != uid:
            return False
        verdicts = [(one["issuccess"], one["observedGeneration"]) for one in (self.status, wanted)]
        still_bad = not wanted["issuccess"] and verdicts[0] == verdicts[1]
        return _timeless(self.status) == _timeless(wanted) or (still_bad and self.when > since)


class _Outcome(enum.Enum):
    """What came of a write: it is settled, be it in vain; or is worth another try, when more is known, or later."""

    SETTLED = enum.auto()
    OVERTAKEN = enum.auto()
    FAILED = enum.auto()


class StatusWriter:
    """Writes status as it changes.

    Args:
        observed: what is known of the objects now.
        key_providers: the key providers in use, by label, as Assembler.key_providers gives them.
        clock: the time for lastfetchedtime (aware, UTC).
        settings: times.
    """

    def __init__(
        self,
        observed: Mapping[Key, Observed],
        key_providers: Callable[[], Mapping[str, KeyManagementProvider]],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        settings: StatusSettings | None = None,
    ) -> None:
        self._observed = observed
        self._key_providers = key_providers
        self._clock = clock
        self._settings = settings or StatusSettings()
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

    async def run(self, http: httpx2.AsyncClient) -> NoReturn:
        """Write, until cancelled.

        Args:
            http: connections to the API server; stays its owner's to close.
        """
        loop = asyncio.get_running_loop()
        resync = loop.time() + self._settings.resync
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.look):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(random.uniform(0, self._settings.jitter))  # noqa: S311 - spreads load, protects nothing
            if loop.time() >= resync:
                self._said.clear()
                resync = loop.time() + self._settings.resync * random.uniform(0.9, 1.1)  # noqa: S311 - see above
            try:
                if not await self._round(http):
                    await asyncio.sleep(self._settings.look)
            except Exception:  # noqa: BLE001 - what nobody foresaw must not end the process that decides
                _log.exception("writing status failed unexpectedly")

    async def _round(self, http: httpx2.AsyncClient) -> bool:
        """See to every object. Returns whether the server did its part."""
        wanted = list(self._wanted())
        random.shuffle(wanted)  # so that what cannot be written does not always stand before the same others
        failures = 0
        for key, status in wanted:
            failures = 0 if await self._see_to(http, key, status) else failures + 1
            if failures == MAX_FAILURES:
                return False
        return not failures

    def _wanted(self) -> Iterator[tuple[Key, Status]]:
        """What every object's status is to say, of those about which something is known."""
        if self._proposal is None:
            return
        for kept in (self._said, self._complained):
            for lost in kept.keys() - self._observed.keys():
                del kept[lost]
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

    async def _see_to(self, http: httpx2.AsyncClient, key: Key, wanted: Status) -> bool:
        """Write one status if that is called for. Returns whether the server did its part."""
        seen = self._observed.get(key)
        if seen is None:
            return True
        said, now = self._said.get(key), asyncio.get_running_loop().time()
        if said is not None and said.suffices(seen.uid, wanted, now - self._settings.calm):
            return True
        if says(seen.status, wanted):
            outcome = _Outcome.SETTLED
        else:
            outcome = await self._write(http, key, seen, wanted)
        if outcome is _Outcome.SETTLED:
            self._said[key] = _Said(seen.uid, wanted, now)
        return outcome is not _Outcome.FAILED

    async def _write(self, http: httpx2.AsyncClient, key: Key, seen: Observed, wanted: Status) -> _Outcome:
        """Write a status."""
        status = dict(wanted)
        if KINDS[key[0]].component is Component.KEY_PROVIDER:
            status["lastfetchedtime"] = self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
        patch = {"metadata": {"resourceVersion": seen.resource_version}, "status": status}
        try:
            async with asyncio.timeout(self._settings.answer):
                code = await _send(http, key, patch)
        except TimeoutError:
            self._complain(key, "the API server does not answer")
            return _Outcome.FAILED
        except (httpx2.HTTPError, httpx2.StreamError, ConfigError, OSError) as error:
            self._complain(key, f"the API server is out of reach ({type(error).__name__})")
            return _Outcome.FAILED
        return self._judge(key, code)

    def _judge(self, key: Key, code: int) -> _Outcome:
        if 200 <= code < 300:
            self._complained.pop(key, None)
            return _Outcome.SETTLED
        if code == 409:  # somebody was quicker; the watch will bring what they wrote
            return _Outcome.OVERTAKEN
        if code != 404:  # it was deleted, or its definition has no status
            self._complain(key, f"the API server answered {code}")
        return _Outcome.SETTLED if 400 <= code < 500 and code not in _PASSING else _Outcome.FAILED

    def _complain(self, key: Key, problem: str) -> None:
        """Log what goes wrong, once."""
        if self._complained.get(key) != problem:
            self._complained[key] = problem
            _log.warning("status not written", resource=label_of(key), reason=problem)


async def _send(http: httpx2.AsyncClient, key: Key, patch: Mapping[str, Any]) -> int:
    """Send a patch of a status; returns the HTTP status of the answer, whatever else it says."""
    kind, namespace, name = key
    place = f"namespaces/{namespace}/" if namespace else ""
    async with http.stream(
        "PATCH",
        f"apis/{GROUP}/{VERSION}/{place}{KINDS[kind].plural}/{name}/status",
        params={"fieldManager": FIELD_MANAGER},
        headers={"Content-Type": "application/merge-patch+json"},
        content=json.dumps(patch).encode(),
    ) as response:
        left = MAX_ANSWER_BYTES
        async with aclosing(response.aiter_raw()) as chunks:  # read, so that the connection serves the next one
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    break
        return response.status_code


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
    missing = [Fault("", resource.label, "", lack) for lack in material.missing]
    return status_of(missing, generation, material.properties)
