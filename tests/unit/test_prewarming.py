"""A warm start: lists of images, and how they are verified before anybody asks. The executor is scripted."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from provider.errors import Undecided
from provider.prewarming import (
    MAX_FILE_BYTES,
    MAX_IMAGES,
    MAX_LINES,
    ListError,
    Plan,
    Prewarming,
    PrewarmSettings,
    Recent,
    Recorder,
    Source,
    file_source,
    keys_of,
    read_list,
)

QUICK = PrewarmSettings(pause_seconds=0.001)


@dataclass(frozen=True)
class Verdict:
    is_success: bool


@dataclass
class Scripted:
    """Answers by image; counts what is under way."""

    answers: dict[str, bool | Exception] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    asked: list[str] = field(default_factory=list)
    under_way: int = 0
    most: int = 0

    async def verify(self, key: str) -> Verdict:
        self.asked.append(key)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await (asyncio.sleep(0) if self.gate is None else self.gate.wait())
        finally:
            self.under_way -= 1
        answer = self.answers.get(key, True)
        if isinstance(answer, Exception):
            raise answer
        return Verdict(answer)


def source(*keys: str, error: Exception | None = None) -> Source:
    async def read() -> AsyncGenerator[str, None]:
        for key in keys:
            yield key
        if error is not None:
            raise error

    return Source("list", read)


async def warmed(
    scripted: Scripted,
    *sources: Source,
    settings: PrewarmSettings = QUICK,
    busy: Callable[[], bool] = lambda: False,
    refused: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run it to its end; the one event."""
    prewarming = Prewarming(scripted.verify, sources, settings=settings, busy=busy, refused=refused)
    prewarming.begin()
    with capture_logs() as logs:
        await prewarming.run()
    [event] = [dict(line) for line in logs if line["event"] == "prewarming ended"]
    return event


def images(number: int, host: str = "reg.example.com") -> list[str]:
    return [f"{host}/app:{index}" for index in range(number)]


def counts(event: dict[str, Any]) -> dict[str, int]:
    names = ("images", "admitted", "refused", "undecided", "not_tried", "malformed", "left_out")
    return {name: event[name] for name in names if event[name]}


# -- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_has_one_image_a_line_and_comments() -> None:
    data = b"# all of ours\n\n  reg.example.com/a:v1  \r\nreg.example.com/b:v1 # new\n[team]reg.example.com/c:v1"
    assert [*keys_of(data)] == ["reg.example.com/a:v1", "reg.example.com/b:v1", "[team]reg.example.com/c:v1"]


@pytest.mark.parametrize(
    "line",
    [
        "Not An Image",
        "reg.example.com/a:v1 reg.example.com/b:v1",
        "[TEAM]reg.example.com/a:v1",
        "../../etc/passwd",
        "reg.example.com/a:v1\x00",
        "reg.example.com/\x1b[31ma:v1",
        "reg.example.com/" + "a" * 5000,
        '{"isSuccess": true}',
    ],
)
def test_a_line_that_is_no_image_is_counted_and_nothing_else(line: str) -> None:
    plan = Plan()
    assert not plan.add(line)
    assert (plan.images, plan.malformed) == ({}, 1)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_of_images_and_malformed_lines(data: bytes) -> None:
    plan = Plan()
    for key in keys_of(data):
        plan.add(key)
    assert len(plan.images) + plan.malformed <= data.count(b"\n") + 1


def test_images_beyond_the_limit_are_left_out_and_one_that_comes_again_is_not_new() -> None:
    plan = Plan()
    assert all(plan.add(key) for key in images(MAX_IMAGES))
    assert not plan.add(images(1)[0])
    assert not plan.add("reg.example.com/more:v1")
    assert (len(plan.images), plan.left_out, plan.malformed) == (MAX_IMAGES, 1, 0)


