"""A warm start: images that will probably be asked for are verified before anybody asks.

    lines of a file, the last run's references, images of running pods -> Plan -> a few at a time -> executor.verify

Rules:
- Nothing is trusted here. A list says what to look at and never what was found: there is no verdict in it, and one is
  worked out now, by `executor.verify`, or not at all. Who writes into a list can have an image verified, no more.
- It comes last: a few images at a time, none begun while requests wait or a registry is suspect (patience.py), and it
  ends when its list is done or its time is up. A registry that leaves image after image undecided is left alone.
- It fails nothing. A list that cannot be read is a word in the one event at the end.
- Everything read is bounded before it is read: bytes, lines, images.

What does not belong here: deciding (executor.py), which pods there are (configuration/pods.py), options (cli/).
"""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, NamedTuple, NoReturn, Protocol, TypeVar

import structlog

from provider.errors import InvalidKey, Undecided, printable
from provider.executor import parse_key

MAX_IMAGES: Final = 2000  # of all lists: 8 at a time, with a registry 50 ms away, they take some 50 s
MAX_FILE_BYTES: Final = 2 * 1024 * 1024  # of one list; 2,000 references of the greatest length are less than that
MAX_LINES: Final = 10_000  # of one list, comments included: what lies behind is not read
MAX_LINE: Final = 1100  # characters: a reference has at most 1,024, and a namespace 65 more

_KEYS_AT_ONCE: Final = 100  # that are taken apart without a pause: a millisecond

_HEAD: Final = (
    "# Images that were admitted last, the last one first. A list of what to verify at the next start; no verdict.\n"
)

_log = structlog.get_logger(__name__)


class Verdict(Protocol):
    """What `verify` answers, as far as it is of interest here."""

    @property
    def is_success(self) -> bool:
        """The image is admitted."""
        ...


V = TypeVar("V", bound=Verdict)


class ListError(Exception):
    """A list cannot be read, or not to its end; the message says why. It goes into the log and no further."""


@dataclass(frozen=True, slots=True)
class PrewarmSettings:
    """Limits of prewarming.

    Attributes:
        concurrency: images under way at once; a small part of the connections that a registry is given.
        wait_seconds: how long readiness waits for the list to be done, from when a good configuration is in use; 0 not
            at all.
        max_seconds: after so long prewarming ends, whatever is left: by then requests have asked for what they need.
        host_failures: a registry that left so many images undecided, one after the other, is not asked again.
        pause_seconds: between two looks whether requests still wait.
        save_seconds: between two writings of what was asked for.
    """

    concurrency: int = 8
    wait_seconds: float = 0.0
    max_seconds: float = 600.0
    host_failures: int = 8
    pause_seconds: float = 0.05
    save_seconds: float = 180.0


@dataclass(slots=True)
class Plan:
    """Images to verify, each once; at most MAX_IMAGES of all lists.

    Attributes:
        images: keys as the executor takes them, with the registry of each.
        malformed: lines that are no image, or too long.
        left_out: images beyond the limit.
    """

    images: dict[str, str] = field(default_factory=dict)
    malformed: int = 0
    left_out: int = 0

    def add(self, key: str) -> bool:
        """Take a key if it is an image, a new one, and there is room. Whether it was taken."""
        if key in self.images:
            return False
        try:
            host = parse_key(key)[1].domain if len(key) <= MAX_LINE else ""
        except InvalidKey:
            host = ""
        if not host:
            self.malformed += 1
        elif len(self.images) >= MAX_IMAGES:
            self.left_out += 1
        else:
            self.images[key] = host
            return True
        return False


def keys_of(data: bytes) -> Iterator[str]:
    """The keys of a list: one a line, behind `#` a comment. What is no UTF-8 makes its own line malformed."""
    for line in data.split(b"\n", MAX_LINES)[:MAX_LINES]:
        key = line.partition(b"#")[0].strip().decode("utf-8", "replace")
        if key:
            yield key


