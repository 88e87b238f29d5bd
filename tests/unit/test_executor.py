"""From key to verdict, with a store and verifiers that answer from a script."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from provider.errors import CountersignError, InvalidKey, Refused, Undecided
from provider.executor import Executor, ExecutorSettings, Scope, Snapshot, parse_key, utc_now
from provider.interfaces import Store
from provider.oci import MEDIA_TYPE_MANIFEST, Descriptor, Digest, Reference, Subject
from provider.patience import PatienceSettings
from provider.policy import ConfigPolicy, Rule
from provider.progress import Step
from provider.reports import VerifierReport

SIGNATURE = "application/vnd.cncf.notary.signature"
SBOM = "application/spdx+json"
AT = datetime(2026, 11, 23, tzinfo=UTC)
ANY_SIGNATURE = ConfigPolicy({SIGNATURE: Rule.ANY}, Rule.ANY)


def artifact(name: str, artifact_type: str = SIGNATURE) -> Descriptor:
    data = name.encode()
    return Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(data), len(data), artifact_type)


@dataclass
class ScriptedStore:
    """Tags and referrers by script; counts what it is asked."""

    tags: dict[str, Digest | CountersignError] = field(default_factory=dict)
    referrers: list[Descriptor | CountersignError] = field(default_factory=list)
    name: str = "store"
    asked: Counter[str] = field(default_factory=Counter)
    gate: asyncio.Event | None = None
    tag_gates: dict[str, asyncio.Event] = field(default_factory=dict)
    filters: list[str | None] = field(default_factory=list)

    async def resolve(self, reference: Reference) -> Subject:
        self.asked["resolve"] += 1
        if reference.digest is not None:
            return Subject(reference, reference.digest)
        if reference.tag in self.tag_gates:
            await self.tag_gates[reference.tag].wait()
        answer = self.tags.get(reference.tag or "", Refused("IMAGE_NOT_FOUND", "no such tag"))
        if isinstance(answer, CountersignError):
            raise answer
        return Subject(reference, answer, Descriptor(MEDIA_TYPE_MANIFEST, answer, 7))

    async def list_referrers(self, subject: Subject, artifact_type: str | None) -> AsyncIterator[Descriptor]:
        self.asked["list"] += 1
        self.filters.append(artifact_type)
        if self.gate is not None:
            await self.gate.wait()
        for entry in self.referrers:
            if isinstance(entry, CountersignError):
                raise entry
            self.asked["listed"] += 1
            yield entry

    async def fetch_manifest(self, subject: Subject, descriptor: Descriptor) -> bytes:
        raise AssertionError("the executor fetches nothing itself")

    async def fetch_blob(self, subject: Subject, descriptor: Descriptor, max_bytes: int) -> bytes:
        raise AssertionError("the executor fetches nothing itself")


@dataclass(eq=False)
class ScriptedVerifier:
    """Accepts what `accepts` says; anything else fails as UNTRUSTED_ROOT or as scripted."""

    accepts: Callable[[Descriptor], bool] = lambda _: True
    artifact_types: frozenset[str] = frozenset({SIGNATURE})
    name: str = "verifier"
    max_attempts: int = 50
    raises: Exception | None = None
    before: VerifierReport | None = None
    seen: list[tuple[Descriptor, datetime]] = field(default_factory=list)

    def preflight(self, reference: Reference) -> VerifierReport | None:
        return self.before

    async def verify(self, store: Store, subject: Subject, artifact: Descriptor, at: datetime) -> VerifierReport:
        self.seen.append((artifact, at))
        if self.raises is not None:
            raise self.raises
        kind = artifact.artifact_type or ""
        if self.accepts(artifact):
            return VerifierReport(True, self.name, "notation", "ok", artifact.digest, kind)
        error = Refused("UNTRUSTED_ROOT", "no trusted certificate")
        return VerifierReport.failed(
            error, message="no", name=self.name, reference_digest=artifact.digest, artifact_type=kind
        )


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def executor(
    store: ScriptedStore,
    *verifiers: ScriptedVerifier,
    policy: ConfigPolicy = ANY_SIGNATURE,
    settings: ExecutorSettings | None = None,
    clock: Clock | None = None,
) -> Executor:
    made = Executor(settings, clock=lambda: AT, monotonic=clock or Clock())
    made.use(Snapshot(1, {"": Scope((store,), verifiers, policy)}))
    return made


def signed(*names: str) -> ScriptedStore:
    return ScriptedStore({"v1": Digest.of(b"image"), "v2": Digest.of(b"image")}, [artifact(name) for name in names])


KEY = "reg.example.com/app:v1"


async def test_a_signed_image_is_admitted_with_its_digest_and_report() -> None:
    answer = await executor(signed("s"), ScriptedVerifier()).verify(KEY)
    value = json.loads(b"{" + answer.fragment + b"}")
    assert answer.is_success
    assert value["isSuccess"] is True
    assert value["digest"] == str(Digest.of(b"image"))
    assert [report["referenceDigest"] for report in value["verifierReports"]] == [str(Digest.of(b"s"))]


async def test_an_unsigned_image_is_refused_and_says_so() -> None:
    verdict = (await executor(signed(), ScriptedVerifier()).verify(KEY)).verdict
    assert (verdict.is_success, verdict.code) == (False, "UNSIGNED")
    assert verdict.reports[0].message == f"failed to verify artifact: reg.example.com/app@{Digest.of(b'image')}"


async def test_an_image_that_does_not_exist_is_refused() -> None:
    verdict = (await executor(signed("s"), ScriptedVerifier()).verify("reg.example.com/app:v9")).verdict
    assert (verdict.is_success, verdict.code, verdict.digest) == (False, "IMAGE_NOT_FOUND", None)


@pytest.mark.parametrize("key", ["", "NGINX", "[Bad Namespace]nginx", "[a]b]img", "[a][b]img"])
async def test_n34_a_key_that_is_no_image_is_the_keys_own_error(key: str) -> None:
    with pytest.raises(InvalidKey):
        await executor(signed("s"), ScriptedVerifier()).verify(key)


def test_keys_carry_a_namespace_in_brackets_and_lose_line_breaks() -> None:
    assert parse_key("[team-a]ng\ninx\r") == ("team-a", Reference.parse("nginx"))
    assert parse_key("[]nginx") == ("", Reference.parse("nginx"))


def test_the_clock_of_decisions_is_aware_and_utc() -> None:
    assert utc_now().tzinfo is UTC


# -- which artifacts are looked at ------------------------------------------------------------------------------------


async def test_a_broken_signature_listed_first_does_not_hide_a_good_one() -> None:
    good = Digest.of(b"good")
    verifier = ScriptedVerifier(accepts=lambda artifact: artifact.digest == good)
    verdict = (await executor(signed("bad", "good"), verifier).verify(KEY)).verdict
    assert verdict.is_success
    assert [report.is_success for report in verdict.reports] == [False, True]


async def test_an_artifact_that_cannot_be_had_does_not_hide_a_good_one() -> None:
    store = signed("gone", "good")
    failing = ScriptedVerifier(accepts=lambda artifact: artifact.digest == Digest.of(b"good"))

    async def verify(store: Store, subject: Subject, artifact: Descriptor, at: datetime) -> VerifierReport:
        if artifact.digest == Digest.of(b"gone"):
            raise Undecided("REGISTRY_UNAVAILABLE", "down")
        return await ScriptedVerifier.verify(failing, store, subject, artifact, at)

    failing.verify = verify  # type: ignore[method-assign]
    assert (await executor(store, failing).verify(KEY)).is_success


async def test_n14_no_more_artifacts_are_tried_than_allowed() -> None:
    names = [f"s{number}" for number in range(20)]
    verifier = ScriptedVerifier(accepts=lambda artifact: artifact.digest == Digest.of(b"s19"), max_attempts=5)
    store = signed(*names)
    verdict = (await executor(store, verifier).verify(KEY)).verdict
    assert (verdict.is_success, verdict.code) == (False, "SIGNATURE_LIMIT")
    assert len(verifier.seen) == 5
    assert store.asked["listed"] == 6


async def test_exactly_as_many_artifacts_as_allowed_are_no_excess() -> None:
    verifier = ScriptedVerifier(accepts=lambda _: False, max_attempts=2)
    assert (await executor(signed("a", "b"), verifier).verify(KEY)).verdict.code == "UNTRUSTED_ROOT"


async def test_an_early_success_ends_the_listing() -> None:
    store = signed(*(f"s{number}" for number in range(100)))
    settings = ExecutorSettings(parallel_artifacts=4)
    assert (await executor(store, ScriptedVerifier(), settings=settings).verify(KEY)).is_success
    assert store.asked["listed"] == 4


async def test_the_registry_filters_where_one_type_is_wanted_and_lists_all_where_several_are() -> None:
    one, two, star = signed("s"), signed("s"), signed("s")
    await executor(one, ScriptedVerifier()).verify(KEY)
    await executor(two, ScriptedVerifier(), ScriptedVerifier(artifact_types=frozenset({SBOM}))).verify(KEY)
    await executor(star, ScriptedVerifier(artifact_types=frozenset({"*"}))).verify(KEY)
    assert (one.filters, two.filters, star.filters) == ([SIGNATURE], [None], [None])


async def test_every_verifier_that_matches_runs_and_others_do_not() -> None:
    store = signed("s")
    store.referrers.append(artifact("b", SBOM))
    store.referrers.append(artifact("x", "application/other"))
    notation, star, sbom = (
        ScriptedVerifier(name="notation"),
        ScriptedVerifier(name="star", artifact_types=frozenset({"*"})),
        ScriptedVerifier(name="sbom", artifact_types=frozenset({SBOM})),
    )
    policy = ConfigPolicy({SIGNATURE: Rule.ALL, SBOM: Rule.ALL}, Rule.ALL)
    verdict = (await executor(store, notation, star, sbom, policy=policy).verify(KEY)).verdict
    assert verdict.is_success
    assert [(report.name, report.artifact_type) for report in verdict.reports] == [
        ("notation", SIGNATURE),
        ("star", SIGNATURE),
        ("star", SBOM),
        ("sbom", SBOM),
        ("star", "application/other"),
    ]


async def test_a_type_that_is_settled_is_not_looked_at_again_while_another_is_open() -> None:
    store = signed("s1", "s2")
    store.referrers.append(artifact("b", SBOM))
    notation, sbom = ScriptedVerifier(), ScriptedVerifier(name="sbom", artifact_types=frozenset({SBOM}))
    policy = ConfigPolicy({SIGNATURE: Rule.ANY, SBOM: Rule.ANY}, Rule.ANY)
    made = executor(store, notation, sbom, policy=policy, settings=ExecutorSettings(parallel_artifacts=1))
    assert (await made.verify(KEY)).is_success
    assert [seen.digest for seen, _ in notation.seen] == [Digest.of(b"s1")]


@pytest.mark.parametrize(
    "raised", [Refused("REFERRERS_LIMIT", "too many"), Refused("MANIFEST_INVALID", "broken index")]
)
async def test_n13_a_list_that_cannot_be_read_to_its_end_denies_unless_a_good_one_was_found(raised: Refused) -> None:
    bad_end = signed("s")
    bad_end.referrers.append(raised)
    assert (await executor(bad_end, ScriptedVerifier()).verify(KEY)).is_success
    denied = (await executor(bad_end, ScriptedVerifier(accepts=lambda _: False)).verify(KEY)).verdict
    assert not denied.is_success
    assert raised.code in {report.code for report in denied.reports}
    two_types = executor(bad_end, ScriptedVerifier(), ScriptedVerifier(artifact_types=frozenset({SBOM})))
    assert not (await two_types.verify(KEY)).is_success


# -- what cannot be decided -------------------------------------------------------------------------------------------


async def test_a_registry_out_of_reach_is_no_verdict_and_is_asked_again() -> None:
    store = signed("s")
    store.tags["v1"] = Undecided("REGISTRY_UNAVAILABLE", "down")
    made = executor(store, ScriptedVerifier())
    for _ in range(2):
        with pytest.raises(Undecided) as caught:
            await made.verify(KEY)
        assert caught.value.code == "REGISTRY_UNAVAILABLE"
    store.tags["v1"] = Digest.of(b"image")
    assert (await made.verify(KEY)).is_success


async def test_n56_a_verifier_that_breaks_denies_without_keeping_it() -> None:
    verifier = ScriptedVerifier(raises=RuntimeError("boom with a secret"))
    made = executor(signed("s"), verifier)
    with capture_logs() as logs, pytest.raises(Undecided) as caught:
        await made.verify(KEY)
    assert caught.value.code == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert logs[0]["event"] == "verifier failed unexpectedly"
    verifier.raises = None
    assert (await made.verify(KEY)).is_success


async def test_n58_without_configuration_nothing_is_decided() -> None:
    empty = Executor()
    with pytest.raises(Undecided, match="no good configuration"):
        await empty.verify(KEY)
    with pytest.raises(Undecided, match="no good configuration"):
        await empty.resolve(KEY)
    assert empty.snapshot is None
    assert empty.remembered(KEY) is None
    empty.use(Snapshot(1, {"team-a": Scope((), (), ANY_SIGNATURE)}))
    with pytest.raises(Undecided, match="no configuration applies"):
        await empty.verify(KEY)
    with pytest.raises(Undecided, match="no store"):
        await empty.resolve("[team-a]nginx")


async def test_n58_without_verifiers_nothing_is_admitted() -> None:
    assert (await executor(signed("s")).verify(KEY)).verdict.code == "UNSIGNED"


async def test_a_verification_that_takes_too_long_is_given_up() -> None:
    store = signed("s")
    store.gate = asyncio.Event()
    made = executor(store, ScriptedVerifier(), settings=ExecutorSettings(verification_timeout_seconds=0.01))
    with pytest.raises(Undecided) as caught:
        await made.verify(KEY)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert caught.value.reason.startswith(
        f"verification of {KEY} took longer than 0.01 s, waiting for the list of refe"
    )


async def test_a_tag_whose_look_up_takes_too_long_is_given_up() -> None:
    store = signed("s")
    store.tag_gates["v1"] = asyncio.Event()
    made = executor(store, ScriptedVerifier(), settings=ExecutorSettings(verification_timeout_seconds=0.01))
    with pytest.raises(Undecided, match=r"took longer than 0\.01 s, waiting for the digest of its tag"):
        await made.resolve(KEY)


async def test_a_store_that_fails_with_a_time_limit_of_its_own_is_not_told_as_ours() -> None:
    class Impatient(ScriptedStore):
        async def resolve(self, reference: Reference) -> Subject:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await executor(Impatient(), ScriptedVerifier()).verify(KEY)


async def test_closing_ends_what_is_under_way() -> None:
    store = signed("s")
    store.gate = asyncio.Event()
    made = executor(store, ScriptedVerifier())
    waiting = asyncio.create_task(made.verify(KEY))
    await asyncio.sleep(0.01)
    await made.aclose()
    with pytest.raises(Undecided):
        await waiting


async def test_overload_is_said_at_once() -> None:
    store = signed("s")
    store.gate = asyncio.Event()
    made = executor(store, ScriptedVerifier(), settings=ExecutorSettings(max_pending=1))
    waiting = asyncio.create_task(made.verify(KEY))
    await asyncio.sleep(0)
    with pytest.raises(Undecided) as caught:
        await made.verify("reg.example.com/app:v2")
    assert caught.value.code == "OVERLOADED"
    joined = asyncio.create_task(made.verify(KEY))
    await asyncio.sleep(0)
    store.gate.set()
    assert (await waiting).is_success
    assert (await joined).is_success


# -- nobody waits in vain twice ---------------------------------------------------------------------------------------


async def late(made: Executor, key: str, *, resolve: bool = False) -> asyncio.Task[object]:
    """Ask, and let the answer leave without the key."""
    request = Step()
    task: asyncio.Task[object] = request.task(made.resolve(key) if resolve else made.verify(key))
    while not request.describe():  # noqa: ASYNC110 - looking on from outside
        await asyncio.sleep(0)
    request.miss()
    return task


def impatient() -> ExecutorSettings:
    """Settings with which nobody waits for a suspect registry."""
    return ExecutorSettings(patience=PatienceSettings(probe_seconds=0))


async def test_what_an_answer_left_without_is_not_waited_for_again_and_its_result_is_used() -> None:
    store = signed("s")
    store.gate = asyncio.Event()
    made = executor(store, ScriptedVerifier())
    waiting = await late(made, KEY)
    with pytest.raises(Undecided, match="waiting for the list of referrers"):
        await made.verify(KEY)
    other_spelling = f"reg.example.com/app@{Digest.of(b'image')}"
    with pytest.raises(Undecided, match="has left without this already"):
        await made.verify(other_spelling)
    store.gate.set()
    await waiting
    assert (await made.verify(KEY)).is_success
    assert (await made.verify(other_spelling)).is_success
    assert store.asked["list"] == 1


async def test_a_registry_that_hangs_is_not_waited_for_and_one_that_works_is() -> None:
    store = signed("s")
    store.tag_gates["v1"] = asyncio.Event()
    made = executor(store, ScriptedVerifier(), settings=impatient())
    waiting = await late(made, KEY)
    store.tag_gates["v2"] = asyncio.Event()
    with pytest.raises(Undecided, match="keeps images waiting"):
        await made.verify("reg.example.com/app:v2")
    assert (await made.verify("other.example.com/app:v3")).verdict.code == "IMAGE_NOT_FOUND"
    store.tag_gates["v2"].set()
    while made.remembered("reg.example.com/app:v2") is None:  # noqa: ASYNC110 - in the background
        await asyncio.sleep(0)
    assert not waiting.done()
    assert (await made.verify(f"reg.example.com/other@{Digest.of(b'image')}")).is_success  # lifted
    waiting.cancel()
    await made.aclose()


@pytest.mark.parametrize("resolve", [False, True])
async def test_an_image_that_does_not_exist_shows_that_its_registry_works(resolve: bool) -> None:
    store = signed("s")
    store.tag_gates = {"v1": asyncio.Event(), "v9": asyncio.Event(), "v2": asyncio.Event()}
    made = executor(store, ScriptedVerifier(), settings=impatient())
    ask = made.resolve if resolve else made.verify
    waiting = await late(made, KEY, resolve=resolve)
    with pytest.raises(Undecided, match="no answer waits for it"):
        await ask("reg.example.com/app:v9")
    store.tag_gates["v9"].set()
    await asyncio.sleep(0.01)
    full = asyncio.create_task(ask("reg.example.com/app:v2"))
    await asyncio.sleep(0.01)
    assert not full.done()
    for task in (waiting, full):
        task.cancel()
    await made.aclose()


async def test_a_verification_that_outlives_the_answers_that_waited_for_it_ends_quietly() -> None:
    store = signed("s")
    store.gate = asyncio.Event()
    made = executor(store, ScriptedVerifier(), settings=ExecutorSettings(verification_timeout_seconds=0.05))
    first = asyncio.create_task(made.verify(KEY))
    await asyncio.sleep(0.04)
    second = asyncio.create_task(made.verify(f"reg.example.com/app@{Digest.of(b'image')}"))
    with pytest.raises(Undecided):
        await first
    with pytest.raises(Undecided):
        await second
    store.gate.set()
    assert (await made.verify(KEY)).is_success


async def test_a_new_configuration_is_waited_for_whatever_the_old_one_did() -> None:
    hangs, works = signed("s"), signed("s")
    hangs.gate = asyncio.Event()
    made = executor(hangs, ScriptedVerifier(), settings=impatient())
    waiting = await late(made, KEY)
    made.use(Snapshot(2, {"": Scope((works,), (ScriptedVerifier(),), ANY_SIGNATURE)}))
    assert (await made.verify(KEY)).is_success
    waiting.cancel()
    await made.aclose()


async def test_pods_of_one_deployment_share_the_look_up_of_their_tag() -> None:
    store = signed("s")
    store.tag_gates["v1"] = asyncio.Event()
    made = executor(store, ScriptedVerifier())
    waiting = [asyncio.create_task(made.resolve(KEY)) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    store.tag_gates["v1"].set()
    assert set(await asyncio.gather(*waiting)) == {f"reg.example.com/app@{Digest.of(b'image')}"}
    assert store.asked["resolve"] == 1
    await made.resolve(KEY)
    assert store.asked["resolve"] == 2  # nothing of it is kept: the tag may have moved


async def test_mutation_that_hangs_is_not_waited_for_again_and_does_not_touch_verification() -> None:
    store = signed("s")
    store.tag_gates["v1"] = asyncio.Event()
    made = executor(store, ScriptedVerifier(), settings=impatient())
    waiting = await late(made, KEY, resolve=True)
    with pytest.raises(Undecided, match="waiting for the digest of its tag"):
        await made.resolve(KEY)
    store.tag_gates["v2"] = asyncio.Event()
    with pytest.raises(Undecided, match="no answer waits for it"):
        await made.resolve("reg.example.com/app:v2")
    assert (await made.verify(f"reg.example.com/app@{Digest.of(b'image')}")).is_success
    store.tag_gates["v1"].set()
    assert await waiting == f"reg.example.com/app@{Digest.of(b'image')}"
    await made.aclose()


async def test_overload_counts_the_look_ups_of_mutation_too() -> None:
    store = signed("s")
    store.tag_gates["v1"] = asyncio.Event()
    made = executor(store, ScriptedVerifier(), settings=ExecutorSettings(max_pending=1))
    waiting = asyncio.create_task(made.resolve(KEY))
    await asyncio.sleep(0)
    for ask in (made.resolve, made.verify):
        with pytest.raises(Undecided) as caught:
            await ask("reg.example.com/app:v2")
        assert caught.value.code == "OVERLOADED"
    store.tag_gates["v1"].set()
    await waiting


# -- the policy of a verifier decides early ---------------------------------------------------------------------------


def waived() -> VerifierReport:
    return VerifierReport(True, "verifier", "notation", "skip", None, SIGNATURE)


def uncovered() -> VerifierReport:
    error = Refused("NO_TRUST_POLICY", "no statement")
    return VerifierReport.failed(error, message="no", artifact_type=SIGNATURE)


async def test_a_waived_repository_needs_no_registry() -> None:
    store = signed("s")
    answer = await executor(store, ScriptedVerifier(before=waived())).verify(KEY)
    assert answer.is_success
    assert store.asked == {}


async def test_a_repository_that_no_trust_policy_covers_is_refused_without_the_registry() -> None:
    store = signed("s")
    verdict = (await executor(store, ScriptedVerifier(before=uncovered())).verify(KEY)).verdict
    assert (verdict.is_success, verdict.code, store.asked) == (False, "NO_TRUST_POLICY", {})


@pytest.mark.parametrize("other", [ScriptedVerifier(name="covers"), ScriptedVerifier(name="waives", before=waived())])
async def test_verifiers_may_divide_the_repositories_among_them(other: ScriptedVerifier) -> None:
    policy = ConfigPolicy({SIGNATURE: Rule.ALL}, Rule.ALL)
    made = executor(signed("s"), ScriptedVerifier(before=uncovered()), other, policy=policy)
    assert (await made.verify(KEY)).is_success


async def test_a_waiver_for_one_type_leaves_another_required() -> None:
    policy = ConfigPolicy({SIGNATURE: Rule.ANY, SBOM: Rule.ANY}, Rule.ANY)
    sbom = ScriptedVerifier(name="sbom", artifact_types=frozenset({SBOM}))
    made = executor(signed(), ScriptedVerifier(before=waived()), sbom, policy=policy)
    assert (await made.verify(KEY)).verdict.code == "UNSIGNED"


# -- equal work runs once, and results do not outlive their time ------------------------------------------------------


async def test_one_verification_serves_every_spelling_and_waiter() -> None:
    store, verifier = signed("s"), ScriptedVerifier()
    store.gate = asyncio.Event()
    made = executor(store, verifier)
    keys = [KEY, KEY, "reg.example.com/app:v2", f"reg.example.com/app@{Digest.of(b'image')}"]
    waiting = [asyncio.create_task(made.verify(key)) for key in keys]
    await asyncio.sleep(0.01)
    store.gate.set()
    answers = await asyncio.gather(*waiting)
    assert [answer.is_success for answer in answers] == [True] * 4
    assert (store.asked["list"], len(verifier.seen)) == (1, 1)
    assert [str(answer.reference) for answer in answers][2:] == keys[2:]


async def test_n68_a_waiter_that_gives_up_cancels_nobody() -> None:
    store = signed("s")
    store.gate = asyncio.Event()
    made = executor(store, ScriptedVerifier())
    first, second = asyncio.create_task(made.verify(KEY)), asyncio.create_task(made.verify(KEY))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    store.gate.set()
    assert (await second).is_success
    assert store.asked["list"] == 1


async def test_verdicts_are_kept_for_their_time_and_no_longer() -> None:
    store, clock = signed("s"), Clock()
    made = executor(store, ScriptedVerifier(), clock=clock)
    first = await made.verify(KEY)
    assert made.remembered(KEY) is first
    clock.seconds = 9.9
    await made.verify(KEY)
    await made.verify("reg.example.com/app:v2")
    assert store.asked["list"] == 1
    clock.seconds = 10.1
    await made.verify(KEY)
    assert store.asked["list"] == 2


async def test_n27_a_tag_that_moves_is_seen_and_each_answer_is_about_one_digest() -> None:
    store, clock = signed("s"), Clock()
    made = executor(store, ScriptedVerifier(), clock=clock)
    before = await made.verify(KEY)
    store.tags["v1"] = Digest.of(b"moved")
    clock.seconds = 11
    after = await made.verify(KEY)
    assert (before.verdict.digest, after.verdict.digest) == (Digest.of(b"image"), Digest.of(b"moved"))
    assert await made.resolve(KEY) == f"reg.example.com/app@{Digest.of(b'moved')}"


async def test_n36_a_new_configuration_counts_at_once() -> None:
    store = signed("s")
    made = executor(store, ScriptedVerifier())
    assert (await made.verify(KEY)).is_success
    made.use(Snapshot(2, {"": Scope((store,), (ScriptedVerifier(accepts=lambda _: False),), ANY_SIGNATURE)}))
    assert not (await made.verify(KEY)).is_success


async def test_n36_what_an_old_configuration_finishes_is_not_kept_for_the_new() -> None:
    store = signed("s")
    store.gate = asyncio.Event()
    made = executor(store, ScriptedVerifier())
    old = asyncio.create_task(made.verify(KEY))
    await asyncio.sleep(0.01)
    made.use(Snapshot(2, {"": Scope((store,), (ScriptedVerifier(accepts=lambda _: False),), ANY_SIGNATURE)}))
    store.gate.set()
    assert (await old).is_success
    assert not (await made.verify(KEY)).is_success


async def test_n36_an_admission_in_one_namespace_does_not_serve_another() -> None:
    store = signed("s")
    strict = ScriptedVerifier(accepts=lambda _: False)
    made = Executor(clock=lambda: AT)
    made.use(
        Snapshot(
            1,
            {
                "": Scope((store,), (ScriptedVerifier(),), ANY_SIGNATURE),
                "team-b": Scope((store,), (strict,), ANY_SIGNATURE),
            },
        )
    )
    answers = [await made.verify(f"{prefix}{KEY}") for prefix in ("", "[team-a]", "[team-b]")]
    assert [answer.is_success for answer in answers] == [True, True, False]


async def test_one_clock_read_serves_a_whole_decision() -> None:
    times = iter([AT, datetime(2030, 1, 1, tzinfo=UTC)])
    verifier = ScriptedVerifier(accepts=lambda _: False)
    made = Executor(clock=lambda: next(times))
    made.use(Snapshot(1, {"": Scope((signed("a", "b", "c"),), (verifier,), ANY_SIGNATURE)}))
    await made.verify(KEY)
    assert {at for _, at in verifier.seen} == {AT}


# -- stores and mutation ----------------------------------------------------------------------------------------------


async def test_the_first_store_that_knows_the_image_serves_it() -> None:
    knows_not, knows = ScriptedStore(), signed("s")
    made = Executor(clock=lambda: AT)
    made.use(Snapshot(1, {"": Scope((knows_not, knows), (ScriptedVerifier(),), ANY_SIGNATURE)}))
    assert (await made.verify(KEY)).is_success
    assert knows_not.asked == {"resolve": 1}


async def test_mutation_pins_tags_and_leaves_digests_alone() -> None:
    made = executor(signed("s"), ScriptedVerifier())
    assert await made.resolve("[ns]reg.example.com/app:v1") == f"reg.example.com/app@{Digest.of(b'image')}"
    for pinned in (f"reg.example.com/app:v1@{Digest.of(b'other')}", f"nginx@{Digest.of(b'other')}"):
        assert await made.resolve(pinned) == pinned
        assert await made.resolve(f"[ns]{pinned}") == pinned
    assert await made.resolve("reg.example.com/app@" + str(Digest.of(b"a"))) == f"reg.example.com/app@{Digest.of(b'a')}"
    with pytest.raises(Refused):
        await made.resolve("reg.example.com/app:v9")
    with pytest.raises(InvalidKey):
        await made.resolve("A B")


async def test_mutation_keeps_the_tag_where_that_is_wanted() -> None:
    made = executor(signed("s"), ScriptedVerifier(), settings=ExecutorSettings(keep_tag=True))
    assert await made.resolve(KEY) == f"{KEY}@{Digest.of(b'image')}"


@pytest.mark.parametrize("before", [waived(), uncovered()])
async def test_mutation_leaves_alone_what_no_verifier_looks_at(before: VerifierReport) -> None:
    store = signed("s")
    made = executor(store, ScriptedVerifier(before=before))
    assert await made.resolve("nginx") == "nginx"
    assert await made.resolve("[team-a]nginx:1") == "nginx:1"
    assert store.asked == {}


async def test_mutation_writes_short_names_out_because_the_pull_must_go_where_the_look_up_went() -> None:
    made = executor(signed("s"), ScriptedVerifier())
    assert await made.resolve("app:v1") == f"docker.io/library/app@{Digest.of(b'image')}"


async def test_mutation_pins_what_one_verifier_waives_and_another_looks_at() -> None:
    made = executor(signed("s"), ScriptedVerifier(before=waived()), ScriptedVerifier(name="looks"))
    assert await made.resolve(KEY) == f"reg.example.com/app@{Digest.of(b'image')}"


async def test_mutation_pins_with_the_resources_of_the_namespace() -> None:
    cluster, tenant = signed("s"), ScriptedStore({"v1": Digest.of(b"theirs")})
    made = Executor(clock=lambda: AT)
    verifiers = (ScriptedVerifier(),)
    made.use(
        Snapshot(
            1,
            {
                "": Scope((cluster,), verifiers, ANY_SIGNATURE),
                "team-a": Scope((tenant,), verifiers, ANY_SIGNATURE),
            },
        )
    )
    assert await made.resolve(f"[team-a]{KEY}") == f"reg.example.com/app@{Digest.of(b'theirs')}"
    assert await made.resolve(KEY) == f"reg.example.com/app@{Digest.of(b'image')}"


async def test_mutation_without_verifiers_pins_all_the_same() -> None:
    assert await executor(signed("s")).resolve(KEY) == f"reg.example.com/app@{Digest.of(b'image')}"


@pytest.mark.parametrize("code", ["REGISTRY_UNAVAILABLE", "REGISTRY_THROTTLED"])
async def test_mutation_gives_no_image_where_the_registry_gives_no_digest(code: str) -> None:
    store = signed("s")
    store.tags["v1"] = Undecided(code, "no")
    made = executor(store, ScriptedVerifier())
    with pytest.raises(Undecided) as caught:
        await made.resolve(KEY)
    assert caught.value.code == code
    store.tags["v1"] = Digest.of(b"image")
    assert await made.resolve(KEY) == f"reg.example.com/app@{Digest.of(b'image')}"


# -- the log ----------------------------------------------------------------------------------------------------------


async def test_each_decision_is_logged_once_in_the_words_that_users_search_for() -> None:
    made = executor(signed(), ScriptedVerifier())
    with capture_logs() as logs:
        await made.verify(KEY)
        await made.verify(KEY)
    events: Sequence[dict[str, object]] = [dict(entry) for entry in logs]
    assert [entry["event"] for entry in events] == [f"verification response for subject {KEY}"]
    assert events[0]["errorReason"] == f"no artifact of the required type {SIGNATURE} is attached"
    assert events[0]["code"] == "UNSIGNED"