def test_of_a_list_with_a_million_lines_the_first_are_read(tmp_path: Path) -> None:
    (path := tmp_path / "list").write_bytes(b"a\n" * (MAX_FILE_BYTES // 2))
    assert len(read_list(path)) == MAX_LINES


def pipe(path: Path) -> None:
    os.mkfifo(path)


def too_large(path: Path) -> None:
    path.write_bytes(b"\n" * (MAX_FILE_BYTES + 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "No such file"),
        (Path.mkdir, "it is no regular file"),
        (pipe, "it is no regular file"),
        (too_large, f"more than {MAX_FILE_BYTES} bytes"),
    ],
    ids=["missing", "folder", "pipe", "too large"],
)
async def test_a_file_that_is_no_list_is_a_word_in_the_event(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    make(path := tmp_path / "list")
    with pytest.raises(ListError, match=words):
        read_list(path)
    event = await warmed(Scripted(), file_source("--prewarm-file", path), source("reg.example.com/a:v1"))
    assert words in event["problems"][0]
    assert counts(event) == {"images": 1, "admitted": 1}


async def test_the_first_start_has_no_snapshot_and_that_is_no_problem(tmp_path: Path) -> None:
    event = await warmed(Scripted(), file_source("snapshot", tmp_path / "none", may_be_missing=True))
    assert (event["problems"], event["ended"]) == (None, "done")


# -- verifying --------------------------------------------------------------------------------------------------------


async def test_every_image_is_verified_once_few_at_a_time() -> None:
    scripted = Scripted()
    event = await warmed(scripted, source(*images(30)), source(*images(40), "No Image"))
    assert Counter(scripted.asked) == Counter(images(40))
    assert scripted.most == 8
    assert (counts(event), event["ended"]) == ({"images": 40, "admitted": 40, "malformed": 1}, "done")


async def test_what_became_of_the_images_is_counted_and_the_refused_are_told() -> None:
    good, bad, late, odd = images(4)
    answers: dict[str, bool | Exception] = {
        bad: False,
        late: Undecided("REGISTRY_UNAVAILABLE", "down"),
        odd: RuntimeError("a fault of ours"),
    }
    refused: list[str] = []
    event = await warmed(Scripted(answers), source(good, bad, late, odd), refused=refused.append)
    assert counts(event) == {"images": 4, "admitted": 1, "refused": 1, "undecided": 2}
    assert refused == [bad]


async def test_nothing_is_begun_before_there_is_a_configuration() -> None:
    scripted = Scripted()
    prewarming = Prewarming(scripted.verify, [source(*images(1))], settings=QUICK, busy=lambda: False)
    task = asyncio.create_task(prewarming.run())
    for _ in range(5):
        await asyncio.sleep(0)
    assert scripted.asked == []
    prewarming.begin()
    await task
    assert scripted.asked == images(1)


async def test_it_gives_way_while_requests_wait() -> None:
    scripted, waiting = Scripted(), True
    prewarming = Prewarming(scripted.verify, [source(*images(20))], settings=QUICK, busy=lambda: waiting)
    prewarming.begin()
    task = asyncio.create_task(prewarming.run())
    await asyncio.sleep(0.02)
    assert scripted.asked == []
    waiting = False
    await task
    assert len(scripted.asked) == 20


async def test_a_registry_that_decides_nothing_is_left_alone_and_others_are_not() -> None:
    down = images(100, "down.example.com")
    answers: dict[str, bool | Exception] = {key: Undecided("REGISTRY_UNAVAILABLE", "down") for key in down}
    scripted = Scripted(answers)
    event = await warmed(scripted, source(*down, *images(10)))
    asked = Counter(key.partition("/")[0] for key in scripted.asked)
    assert asked["down.example.com"] < 8 + QUICK.concurrency
    assert asked["reg.example.com"] == 10
    assert event["undecided"] + event["not_tried"] == 100


async def test_a_registry_that_decides_now_and_then_is_not_left_alone() -> None:
    every = images(60)
    late: dict[str, bool | Exception] = {
        key: Undecided("REGISTRY_UNAVAILABLE", "slow") for number, key in enumerate(every) if number % 5
    }
    scripted = Scripted(late)
    event = await warmed(scripted, source(*every), settings=PrewarmSettings(concurrency=1))
    assert counts(event) == {"images": 60, "admitted": 12, "undecided": 48}


async def test_a_registry_that_hangs_ends_with_the_time_and_nobody_is_held_up() -> None:
    scripted = Scripted(gate=asyncio.Event())
    event = await warmed(scripted, source(*images(50)), settings=PrewarmSettings(max_seconds=0.02))
    assert (event["ended"], len(scripted.asked)) == ("time is up", 8)
    assert counts(event) == {"images": 50, "not_tried": 50}
    assert scripted.under_way == 0


async def test_a_list_that_breaks_off_counts_as_far_as_it_went() -> None:
    event = await warmed(Scripted(), source(*images(3), error=ListError("gone\x1b")))
    assert event["problems"] == ["list: gone�"]
    assert event["admitted"] == 3


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), TimeoutError()], ids=["any", "time"])
async def test_no_fault_of_a_list_ends_the_command(error: Exception) -> None:
    event = await warmed(Scripted(), source(*images(3), error=error))
    assert event["ended"] == "failed"