def read_list(path: Path, *, may_be_missing: bool = False) -> tuple[str, ...]:
    """The keys of a list in a file, the first MAX_LINES lines of it.

    Raises:
        ListError: it cannot be read, is no regular file, or larger than MAX_FILE_BYTES.
    """
    try:
        # Whatever stands there, such as a pipe that nobody writes to, opening it does not hang.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _unreadable(path, "it is no regular file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError):
            return ()
        raise _unreadable(path, error.strerror or type(error).__name__) from None
    if len(data) > MAX_FILE_BYTES:
        raise _unreadable(path, f"it has more than {MAX_FILE_BYTES} bytes")
    return tuple(keys_of(data))


def _unreadable(path: Path, reason: str) -> ListError:
    return ListError(f"{path} cannot be read: {reason}")


class Recent:
    """The keys last admitted, at most MAX_IMAGES: what the next start is to look at. One event loop's.

    Refused images are not in it: there is no hurry to refuse, and whoever may ask for images that do not exist could
    push out those that do.
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()  # the last comes last
        self._changed = False

    def __len__(self) -> int:
        return len(self._keys)

    def seed(self, keys: Iterable[str]) -> None:
        """Begin with what the last run left, the last one first, as the oldest of all."""
        for key in keys:
            if key not in self._keys and len(self._keys) < MAX_IMAGES:
                self._keys[key] = None
                self._keys.move_to_end(key, last=False)

    def note(self, key: str) -> None:
        """This one was admitted."""
        if "\n" in key or "\r" in key:  # the executor drops them; the list would have two lines
            return
        self._keys[key] = None
        self._keys.move_to_end(key)
        self._changed = True
        if len(self._keys) > MAX_IMAGES:
            self._keys.popitem(last=False)

    def forget(self, key: str) -> None:
        """This one is not admitted any more."""
        if key in self._keys:
            del self._keys[key]
            self._changed = True

    def save(self, path: Path) -> None:
        """Write the list in one step, if it changed since the last time: a reader finds the old one or the new one.

        Raises:
            OSError: it cannot be written; what was there stays.
        """
        if not self._changed:
            return
        text = _HEAD + "".join(f"{key}\n" for key in reversed(self._keys))
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        self._changed = False

    async def keep_saved(self, path: Path, seconds: float) -> NoReturn:
        """Write the list every so many seconds, and when this is cancelled."""
        problem = ""
        try:
            while True:
                await asyncio.sleep(seconds)
                problem = self._try_to_save(path, problem)
        finally:
            self._try_to_save(path, problem)

    def _try_to_save(self, path: Path, former_problem: str) -> str:
        try:
            self.save(path)
        except OSError as error:
            problem = error.strerror or type(error).__name__
            if problem != former_problem:
                _log.warning("the list of images for the next start cannot be written", file=str(path), reason=problem)
            return problem
        return ""


class Recorder(Generic[V]):
    """Decides as the executor does, and notes what is admitted. For the server.

    Args:
        verify: decides.
        remembered: a look into the results at hand.
        recent: where it is noted.
    """

    def __init__(
        self, verify: Callable[[str], Awaitable[V]], remembered: Callable[[str], V | None], recent: Recent
    ) -> None:
        self._verify = verify
        self._remembered = remembered
        self._recent = recent

    async def verify(self, key: str) -> V:
        """As the executor's; so are the errors."""
        verdict = await self._verify(key)
        self._note(key, verdict)
        return verdict

    def remembered(self, key: str) -> V | None:
        """As the executor's."""
        verdict = self._remembered(key)
        if verdict is not None:
            self._note(key, verdict)
        return verdict

    def _note(self, key: str, verdict: V) -> None:
        if verdict.is_success:
            self._recent.note(key)
        else:
            self._recent.forget(key)


class Source(NamedTuple):
    """Where a list comes from.

    Attributes:
        name: for the log.
        keys: reads it; raises ListError where it cannot, and what was read before counts.
    """

    name: str
    keys: Callable[[], AsyncGenerator[str, None]]


def file_source(name: str, path: Path, *, recent: Recent | None = None, may_be_missing: bool = False) -> Source:
    """The list in a file.

    Args:
        name: for the log.
        path: of the file; read when its turn comes.
        recent: begins with what is read.
        may_be_missing: a file that is not there is an empty list.
    """

    async def keys() -> AsyncGenerator[str, None]:
        read = read_list(path, may_be_missing=may_be_missing)
        if recent is not None:
            recent.seed(read)
        for key in read:
            yield key

    return Source(name, keys)


