"""One kind of custom resources: listed and watched for ever, each object handed on as it is now.

    list, page by page -> watch -> events, bookmarks -> the watch ends -> watch on from there
                               -> an error, or a version that is too old -> list anew

Rules:
- Nothing is ever taken to be deleted because it could not be asked for.
- A kind that the API server does not serve has no objects, be it that its CustomResourceDefinition is not installed or
  was deleted. The API server's own list of what it serves says so, not a 404 that any proxy may give.
- A watch goes on from where the last one ended. After an error, a lost connection or a version that is too old
  (410 Gone), everything is listed anew, after a growing pause with jitter that leaves a struggling API server alone.
- A watch that says nothing for too long (the server sends a bookmark every minute) is taken to be dead.
- Lists are read in pages, and few pages at a time: what there is of them in memory is bounded before it is read.
- One object of any content spoils nothing but itself: what is nested too deeply for a reader is cut out on arrival.

What does not belong here: what an object means (ledger.py), how kinds come together (cluster.py).
Source: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "410 Gone responses",
"Retrieving large results sets in chunks", "Discovery API".
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import httpx2
import structlog
from lightkube.core.exceptions import ConfigError

from provider.configuration.ledger import Key
from provider.configuration.resources import GROUP, KINDS, VERSION
from provider.errors import printable

PAGE: Final = 10  # objects of one answer to a list; etcd lets each have some 1.5 MiB
PAGES_AT_ONCE: Final = 3  # of all kinds: one that hangs holds up no other, and not all are in memory
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024  # of one page, or of one event with what came along
MAX_DEPTH: Final = 64  # nested mappings and lists of an answer; what lies deeper is cut out, and no setting lies there

_SERVED: Final = f"apis/{GROUP}/{VERSION}"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FollowSettings:
    """Times of list and watch, in seconds.

    Attributes:
        answer: until a page of a list is there, or the head of the answer to a watch.
        watch: how long the server keeps one watch, at least; up to twice that, so that they do not end together.
        idle: after so long without a word a watch is dead; bookmarks come every minute.
        backoff: first pause after an error; it doubles.
        max_backoff: the longest pause.
    """

    answer: float = 30.0
    watch: float = 240.0
    idle: float = 100.0
    backoff: float = 0.5
    max_backoff: float = 30.0


class _GoneError(Exception):
    """The version that a watch was to go on from is too old."""


class _AnswerError(Exception):
    """The API server refused, or its answer cannot be used; the message says which."""


class _NotServedError(_AnswerError):
    """There is nothing at that path: not what the API server serves, or not the API server."""


class _AbsentError(Exception):
    """The API server does not serve the kind, by its own word."""


class Reflector:
    """Follows the objects of one kind, for ever.

    Args:
        http: connections to the API server.
        kind: one of KINDS.
        take: told of every object that is there, changed or gone.
        settings: times.
        pages: how many pages of lists may be in memory at once, of all kinds.

    Attributes:
        listed: set when the objects were listed for the first time.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        kind: str,
        take: Callable[[Key, Mapping[str, Any] | None], None],
        settings: FollowSettings,
        pages: asyncio.Semaphore,
    ) -> None:
        self.listed = asyncio.Event()
        self._http = http
        self._kind = kind
        self._url = f"{_SERVED}/{KINDS[kind].plural}"
        self._take = take
        self._settings = settings
        self._pages = pages
        self._known: set[Key] = set()
        self._pause = settings.backoff
        self._problem = ""

    async def run(self) -> NoReturn:
        """Follow."""
        while True:
            problem, warn = "", _warn_unwatched
            try:
                await self._follow()
            except _AbsentError as error:
                problem, warn = str(error), _warn_absent
            except _GoneError:
                pass  # nothing is wrong: the objects are listed anew
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
                warn(self._kind, problem)
            self._problem = problem or self._problem
            await asyncio.sleep(_around(self._pause))
            self._pause = min(self._pause * 2, self._settings.max_backoff)

    async def _follow(self) -> NoReturn:
        """List, then watch, as long as that goes well."""
        try:
            version = await self._list()
        except _NotServedError:
            if not await self._is_served():
                for key in tuple(self._known):
                    self._drop(key)
                self.listed.set()
                raise _AbsentError(f"the CustomResourceDefinition of {self._kind} is not installed") from None
            raise
        self.listed.set()
        loop = asyncio.get_running_loop()
        while True:
            began, before = loop.time(), version
            async with aclosing(self._watch(version)) as versions:
                async for reached in versions:
                    version = reached
                    self._went_well()
            if loop.time() < began + min(1.0, self._settings.idle):
                if version == before:
                    raise _AnswerError("watches end as soon as they begin")
                await asyncio.sleep(_around(self._settings.backoff))
            self._went_well()

    def _went_well(self) -> None:
        self._pause = self._settings.backoff
        if self._problem:
            _log.info("resources are watched again", kind=self._kind)
            self._problem = ""

    async def _is_served(self) -> bool:
        """Whether the API server has this kind, by its own word; also when it does not give it."""
        groups = await self._get("apis")
        if groups.get("kind") != "APIGroupList" or not isinstance(groups.get("groups"), list):
            raise _AnswerError("the API server does not say what it serves")
        if not any(isinstance(group, dict) and group.get("name") == GROUP for group in groups["groups"]):
            return False
        kinds = await self._get(_SERVED)
        if kinds.get("kind") != "APIResourceList" or not isinstance(kinds.get("resources"), list):
            raise _AnswerError(f"the API server does not say what it serves of {GROUP}")
        plural = KINDS[self._kind].plural
        return any(isinstance(one, dict) and one.get("name") == plural for one in kinds["resources"])

    async def _list(self) -> str:
        """Take every object, page by page, and what is gone; returns the version of the list.

        Raises:
            _AnswerError, _GoneError, TimeoutError, httpx2.HTTPError: it cannot be had. What was taken is no older than
                what was known.
        """
        gone = self._known.copy()
        parameters = {"limit": str(PAGE)}
        while True:
            async with self._pages:
                page = await self._get(self._url, parameters)
                metadata, items = page.get("metadata"), page.get("items")
                # Without them an answer might be anybody's, and an empty list deletes all.
                if not isinstance(metadata, dict) or not isinstance(items, list | None):
                    raise _AnswerError("the API server's answer is no list of resources")
                version = metadata.get("resourceVersion")
                if not isinstance(version, str) or not version:
                    raise _AnswerError("the API server's list of resources has no version")
                for value in items or ():
                    gone.discard(self._keep(value))
            if not metadata.get("continue"):
                break
            parameters["continue"] = str(metadata["continue"])
        for key in gone:
            self._drop(key)
        return version

    async def _get(self, url: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        async with (
            asyncio.timeout(self._settings.answer),
            self._http.stream("GET", url, params=dict(parameters or {})) as response,
        ):
            self._check(response)
            body = bytearray()
            async with aclosing(response.aiter_bytes()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise _AnswerError(f"the API server's answer has more than {MAX_ANSWER_BYTES} bytes")
        return _decode(body)

    async def _watch(self, version: str) -> AsyncGenerator[str, None]:
        """Take changes from a version on; yields the version of each. Ends when the server, or silence, ends it.

        Raises:
            _GoneError: the version is too old.
            _AnswerError, TimeoutError, httpx2.HTTPError: it cannot be had.
        """
        seconds = self._settings.watch * random.uniform(1.0, 2.0)  # noqa: S311 - spreads load, protects nothing
        parameters = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._settings.answer):  # of its head: a server that is there sends it at once
                response = await stack.enter_async_context(self._http.stream("GET", self._url, params=parameters))
            self._check(response)
            chunks = await stack.enter_async_context(aclosing(response.aiter_bytes()))
            lines = await stack.enter_async_context(aclosing(_lines(chunks, self._settings.idle)))
            async for line in lines:
                event = _decode(line)
                value = event.get("object")
                metadata = value.get("metadata") if isinstance(value, dict) else None
                if not isinstance(value, dict) or not isinstance(metadata, dict):
                    raise _AnswerError("an event of a watch has no object")
                self._apply(event.get("type"), value)
                yield str(metadata.get("resourceVersion", "")) or version

    def _apply(self, kind: Any, value: dict[str, Any]) -> None:
        match kind:
            case "ADDED" | "MODIFIED":
                self._keep(value)
            case "DELETED":
                self._drop(self._key(value))
            case "BOOKMARK":  # its version is all it says
                pass
            case "ERROR" if value.get("code") == 410:
                raise _GoneError
            case "ERROR":
                raise _AnswerError(f"a watch ended with the status {_short(value.get('code'))}")
            case _:  # it may have been a deletion
                raise _AnswerError(f"an event of a watch is of the unknown type {_short(kind)}")

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
                raise _NotServedError(f"the API server answered 404 for {plural} of {GROUP}")
            case status:
                raise _AnswerError(f"the API server answered {status}")


def _warn_unwatched(kind: str, reason: str) -> None:
    _log.warning("resources cannot be watched, what is known stays in force", kind=kind, reason=reason)


def _warn_absent(kind: str, reason: str) -> None:
    _log.warning("resources cannot be watched, there are none", kind=kind, reason=reason)


def _around(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, protects nothing


def _short(value: Any) -> str:
    return printable(str(value), 32) if isinstance(value, str | int) else "nothing"


async def _lines(chunks: AsyncIterator[bytes], idle: float) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, until it ends or says nothing for `idle` seconds. An unfinished last one is none.

    Raises:
        _AnswerError: one has more than MAX_ANSWER_BYTES.
    """
    unfinished = bytearray()
    while True:
        try:
            async with asyncio.timeout(idle):
                chunk = await anext(chunks, None)
        except TimeoutError:
            return
        if chunk is None:
            return
        end, *following = chunk.split(b"\n")
        unfinished += end
        for line in following:
            if unfinished.strip():
                yield bytes(unfinished)
            unfinished = bytearray(line)
        if len(unfinished) > MAX_ANSWER_BYTES:
            raise _AnswerError(f"an event of a watch has more than {MAX_ANSWER_BYTES} bytes")


# Strings are passed over whole. Possessive, and at the end of the data a string ends: no input makes it go back.
_STRUCTURE: Final = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)|(?P<opens>[\[{])|(?P<closes>[\]}])', re.DOTALL)
_TOO_DEEP: Final = json.dumps(f"nested deeper than {MAX_DEPTH}").encode()


def _decode(data: bytes | bytearray) -> dict[str, Any]:
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


def _shallow(data: bytes | bytearray) -> bytes | bytearray:
    """JSON with a text in the place of whatever is nested deeper than MAX_DEPTH: a reader would give up the whole."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return data
    kept: list[bytes | bytearray] = []
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
    if depth > MAX_DEPTH:  # cut off within what is too deep: no JSON
        return b""
    return b"".join((*kept, data[start:])) if kept else data