async def test_a_stop_is_told_in_the_event() -> None:
    prewarming = Prewarming(Scripted().verify, [source()], settings=QUICK, busy=lambda: False)
    with capture_logs() as logs:
        task = asyncio.create_task(prewarming.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [line["ended"] for line in logs] == ["stopped"]


# -- readiness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wait", "held"), [(0.0, [False, False, False]), (5.0, [True, True, False])])
def test_readiness_waits_as_long_as_it_was_told_and_no_longer(wait: float, held: Sequence[bool]) -> None:
    now = [100.0]
    prewarming = Prewarming(
        Scripted().verify, [], settings=PrewarmSettings(wait_seconds=wait), busy=lambda: True, monotonic=lambda: now[0]
    )
    now[0] = 200.0
    assert not prewarming.holds_up_readiness  # what it waits for until then is the configuration
    prewarming.begin()
    found = []
    for now[0] in (200.0, 204.9, 205.0):
        prewarming.begin()  # as with every configuration
        found.append(prewarming.holds_up_readiness)
    assert found == held


async def test_readiness_waits_no_longer_than_there_is_something_to_do() -> None:
    prewarming = Prewarming(
        Scripted().verify, [source()], settings=PrewarmSettings(wait_seconds=300), busy=lambda: False
    )
    prewarming.begin()
    assert prewarming.holds_up_readiness
    await prewarming.run()
    assert not prewarming.holds_up_readiness


# -- what was admitted last -------------------------------------------------------------------------------------------


async def test_the_next_start_looks_at_what_was_admitted_last_and_at_nothing_else(tmp_path: Path) -> None:
    """No verdict is written, and nothing that was refused or could not be decided."""
    good, bad, late = images(3)
    scripted = Scripted({bad: False, late: Undecided("REGISTRY_UNAVAILABLE", "down")})
    recent, path = Recent(), tmp_path / "snapshot"
    recorder = Recorder(scripted.verify, {f"{good}-warm": Verdict(True)}.get, recent)
    assert (await recorder.verify(good)).is_success
    assert not (await recorder.verify(bad)).is_success
    with pytest.raises(Undecided):
        await recorder.verify(late)
    assert recorder.remembered(good) is None
    assert recorder.remembered(f"{good}-warm") == Verdict(True)
    recent.save(path)
    assert read_list(path) == (f"{good}-warm", good)
    assert path.stat().st_mode & 0o077 == 0
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]


def test_a_key_with_a_line_break_makes_no_second_line(tmp_path: Path) -> None:
    recent = Recent()
    recent.note("reg.example.com/a:v1\nreg.example.com/evil:v1")
    assert len(recent) == 0


def test_only_the_last_are_kept() -> None:
    recent = Recent()
    for key in images(MAX_IMAGES + 5):
        recent.note(key)
    assert len(recent) == MAX_IMAGES


async def test_a_list_goes_on_over_several_runs_until_an_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    old, gone, new = images(3)
    path.write_text(f"{old}\n{gone}\n")
    recent = Recent()
    recent.note(new)  # a request came before the list was read
    event = await warmed(
        Scripted({gone: False}), file_source("s", path, recent=recent, may_be_missing=True), refused=recent.forget
    )
    assert event["images"] == 2
    recent.save(path)
    assert read_list(path) == (new, old)


def test_a_list_is_not_emptied_by_a_run_that_nobody_asked(tmp_path: Path) -> None:
    (path := tmp_path / "snapshot").write_text("reg.example.com/a:v1\n")
    Recent().save(path)
    assert read_list(path) == ("reg.example.com/a:v1",)


async def test_a_list_that_cannot_be_written_is_told_once_and_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    (folder / "taken").mkdir(parents=True)  # a folder cannot be replaced by a file
    recent = Recent()
    recent.note(images(1)[0])
    with capture_logs() as logs:
        task = asyncio.create_task(recent.keep_saved(folder, 0.002))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [line["event"] for line in logs] == ["the list of images for the next start cannot be written"]
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]


async def test_the_list_is_written_from_time_to_time_and_at_the_end(tmp_path: Path) -> None:
    recent, path = Recent(), tmp_path / "snapshot"
    task = asyncio.create_task(recent.keep_saved(path, 0.002))
    one, other = images(2)
    recent.note(one)
    while not path.exists():  # noqa: ASYNC110 - the file system tells nobody
        await asyncio.sleep(0.001)
    recent.note(other)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert read_list(path) == (other, one)