class Prewarming:
    """Verifies the images of some lists, in the background. To be run once.

    Args:
        verify: decides; `executor.verify`.
        sources: the lists, in the order of their turns.
        settings: limits.
        busy: whether somebody waits who comes first.
        refused: told of images that are not admitted.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        verify: Callable[[str], Awaitable[Verdict]],
        sources: Sequence[Source],
        *,
        settings: PrewarmSettings,
        busy: Callable[[], bool],
        refused: Callable[[str], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verify = verify
        self._sources = sources
        self._settings = settings
        self._busy = busy
        self._refused = refused
        self._monotonic = monotonic
        self._plan = Plan()
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()  # by registry, since it last decided anything
        self._problems: list[str] = []
        self._may_begin = asyncio.Event()
        self._began: float | None = None
        self._over = False

    def begin(self) -> None:
        """A good configuration is in use. To be told again does nothing."""
        if self._began is None:
            self._began = self._monotonic()
            self._may_begin.set()

    @property
    def holds_up_readiness(self) -> bool:
        """Whether the list is not done and the time that readiness waits for it not up. Once no, it stays no."""
        if self._over or self._began is None:
            return False
        return self._monotonic() < self._began + self._settings.wait_seconds

    async def run(self) -> None:
        """Wait for the configuration, then verify until everything was looked at or time is up. Raises nothing."""
        ended = "stopped"
        try:
            await self._may_begin.wait()
            async with asyncio.timeout(self._settings.max_seconds) as limit:
                for source in self._sources:
                    await self._warm(await self._read(source))
            ended = "done"
        except TimeoutError:
            ended = "time is up" if limit.expired() else "failed"
        except Exception:  # noqa: BLE001 - a warm start is worth no more than this line
            _log.exception("prewarming failed unexpectedly")
            ended = "failed"
        finally:
            self._over = True
            self._tell(ended)

    async def _read(self, source: Source) -> list[tuple[str, str]]:
        """What is new in a list: images with their registries."""
        new = []
        try:
            async with aclosing(source.keys()) as keys:
                number = 0
                async for key in keys:
                    if self._plan.add(key):
                        new.append((key, self._plan.images[key]))
                    number += 1
                    if number % _KEYS_AT_ONCE == 0:
                        await asyncio.sleep(0)  # requests come first
        except ListError as error:
            self._problems.append(printable(f"{source.name}: {error}"))
        return new

    async def _warm(self, images: Iterable[tuple[str, str]]) -> None:
        shared = iter(images)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.concurrency):
                group.create_task(self._work(shared))

    async def _work(self, images: Iterator[tuple[str, str]]) -> None:
        for key, host in images:
            while self._busy():  # noqa: ASYNC110 - requests come and go; nobody is told when there are none
                await asyncio.sleep(self._settings.pause_seconds)
            if self._failures[host] >= self._settings.host_failures:
                self._counts["left alone"] += 1
                continue
            outcome = await self._outcome(key)
            self._counts[outcome] += 1
            if outcome == "undecided":
                self._failures[host] += 1
            else:
                del self._failures[host]
            if outcome == "refused":
                self._refused(key)

    async def _outcome(self, key: str) -> str:
        try:
            verdict = await self._verify(key)
        except (Undecided, InvalidKey):
            return "undecided"
        except Exception:  # noqa: BLE001 - one image's trouble is not that of the others
            _log.exception("key failed unexpectedly", endpoint="prewarming", key=printable(key))
            return "undecided"
        return "admitted" if verdict.is_success else "refused"

    def _tell(self, ended: str) -> None:
        seconds = 0.0 if self._began is None else self._monotonic() - self._began
        _log.info(
            "prewarming ended",
            ended=ended,
            images=len(self._plan.images),
            admitted=self._counts["admitted"],
            refused=self._counts["refused"],
            undecided=self._counts["undecided"],
            not_tried=len(self._plan.images) - self._counts.total() + self._counts["left alone"],
            malformed=self._plan.malformed,
            left_out=self._plan.left_out,
            problems=self._problems or None,
            duration_ms=round(seconds * 1000, 3),
        )
