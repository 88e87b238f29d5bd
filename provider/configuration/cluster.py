"""The custom resources of a cluster: listed, watched, made into sets of resources, and their status written.

    API server -> _Reflector, one a kind -> Ledger -> sets of resources -> whoever uses them -> status

Rules:
- Nothing is given out before every kind was listed once. From then on what is known stays in force while the API server
  is out of reach; nothing is ever taken to be deleted because it could not be asked for.
- A watch goes on from where the last one ended. After an error, a lost connection or a version that is too old
  (410 Gone), everything is listed anew, after a growing pause with jitter that leaves a struggling API server alone.
- A watch that says nothing for too long (the server sends a bookmark every minute) is taken to be dead.
- Changes that come together are taken together.
- One object of any content spoils nothing but itself: what is nested too deeply for a reader is cut out on arrival.

RBAC needed, nothing more, for the service account of the provider (a ClusterRole):

    config.ratify.deislabs.io  stores, verifiers, keymanagementproviders, policies, certificatestores, namespacedstores,
                               namespacedverifiers, namespacedkeymanagementproviders, namespacedpolicies     list, watch
    config.ratify.deislabs.io  the same, each with /status                                                   patch

What does not belong here: which version of an object counts (ledger.py), what a status says (statuses.py).
Source: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "410 Gone responses".
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import httpx2
import structlog
from lightkube import AsyncClient
from lightkube.config.client_adapter import AsyncClient as HttpClient
from lightkube.config.client_adapter import ConnectionParams
from lightkube.core.exceptions import ConfigError

from provider.configuration.ledger import Key, Ledger
from provider.configuration.resources import GROUP, KINDS, VERSION, ResourceSet
from provider.configuration.statuses import FIELD_MANAGER, Observed, StatusWriter
from provider.errors import ConfigurationError, UsageError
from provider.interfaces import KeyManagementProvider

PAGE: Final = 20  # objects of one answer to a list; each may have 1.5 MiB
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024  # of one page, or of one event with what came along
MAX_DEPTH: Final = 64  # nested mappings and lists of an answer; what lies deeper is cut out, and no setting lies there

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Times, in seconds.

    Attributes:
        settle: quiet time that ends a group of changes.
        settle_at_most: changes that do not end are taken after this.
        retry: until what the assembly refused is tried again: a file or key service may be there by then.
        list_timeout: of listing one kind.
        watch: how long the server keeps one watch, at least; up to twice that, so that they do not end together.
        idle: after so long without a word a watch is dead; bookmarks come every minute.
        backoff: first pause after an error; it doubles.
        max_backoff: the longest pause.
    """

    settle: float = 0.1
    settle_at_most: float = 1.0
    retry: float = 30.0
    list_timeout: float = 30.0
    watch: float = 240.0
    idle: float = 100.0
    backoff: float = 0.5
    max_backoff: float = 30.0


