"""How long answers wait for work that keeps them waiting, rule by rule; the clock of probes is moved by the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from provider.cache import SingleFlight
from provider.errors import Undecided
from provider.patience import Patience, PatienceSettings, Where
from provider.progress import Step, step

HOST = "r.test"
VERIFY = Where("verify", 1, "", HOST)


PROBE = 0.01  # seconds
PAUSE = 5.0  # seconds


class Bench:
    """Work on images of a registry that answers only when it is told to, and the answers that wait for it."""

    def __init__(self, **settings: int) -> None:
        self.now = 100.0
        limits = PatienceSettings(probe_seconds=PROBE, probe_pause_seconds=PAUSE, **settings)
        self.patience = Patience(limits, monotonic=lambda: self.now)
        self.flights: SingleFlight[str, str] = SingleFlight()
        self.gates: dict[str, asyncio.Event] = {}
        self.waits_for = HOST

    async def _work(self, key: str, where: Where) -> str:
        gate = self.gates.setdefault(key, asyncio.Event())
        if key.startswith("quick"):
            gate.set()
        with step(f"an answer of {self.waits_for}", self.waits_for):
            await gate.wait()
        if "broken" in key:
            raise Undecided("REGISTRY_UNAVAILABLE", "down")
        self.patience.answered(where)
        return key

    async def ask(self, key: str, where: Where = VERIFY) -> str:
        return await self.patience.run(self.flights, key, lambda: self._work(key, where), where=where)

    async def miss(self, key: str, where: Where = VERIFY) -> asyncio.Task[str]:
        """Ask, and let the answer leave without it."""
        request = Step()
        task = request.task(self.ask(key, where))
        await until_begun(self, key)
        request.miss()
        return task

    async def undecided(self, key: str, where: Where = VERIFY) -> Undecided:
        with pytest.raises(Undecided) as caught:
            await self.ask(key, where)
        return caught.value

    async def finish(self, *keys: str) -> None:
        for key in keys:
            self.gates[key].set()
        while any(key in self.flights for key in keys):  # noqa: ASYNC110 - looking on from outside
            await asyncio.sleep(0)


async def until_begun(bench: Bench, key: str) -> None:
    while key not in bench.gates:  # noqa: ASYNC110 - looking on from outside
        await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.flights.aclose()


async def test_work_that_an_answer_left_without_is_not_waited_for_again(bench: Bench) -> None:
    first = await bench.miss("slow")
    told = await bench.undecided("slow")
    assert told.code == "DEADLINE_EXCEEDED"
    assert told.reason.startswith(
        "an answer has left without this already, and it is not over yet, waiting for an answer of r.test ("
    )
    await bench.finish("slow")
    assert await first == "slow"  # who waits already goes on waiting
    again = asyncio.create_task(bench.ask("slow"))
    await asyncio.sleep(0)
    assert await again == "slow"


async def test_a_hanging_registry_is_waited_for_now_and_then_and_not_for_long(bench: Bench) -> None:
    waiting = await bench.miss("a")
    probes = await asyncio.gather(*(bench.undecided(key) for key in ("b1", "b2", "b3")))
    for probe in probes:
        assert probe.reason.startswith("r.test keeps images waiting and has finished none since, so this answer waited")
        assert "for 0.0 s only, waiting for an answer of r.test (" in probe.reason
    bench.now += PROBE
    for key in ("c", "d"):
        at_once = await bench.undecided(key)
        assert at_once.reason.endswith("so no answer waits for it; this one is looked at meanwhile")
        assert at_once.code == "DEADLINE_EXCEEDED"
    bench.now += PAUSE
    assert "only" in (await bench.undecided("e")).reason  # the next probe
    assert len(bench.flights) == 7  # everything was begun
    await bench.finish("d")  # by this the registry shows that it is back
    assert await bench.ask("quick") == "quick"
    full = asyncio.create_task(bench.ask("f"))
    await asyncio.sleep(3 * PROBE)
    assert not full.done()  # its answer waits for as long as the request does
    await bench.finish("a", "b1", "b2", "b3", "c", "e", "f")
    assert (await waiting, await full) == ("a", "f")
    assert len(bench.patience) == 0


async def test_a_registry_that_becomes_suspect_again_gets_another_probe_at_once(bench: Bench) -> None:
    for number in range(2):
        await bench.miss(f"slow {number}")
        assert "only" in (await bench.undecided(f"probe {number}")).reason
        bench.now += PROBE
        assert "no answer waits" in (await bench.undecided(f"late {number}")).reason
        await bench.finish(f"late {number}")


async def test_what_takes_no_time_is_answered_whatever_the_registry_does(bench: Bench) -> None:
    await bench.miss("a")
    await bench.undecided("b")
    bench.now += PROBE
    assert "no answer waits" in (await bench.undecided("c")).reason
    assert await bench.ask("quick") == "quick"  # waived, or known already: the registry is not needed


async def test_an_answer_of_a_registry_that_nobody_waits_for_is_nothing_to_remember(bench: Bench) -> None:
    bench.patience.answered(VERIFY)
    assert len(bench.patience) == 0


async def test_one_slow_image_does_not_deny_a_registry_that_works(bench: Bench) -> None:
    await bench.miss("slow")
    for number in range(5):
        assert await bench.ask(f"quick {number}") == f"quick {number}"
    await bench.miss("slower")
    assert await bench.ask("quick again") == "quick again"


async def test_an_answer_without_a_verdict_proves_nothing(bench: Bench) -> None:
    await bench.miss("slow")
    assert (await bench.undecided("quick and broken")).code == "REGISTRY_UNAVAILABLE"
    bench.now += PROBE
    assert "no answer waits" in (await bench.undecided("b")).reason


async def test_whoever_joins_work_of_a_suspect_registry_waits_no_longer_than_who_began_it(bench: Bench) -> None:
    early = asyncio.create_task(bench.ask("b"))
    await until_begun(bench, "b")
    await bench.miss("slow")
    assert "only" in (await bench.undecided("b")).reason
    assert "left without this already" in (await bench.undecided("b")).reason
    assert not early.done()


async def test_the_suspicion_ends_with_the_work_that_caused_it_even_if_that_fails(bench: Bench) -> None:
    hung = await bench.miss("broken")
    assert "only" in (await bench.undecided("also broken")).reason
    bench.now += PROBE
    assert "no answer waits" in (await bench.undecided("broken too")).reason
    await bench.finish("broken", "also broken", "broken too")
    assert isinstance(await asyncio.wait_for(asyncio.gather(hung, return_exceptions=True), 5), list)
    assert len(bench.patience) == 0
    full = asyncio.create_task(bench.ask("next"))
    await asyncio.sleep(3 * PROBE)
    assert not full.done()


@pytest.mark.parametrize(
    "other",
    [VERIFY._replace(host="other.test"), VERIFY._replace(scope="team-a"), VERIFY._replace(generation=2)],
    ids=lambda where: "-".join(map(str, where)),
)
async def test_n68_what_hangs_for_one_costs_no_other_host_tenant_or_configuration_anything(
    bench: Bench, other: Where
) -> None:
    await bench.miss("a")
    await bench.undecided("b")
    bench.now += PROBE
    await bench.undecided("c")
    assert await bench.ask("quick", other) == "quick"
    full = asyncio.create_task(bench.ask("slow for other reasons", other))
    await asyncio.sleep(3 * PROBE)
    assert not full.done()


async def test_what_is_waited_for_elsewhere_casts_no_suspicion_on_the_registry(bench: Bench) -> None:
    bench.waits_for = "http://ocsp.test"
    await bench.miss("a")
    full = asyncio.create_task(bench.ask("b"))
    await asyncio.sleep(3 * PROBE)
    assert not full.done()
    assert "left without" in (await bench.undecided("a")).reason  # nobody waits for that one all the same


async def test_hosts_that_hang_do_not_use_up_the_places_of_those_that_answer() -> None:
    bench = Bench(max_overdue_per_host=3, max_pending_per_host=5)
    other = VERIFY._replace(host="other.test")
    for number in range(2):
        await bench.miss(f"hung {number}")
    await bench.undecided("probe")
    full = await bench.undecided("one more")
    assert (full.code, full.reason) == (
        "OVERLOADED",
        "r.test keeps 3 images waiting and has finished none since; this one is not begun",
    )
    begun = [asyncio.create_task(bench.ask(f"other {number}", other)) for number in range(5)]
    await until_begun(bench, "other 4")
    full = await bench.undecided("other 5", other)
    assert (full.code, full.reason) == ("OVERLOADED", "5 images of other.test are being looked at already")
    joined = asyncio.create_task(bench.ask("other 4", other))  # what is begun may be joined
    await asyncio.sleep(0)
    await bench.finish(*(f"other {number}" for number in range(5)))
    assert await asyncio.gather(*begun, joined) == [*(f"other {number}" for number in range(5)), "other 4"]
    await bench.flights.aclose()
