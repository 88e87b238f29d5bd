"""Keys on their way to an answer: deadlines, failures and bounds, without HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider.errors import ConfigurationError, InvalidKey, Refused, Undecided
from provider.gatekeeper.answering import KeyWork, Mutation, Verification
from provider.gatekeeper.settings import ServerSettings
from provider.progress import MAX_WORDS, step
from provider.telemetry import Metrics

AT = datetime(2026, 1, 2, tzinfo=UTC)
SOON = 0.02  # seconds; long enough for what is ready, and nothing else is waited for
LONG = 30.0


@dataclass(frozen=True)
class Verdict:
    """What an executor returns."""

    fragment: bytes
    is_success: bool


ADMITTED = Verdict(b'"isSuccess":true', True)
DENIED = Verdict(b'"isSuccess":false', False)


class Judge:
    """An executor whose answers are given in advance; a key without one hangs until it is let go."""

    def __init__(self, outcomes: dict[str, Any]) -> None:
        self.outcomes = outcomes
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.go = asyncio.Event()
        self.waits_for = ""

    async def verify(self, key: str) -> Any:
        self.asked.append(key)
        if key not in self.outcomes:
            try:
                with step(self.waits_for) if self.waits_for else nullcontext():
                    await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled.append(key)
                raise
        outcome = self.outcomes.get(key, ADMITTED)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    resolve = verify


class Desk:
    """An endpoint with its key work, asked as a request asks it."""

    def __init__(
        self,
        judge: Judge,
        *,
        remembered: Callable[[str], Verdict | None] = lambda _key: None,
        **settings: Any,
    ) -> None:
        self.metrics = Metrics()
        self.settings = ServerSettings(**settings)
        self.work = KeyWork(self.settings, self.metrics)
        self.verification = Verification(judge, remembered, seconds=SOON, clock=lambda: AT)
        self.mutation = Mutation(judge, seconds=SOON)

    async def verify(self, *keys: str, seconds: float = LONG) -> dict[str, Any]:
        return await self._ask(self.verification, keys, seconds)

    async def mutate(self, *keys: str, seconds: float = LONG) -> dict[str, Any]:
        return await self._ask(self.mutation, keys, seconds)

    async def _ask(self, endpoint: Any, keys: tuple[str, ...], seconds: float) -> dict[str, Any]:
        settled = await self.work.settle(endpoint, keys, time.monotonic() + seconds)
        self.answer = endpoint.answer(settled, "t1")
        response: dict[str, Any] = json.loads(self.answer.body)["response"]
        return response

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def values(response: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: item["value"]["isSuccess"] for item in response["items"] if "value" in item}


async def until_idle(desk: Desk) -> None:
    while len(desk.work):  # noqa: ASYNC110 - looking on from outside, as a scrape of the metric does
        await asyncio.sleep(0.001)


async def test_verdicts_come_back_in_the_order_of_the_keys_with_time_and_trace_id() -> None:
    response = await Desk(Judge({"b": DENIED, "a": ADMITTED})).verify("b", "a")
    assert response == {
        "items": [
            {"key": key, "value": {"isSuccess": ok, "traceID": "t1", "timestamp": "2026-01-02T00:00:00.000000Z"}}
            for key, ok in (("b", False), ("a", True))
        ]
    }


async def test_the_three_ways_to_fail_go_to_their_three_places() -> None:
    desk = Desk(
        Judge(
            {
                "signed": ADMITTED,
                "unsigned": DENIED,
                "absent": Refused("IMAGE_NOT_FOUND", "no such tag"),
                "!": InvalidKey("REFERENCE_INVALID", "bad"),
                "throttled": Undecided("REGISTRY_THROTTLED", "429"),
            }
        )
    )
    response = await desk.verify("throttled", "!", "absent", "unsigned", "signed")
    assert [item["key"] for item in response["items"]] == ["!", "absent", "unsigned", "signed"]
    assert values(response) == {"absent": False, "unsigned": False, "signed": True}
    assert response["items"][0]["error"].startswith("REFERENCE_INVALID: bad. ")
    assert response["systemError"].startswith("REGISTRY_THROTTLED: 429 [throttled]. ")
    assert desk.answer.counts == {"succeeded": 1, "refused": 2, "invalid": 1, "undecided": 1}
    assert desk.answer.codes == {"REGISTRY_THROTTLED"}


async def test_n57_at_the_deadline_the_finished_keys_are_answered_and_the_others_named() -> None:
    judge = Judge({"quick": ADMITTED})
    desk = Desk(judge)
    response = await desk.verify("slow", "quick", seconds=SOON)
    assert values(response) == {"quick": True}
    assert response["systemError"].startswith("DEADLINE_EXCEEDED: not decided within 0.02 s [slow]. ")
    assert desk.metric("countersign_deadline_misses_total", endpoint="verify") == 1
    assert len(desk.work) == 1
    assert judge.cancelled == []

    judge.go.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(desk.work) == 0
    assert desk.metric("countersign_unfinished_keys") == 0
    assert values(await desk.verify("slow", "quick")) == {"slow": True, "quick": True}


async def test_n57_late_keys_are_told_with_what_they_wait_for_grouped_and_within_bounds() -> None:
    judge = Judge({})
    judge.waits_for = "an answer of " + "x" * 300 + "\n.test"
    desk = Desk(judge)
    keys = [f"image{number}" for number in range(200)]
    told = (await desk.verify(*keys, seconds=SOON))["systemError"]
    what = judge.waits_for[: MAX_WORDS - 1] + "…"
    assert told.startswith(f"DEADLINE_EXCEEDED: not decided within 0.02 s, waiting for {what} (")
    assert "[image0, image1, " in told
    assert "more]" in told
    assert told.isprintable()
    await desk.work.aclose()


async def test_a_deadline_that_has_passed_still_answers_what_is_remembered() -> None:
    desk = Desk(Judge({}), remembered=lambda key: ADMITTED if key == "warm" else None)
    response = await desk.verify("cold", "warm", seconds=-1.0)
    assert values(response) == {"warm": True}
    assert "[cold]" in response["systemError"]


async def test_a_remembered_verdict_asks_nobody() -> None:
    judge = Judge({"cold": ADMITTED})
    response = await Desk(judge, remembered=lambda key: DENIED if key == "warm" else None).verify("warm", "cold")
    assert values(response) == {"warm": False, "cold": True}
    assert judge.asked == ["cold"]


async def test_a_request_whose_keys_are_all_remembered_waits_for_nothing() -> None:
    desk = Desk(Judge({}), remembered=lambda _key: ADMITTED)
    assert values(await desk.verify("a", "b", seconds=-1.0)) == {"a": True, "b": True}
    assert desk.metric("countersign_deadline_misses_total", endpoint="verify") == 0


async def test_n68_a_caller_that_gives_up_cancels_no_work() -> None:
    judge = Judge({})
    desk = Desk(judge)
    request = asyncio.create_task(desk.verify("a"))
    other = asyncio.create_task(desk.verify("a"))
    await asyncio.sleep(0.001)
    request.cancel()
    await asyncio.wait([request])
    judge.go.set()
    assert values(await other) == {"a": True}
    assert judge.cancelled == []


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("pool exhausted: password=hunter2"),
        OSError(28, "No space left on device"),
        RecursionError(),
        ConfigurationError("CONFIG_INVALID", "leaked password=hunter2"),
    ],
)
async def test_n56_an_unexpected_exception_denies_its_key_only_and_says_nothing_of_itself(failure: Exception) -> None:
    desk = Desk(Judge({"broken": failure, "fine": ADMITTED}))
    with capture_logs() as logs:
        response = await desk.verify("broken", "fine")
    assert values(response) == {"fine": True}
    assert response["systemError"].startswith("INTERNAL: something failed unexpectedly [broken]. ")
    assert "hunter2" not in response["systemError"]
    (event,) = logs
    assert event["key"] == "broken"
    assert event["exc_info"]


async def test_n56_work_that_is_cancelled_from_within_denies() -> None:
    response = await Desk(Judge({"a": asyncio.CancelledError()})).verify("a")
    assert response["items"] == []
    assert response["systemError"].startswith("INTERNAL: the work was cancelled [a]. ")


async def test_an_exception_after_the_deadline_is_logged_and_harms_nobody() -> None:
    judge = Judge({})
    desk = Desk(judge)
    await desk.verify("late", seconds=SOON)
    judge.outcomes["late"] = RuntimeError("too late")
    with capture_logs() as logs:
        judge.go.set()
        await until_idle(desk)
    assert [event["key"] for event in logs] == ["late"]


async def test_keys_beyond_the_places_for_work_are_left_out_as_overload() -> None:
    judge = Judge({})
    desk = Desk(judge, max_unfinished_keys=2)
    response = await desk.verify("a", "b", "c", seconds=SOON)
    assert "OVERLOADED: too many images are being looked at already [c]" in response["systemError"]
    assert judge.asked == ["a", "b"]
    judge.go.set()
    await until_idle(desk)
    assert values(await desk.verify("c")) == {"c": True}


async def test_hung_work_gives_its_place_back_after_a_time() -> None:
    judge = Judge({})
    desk = Desk(judge, max_unfinished_keys=1, background_seconds=0.01)
    await desk.verify("hung", seconds=SOON)
    assert len(desk.work) == 1
    await until_idle(desk)
    assert judge.cancelled == ["hung"]


async def test_closing_ends_what_is_under_way() -> None:
    judge = Judge({})
    desk = Desk(judge)
    await desk.verify("a", "b", seconds=SOON)
    await desk.work.aclose()
    assert len(desk.work) == 0
    assert sorted(judge.cancelled) == ["a", "b"]
    await desk.work.aclose()


async def test_mutation_gives_strings_and_errors_but_never_a_system_error() -> None:
    desk = Desk(
        Judge(
            {
                "app:1": "r.test/app@sha256:00",
                "absent": Refused("IMAGE_NOT_FOUND", "no such tag"),
                "!": InvalidKey("REFERENCE_INVALID", "bad"),
                "throttled": Undecided("REGISTRY_THROTTLED", "429"),
            }
        )
    )
    response = await desk.mutate("throttled", "app:1", "absent", "!", "slow", seconds=SOON)
    assert response["idempotent"] is True
    assert "systemError" not in response
    items = {item.pop("key"): item for item in response["items"]}
    assert list(items) == ["throttled", "app:1", "absent", "!", "slow"]
    assert items.pop("app:1") == {"value": "r.test/app@sha256:00"}
    assert {key: item["error"].split(":")[0] for key, item in items.items()} == {
        "throttled": "REGISTRY_THROTTLED",
        "absent": "IMAGE_NOT_FOUND",
        "!": "REFERENCE_INVALID",
        "slow": "DEADLINE_EXCEEDED",
    }
    assert all("value" not in item for item in items.values())
    assert dict(desk.answer.counts) == {"succeeded": 1, "refused": 1, "invalid": 1, "undecided": 2}
    assert desk.answer.codes == {"REGISTRY_THROTTLED", "DEADLINE_EXCEEDED"}
    await desk.work.aclose()
