"""What work says it waits for: seen by everybody who waits for it, bounded, and free where nobody listens."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.cache import SingleFlight
from provider.progress import MAX_TRACE_IDS, MAX_WORDS, Stage, Step, current, following, note, step


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def missed(self, step: Step) -> None:
        self.told.append("missed")

    def ended(self, step: Step) -> None:
        self.told.append("ended")


async def hang(gate: asyncio.Event, *steps: tuple[str, str]) -> None:
    """Wait for a gate inside of steps."""
    if not steps:
        await gate.wait()
        return
    with step(*steps[0]):
        await hang(gate, *steps[1:])


@pytest.fixture
async def gate() -> asyncio.Event:
    return asyncio.Event()


async def test_a_late_key_is_told_what_it_waits_for_and_for_how_long(gate: asyncio.Event) -> None:
    clock = Clock()
    root = Step(monotonic=clock)
    task = root.task(hang(gate, ("the list of referrers", "r.test"), ("page 2", ""), ("an answer of r.test", "")))
    await asyncio.sleep(0)
    clock.now += 3.84
    assert root.describe() == "the list of referrers (an answer of r.test, 3.8 s)"
    assert [leaf.host for leaf in root.leaves()] == ["r.test"]
    gate.set()
    await task
    assert root.describe() == ""


async def test_one_step_alone_is_told_alone(gate: asyncio.Event) -> None:
    root = Step(monotonic=Clock())
    task = root.task(hang(gate, ("the digest of its tag", "r.test")))
    await asyncio.sleep(0)
    assert root.describe() == "the digest of its tag (0.0 s)"
    gate.set()
    await task


async def test_of_what_is_waited_for_side_by_side_the_oldest_is_told_and_the_rest_counted(
    gate: asyncio.Event,
) -> None:
    clock = Clock()
    root = Step(monotonic=clock)

    async def several() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(hang(gate, (f"artifact {number}", "r.test")))
                await asyncio.sleep(0)
                clock.now += 1

    task = root.task(several())
    while len(list(root.leaves())) < 5:  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)
    clock.now = 110.0
    assert root.describe() == "artifact 0 (10.0 s), artifact 1 (9.0 s), artifact 2 (8.0 s) and 2 more"
    gate.set()
    await task


async def test_everybody_who_waits_for_shared_work_sees_what_it_waits_for(gate: asyncio.Event) -> None:
    flights: SingleFlight[str, None] = SingleFlight()

    async def ask() -> None:
        with step("an artifact", "r.test"):
            await flights.run("token", lambda: hang(gate, ("an answer of auth.test", "")))

    first, second = Step(), Step()
    tasks = [first.task(ask()), second.task(ask())]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for root in (first, second):
        assert "an artifact (an answer of auth.test" in root.describe()
        assert [leaf.host for leaf in root.leaves()] == ["r.test"]  # who is asked in r.test's name
    gate.set()
    await asyncio.gather(*tasks)
    assert first.describe() == second.describe() == ""


async def test_a_miss_is_a_miss_of_everything_that_is_waited_for_and_of_nothing_else(gate: asyncio.Event) -> None:
    flights: SingleFlight[str, None] = SingleFlight()
    log, other = Log(), Log()
    root = Step()
    task = root.task(flights.run("a", lambda: hang(gate, ("x", "")), watcher=log))
    beside = asyncio.create_task(flights.run("b", lambda: hang(gate), watcher=other))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    root.miss()
    root.miss()
    under_way = flights.under_way("a")
    assert under_way is not None
    assert under_way.missed
    assert (log.told, other.told) == (["missed"], [])
    gate.set()
    await asyncio.gather(task, beside)
    await asyncio.sleep(0)
    assert (log.told, other.told) == (["missed", "ended"], ["ended"])


async def test_outside_of_any_root_saying_what_is_waited_for_does_nothing() -> None:
    with step("something", "r.test"):
        assert current() is None
    with following(Step("other")):
        assert current() is None


async def test_a_step_ends_when_what_is_inside_of_it_fails() -> None:
    root = Step()

    async def fail() -> None:
        with step("something"):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await root.task(fail())
    assert root.describe() == ""


def test_work_that_is_thrown_away_unfinished_complains_about_nothing() -> None:
    root = Step()

    async def work() -> None:
        with step("something"):
            await asyncio.get_running_loop().create_future()

    async def begin() -> None:
        root.task(work())
        await asyncio.sleep(0)

    # A loop that is closed without ending its tasks, as after a crash; the coroutine is then ended by the collector.
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    loop.run_until_complete(begin())
    loop.close()
    gc.collect()


@given(st.text(), st.text())
def test_words_are_one_short_printable_line(first: str, second: str) -> None:
    root = Step(monotonic=Clock())
    above = root.below(first, "")
    root.enter(above)
    below = above.below(second, "")
    above.enter(below)
    told = root.describe()
    assert told.isprintable()
    assert len(told) <= 2 * MAX_WORDS + len(" (, 0.0 s)")


# -- who watches ------------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """An observer that writes down what it is told, with the stages around it."""

    trace_id: str
    told: list[tuple[str, object]] = field(default_factory=list)
    where: str = ""
    traceparent: str = ""

    def begin(self, stage: Stage) -> Recorder:
        return Recorder(self.trace_id, self.told, f"{self.where}/{stage.value}")

    def note(self, name: str, value: str | bool | int) -> None:
        self.told.append((f"{self.where}#{name}", value))

    def end(self, seconds: float) -> None:
        self.told.append((self.where, round(seconds, 3)))


async def test_stages_are_told_inside_of_each_other_with_their_times_even_if_they_fail() -> None:
    clock, seen = Clock(), Recorder("t1")

    async def work() -> None:
        with step("an artifact", stage=Stage.ARTIFACT):
            with step("the manifest"), step("its bytes", stage=Stage.FETCH):
                clock.now += 0.25
            note("success", True)
            raise ValueError

    task = Step(observer=seen, monotonic=clock).task(work())
    with pytest.raises(ValueError):  # noqa: PT011 - it is the one above
        await task
    assert seen.told == [("/artifact/fetch", 0.25), ("/artifact#success", True), ("/artifact", 0.25)]


async def test_nothing_is_told_where_nobody_watches() -> None:
    with step("something", stage=Stage.FETCH):
        note("success", True)
    root = Step()

    async def work() -> None:
        with step("something", stage=Stage.FETCH):
            note("success", True)

    await root.task(work())
    root.observed()


async def test_shared_work_is_watched_by_who_began_it_and_knows_who_waits(gate: asyncio.Event) -> None:
    flights: SingleFlight[str, None] = SingleFlight()
    observers = [Recorder(f"t{number}") for number in range(MAX_TRACE_IDS + 5)]

    async def work() -> None:
        with step("the list", stage=Stage.REFERRERS):
            await gate.wait()

    tasks = [Step(observer=one).task(flights.run("key", work)) for one in observers]
    await asyncio.sleep(0)
    root = flights.under_way("key")
    assert root is not None
    assert root.trace_ids == tuple(f"t{number}" for number in range(MAX_TRACE_IDS))
    assert root.followers == len(observers)
    gate.set()
    await asyncio.gather(*tasks)
    assert [name for name, _ in observers[0].told] == ["/referrers"]
    assert [one.told for one in observers[1:]] == [[("#waits_for_trace", "t0")]] * (len(observers) - 1)


async def test_a_request_that_asks_twice_is_one_trace(gate: asyncio.Event) -> None:
    flights: SingleFlight[str, bool] = SingleFlight()
    tasks = [Step(observer=Recorder("same")).task(flights.run("key", gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    root = flights.under_way("key")
    assert root is not None
    assert (root.trace_ids, root.followers) == (("same",), 2)
    gate.set()
    await asyncio.gather(*tasks)