def connect(namespace: str | None = None) -> AsyncClient:
    """A client of the cluster's API: by the pod's service account, else by KUBECONFIG or ~/.kube/config.

    Args:
        namespace: the provider's own; by default the service account's, or that of the configuration's context.

    Raises:
        UsageError: there is neither, or it cannot be used.
    """
    # httpx2 logs each request at the level info: a line for every status and every look at a secret.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        return AsyncClient(namespace=namespace, field_manager=FIELD_MANAGER)
    except (ConfigError, OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        reason = str(error) if isinstance(error, ConfigError) else type(error).__name__
        raise UsageError(
            "USAGE",
            f"--cluster finds no way to a Kubernetes API server: {reason}",
            expected="a pod with a service account's token, or KUBECONFIG",
        ) from None


class ClusterConfiguration:
    """The resources of a cluster. One task may iterate over `watch`, another run `write_status`.

    Args:
        client: of the Kubernetes API; stays its owner's to close. Its namespace is the provider's own.
        report: told what is wrong, with every fault, whenever that changes.
        settings: times.
        trust_env: obey proxy variables of the environment, as `client` does.
    """

    def __init__(
        self,
        client: AsyncClient,
        report: Callable[[ConfigurationError], None],
        *,
        settings: ClusterSettings | None = None,
        trust_env: bool = True,
    ) -> None:
        self._client = client
        self._report = report
        self._settings = settings or ClusterSettings()
        self._trust_env = trust_env
        self._ledger = Ledger(client.namespace)
        self._observed: dict[Key, Observed] = {}
        self._changed = asyncio.Event()
        self._key_providers: Callable[[], Mapping[str, KeyManagementProvider]] = dict
        self._statuses = StatusWriter(client, self._observed, lambda: self._key_providers())
        self._reported = ""
        self._retry_at: float | None = None

    async def watch(self) -> AsyncGenerator[ResourceSet, ConfigurationError | None]:
        """Yield sets of resources, the first as soon as there is one that can decide, then each that differs.

        Whoever sends the ConfigurationError back that a set led to (`asend`) gets one without the versions that its
        faults name; None says that the set is in use. To be closed with `aclose`.
        """
        async with HttpClient(self._client.config, self._connection()) as http:
            reflectors = [_Reflector(http, kind, self._take, self._settings) for kind in KINDS]
            tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
            try:
                for reflector in reflectors:
                    await reflector.listed.wait()
                async with aclosing(self._sets()) as sets:
                    outcome = None
                    while True:
                        outcome = yield await sets.asend(outcome)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def write_status(self, key_providers: Callable[[], Mapping[str, KeyManagementProvider]]) -> NoReturn:
        """Keep the status of every object up to date, until cancelled.

        Args:
            key_providers: the key providers in use, by label, as Assembler.key_providers gives them.
        """
        self._key_providers = key_providers
        await self._statuses.run()

    async def _sets(self) -> AsyncGenerator[ResourceSet, ConfigurationError | None]:
        in_use = ""
        while True:
            self._changed.clear()
            proposal = self._ledger.propose()
            self._tell(proposal.error)
            self._statuses.tell(proposal)
            if proposal.resources.digest != in_use and (in_use or not proposal.missing):
                error = yield proposal.resources
                if error is None:
                    in_use = proposal.resources.digest
                    if self._ledger.accept(proposal):
                        continue
                elif self._ledger.refuse(proposal, error):
                    self._retry_at = self._retry_at or self._now() + self._settings.retry
                    continue
                else:
                    self._tell(error)
            await self._settle()

    async def _settle(self) -> None:
        """Wait for changes, and until there are no more of them for a moment; or until it is time to retry."""
        try:
            async with asyncio.timeout_at(self._retry_at):
                await self._changed.wait()
        except TimeoutError:
            pass
        end = self._now() + self._settings.settle_at_most
        while self._changed.is_set() and self._now() < end:
            self._changed.clear()
            await asyncio.sleep(self._settings.settle)
        if self._retry_at is not None and self._now() >= self._retry_at:
            self._retry_at = None
            self._ledger.reconsider()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _tell(self, error: ConfigurationError | None) -> None:
        """Report what is wrong, if that is news."""
        news = "" if error is None else "\n".join(map(str, (error, *error.faults)))
        if error is not None and news != self._reported:
            self._report(error)
        self._reported = news

    def _take(self, key: Key, value: Mapping[str, Any] | None) -> None:
        """What a reflector saw: an object as it is now, or None for one that is gone."""
        if value is None:
            self._observed.pop(key, None)
            changed = self._ledger.forget(key)
        else:
            self._observed[key] = Observed.of(value)
            changed = self._ledger.put(key, value)
        if changed:
            self._changed.set()
        self._statuses.tell()

    def _connection(self) -> ConnectionParams:
        # Reading has limits of its own, below; what is left to limit is connecting and sending.
        return ConnectionParams(timeout=httpx2.Timeout(10.0, read=None), trust_env=self._trust_env)


# -- one kind ---------------------------------------------------------------------------------------------------------


class _GoneError(Exception):
    """The version that a watch was to go on from is too old."""


class _AnswerError(Exception):
    """The API server refused, or its answer cannot be used; the message says which."""


class _Reflector:
    """Follows the objects of one kind, for ever.

    Args:
        http: connections to the API server.
        kind: one of KINDS.
        take: told of every object that is there, changed or gone.
        settings: times.

    Attributes:
        listed: set when the objects were listed for the first time.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        kind: str,
        take: Callable[[Key, Mapping[str, Any] | None], None],
        settings: ClusterSettings,
    ) -> None:
        self.listed = asyncio.Event()
        self._http = http
        self._kind = kind
        self._url = f"apis/{GROUP}/{VERSION}/{KINDS[kind].plural}"
        self._take = take
        self._settings = settings
        self._known: set[Key] = set()
        self._pause = settings.backoff
        self._problem = ""

    async def run(self) -> NoReturn:
        """Follow."""
        while True:
            try:
                await self._follow()
            except _GoneError:
                problem = ""  # nothing is wrong: the objects are listed anew
            except _AnswerError as error:
                problem = str(error)
            except TimeoutError:
                problem = "the API server does not answer"
            except (httpx2.HTTPError, httpx2.StreamError, ConfigError, OSError) as error:
                problem = f"the API server is out of reach ({type(error).__name__})"
            except Exception as error:  # noqa: BLE001 - what nobody foresaw must not end the following of a kind
                _log.exception("watching resources failed unexpectedly", kind=self._kind)
                problem = type(error).__name__
            if problem and problem != self._problem:
                _log.warning(
                    "resources cannot be watched, what is known stays in force", kind=self._kind, reason=problem
                )
            self._problem = problem or self._problem
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, protects nothing
            self._pause = min(self._pause * 2, self._settings.max_backoff)

    async def _follow(self) -> NoReturn:
        """List, then watch, as long as that goes well."""
        async with asyncio.timeout(self._settings.list_timeout):
            version = await self._list()
        self.listed.set()
        loop = asyncio.get_running_loop()
        while True:
            began, before = loop.time(), version
            async with aclosing(self._watch(version)) as versions:
                async for reached in versions:
                    version = reached
                    self._went_well()
            if version == before and loop.time() < began + min(1.0, self._settings.idle):
                raise _AnswerError("watches end as soon as they begin")
            self._went_well()

    def _went_well(self) -> None:
        self._pause = self._settings.backoff
        if self._problem:
            _log.info("resources are watched again", kind=self._kind)
            self._problem = ""

    async def _list(self) -> str:
        """Take every object, page by page, and what is gone; returns the version of the list.

        Raises:
            _AnswerError, _GoneError, httpx2.HTTPError: it cannot be had.
        """
        objects: list[Any] = []
        parameters = {"limit": str(PAGE)}
        while True:
            page = await self._page(parameters)
            metadata = page.get("metadata") or {}
            objects += page.get("items") or []
            if not metadata.get("continue"):
                break
            parameters["continue"] = metadata["continue"]
        gone = self._known.copy()
        for value in objects:
            gone.discard(self._keep(value))
        for key in gone:
            self._drop(key)
        return str(metadata.get("resourceVersion", ""))

    async def _page(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        async with self._http.stream("GET", self._url, params=dict(parameters)) as response:
            self._check(response)
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise _AnswerError(f"a list of {PAGE} objects has more than {MAX_ANSWER_BYTES} bytes")
        return _decode(bytes(body))

    async def _watch(self, version: str) -> AsyncGenerator[str, None]:
        """Take changes from a version on; yields the version of each. Ends when the server, or silence, ends it.

        Raises:
            _GoneError: the version is too old.
            _AnswerError, httpx2.HTTPError: it cannot be had.
        """
        seconds = self._settings.watch * random.uniform(1.0, 2.0)  # noqa: S311 - spreads load, protects nothing
        parameters = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        async with self._http.stream("GET", self._url, params=parameters) as response:
            self._check(response)
            async with aclosing(_lines(response.aiter_bytes(), self._settings.idle)) as lines:
                async for line in lines:
                    event = _decode(line)
                    value = event.get("object")
                    if not isinstance(value, dict):
                        raise _AnswerError("an event of a watch has no object")
                    self._apply(event.get("type"), value)
                    yield str((value.get("metadata") or {}).get("resourceVersion", "")) or version

    def _apply(self, kind: Any, value: dict[str, Any]) -> None:
        match kind:
            case "ADDED" | "MODIFIED":
                self._keep(value)
            case "DELETED":
                self._drop(self._key(value))
            case "ERROR" if value.get("code") == 410:
                raise _GoneError
            case "ERROR":
                raise _AnswerError(f"a watch ended with the status {value.get('code')}")
            case _:  # a bookmark: its version is all it says
                pass

    def _keep(self, value: Any) -> Key:
        key = self._key(value)
        self._known.add(key)
        self._take(key, value)
        return key

    def _drop(self, key: Key) -> None:
        self._known.discard(key)
        self._take(key, None)

    def _key(self, value: Any) -> Key:
        metadata = value.get("metadata") if isinstance(value, dict) else None
        if not isinstance(metadata, dict) or not metadata.get("name"):
            raise _AnswerError("an object has no name")
        namespace = metadata.get("namespace") if KINDS[self._kind].namespaced else ""
        return self._kind, str(namespace or ""), str(metadata["name"])

    def _check(self, response: httpx2.Response) -> None:
        """Judge an answer by its status."""
        plural = KINDS[self._kind].plural
        match response.status_code:
            case 200:
                return
            case 410:
                raise _GoneError
            case 403:
                raise _AnswerError(f"the service account may not list and watch {plural} of {GROUP}")
            case 404:
                raise _AnswerError(f"the CustomResourceDefinition {plural}.{GROUP} is not installed")
            case status:
                raise _AnswerError(f"the API server answered {status}")


async def _lines(chunks: AsyncIterator[bytes], idle: float) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, until it ends or says nothing for `idle` seconds."""
    rest = b""
    while True:
        try:
            async with asyncio.timeout(idle):
                chunk = await anext(chunks, None)
        except TimeoutError:
            return
        if chunk is None:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > MAX_ANSWER_BYTES:
            raise _AnswerError(f"an event of a watch has more than {MAX_ANSWER_BYTES} bytes")


# Strings are passed over whole; possessive, so that no input makes it go back.
_STRUCTURE: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|(?P<opens>[\[{])|(?P<closes>[\]}])', re.DOTALL)
_TOO_DEEP: Final = json.dumps(f"nested deeper than {MAX_DEPTH}").encode()


def _decode(data: bytes) -> dict[str, Any]:
    """Read JSON of the API server, in which whoever may write an object has a say.

    Raises:
        _AnswerError: it is none.
    """
    try:
        value = json.loads(_shallow(data))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _AnswerError("the API server's answer is no JSON object")
    return value


def _shallow(data: bytes) -> bytes:
    """JSON with a text in the place of whatever is nested deeper than MAX_DEPTH: a reader would give up the whole."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return data
    kept: list[bytes] = []
    depth = start = 0
    for match in _STRUCTURE.finditer(data):
        if match["opens"]:
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept.append(data[start : match.start()])
        elif match["closes"]:
            if depth == MAX_DEPTH + 1:
                kept.append(_TOO_DEEP)
                start = match.end()
            depth -= 1
    return b"".join((*kept, data[start:]))
