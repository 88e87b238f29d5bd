"""From a key that Gatekeeper sent to a verdict: resolve, list referrers, run verifiers, weigh the reports.

    verify(key) -> cached? -> one flight per key -> one flight per (scope, repository, digest) -> preflight -> resolve
                -> list referrers -> verify in batches -> policy -> verdict

Rules:
- This is the only place that reads the clock for a decision: once per decision, passed down as `at`.
- Work is detached from who waits for it: a caller that gives up cancels nobody, and finds the result on asking again.
- Nobody waits for work that has kept an answer waiting in vain, and not for long for a host that did: patience.py.
- Equal work runs once, whatever the spelling of the reference. Results never cross a scope (namespace) or a generation
  of the configuration.
- Verdicts are kept for a time; what could not be decided is never kept.

What does not belong here: wire formats and deadlines of requests (gatekeeper/), which artifacts are looked at
(inspection.py), what a signature is (verifiers/), registries (stores/), how a configuration becomes objects
(assembly.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from provider.cache import ByteBoundedCache, SingleFlight
from provider.decisions import Decision, Source
from provider.errors import InvalidKey, Refused, Undecided
from provider.figures import Figure
from provider.inspection import Inspection
from provider.interfaces import PolicyEnforcer, Standing, Store, Verifier
from provider.oci import Digest, Reference, Subject
from provider.patience import Patience, PatienceSettings, Where, refuse_overdue, waiting_for
from provider.progress import Stage, current, step
from provider.reports import Verdict, VerifierReport

_NAMESPACED_KEY = re.compile(r"\[([^\[\]]*)\](.*)", re.DOTALL)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 label, as Kubernetes demands

_ENTRY_OVERHEAD: Final = 1024  # bytes that a kept verdict costs beside its text, roughly


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """Limits of the executor.

    Attributes:
        result_ttl_seconds: how long a verdict is kept; Ratify keeps 10 s. Gatekeeper adds its own (default 3 min).
        max_result_bytes: bytes of kept verdicts; about 10,000 subjects in 16 MiB.
        verification_timeout_seconds: the most that one verification may take in the background; longer than any
            request's deadline, so that a retry finds slow work finished.
        parallel_artifacts: artifacts of one image that are looked at side by side.
        max_pending: verifications under way at once; more are refused as overload at once instead of queueing.
        keep_tag: mutation keeps the tag before the digest, for people; the runtime pulls by the digest either way.
        patience: how long answers wait for what keeps them waiting.
    """

    result_ttl_seconds: float = 10.0
    max_result_bytes: int = 64 * 1024 * 1024
    verification_timeout_seconds: float = 30.0
    parallel_artifacts: int = 8
    max_pending: int = 10_000
    keep_tag: bool = False
    patience: PatienceSettings = field(default_factory=PatienceSettings)


@dataclass(frozen=True, slots=True)
class Scope:
    """What decides for one namespace, or for the cluster."""

    stores: tuple[Store, ...]
    verifiers: tuple[Verifier, ...]
    policy: PolicyEnforcer


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One good configuration, made of live objects.

    Attributes:
        generation: grows with every change, and so empties every cache of results.
        scopes: by namespace; the key "" is the cluster's. A namespace that is not in here uses the cluster's.
    """

    generation: int
    scopes: Mapping[str, Scope]

    def scope(self, namespace: str) -> tuple[str, Scope]:
        """The scope that decides for a namespace, with the name that its results are kept under.

        Raises:
            Undecided: NOT_READY, when neither the namespace nor the cluster has one.
        """
        for name in (namespace, ""):
            if name in self.scopes:
                return name, self.scopes[name]
        raise Undecided("NOT_READY", "no configuration applies to this key", found=f"namespace {namespace!r}")


@dataclass(frozen=True, slots=True)
class RenderedVerdict:
    """A verdict ready to be answered.

    Attributes:
        fragment: JSON members as reports.Verdict.render makes them; reports.verdict_tail completes them.
        verdict: the decision itself.
        reference: what was asked for, in normal form.
        is_success: the image is admitted.
    """

    fragment: bytes
    verdict: Verdict
    reference: Reference
    is_success: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_success", self.verdict.is_success)


class _Kept(NamedTuple):
    """A verdict and the monotonic time at which it stops counting."""

    verdict: Verdict
    expires: float


class _Question(NamedTuple):
    """A key taken apart, and what decides on it."""

    snapshot: Snapshot
    scope_name: str
    scope: Scope
    namespace: str
    reference: Reference

    def where(self, kind: str) -> Where:
        """Whose part it is to do, for work of a kind."""
        return Where(kind, self.snapshot.generation, self.scope_name, self.reference.domain)


_SubjectKey = tuple[int, str, str, Digest]  # generation, scope, repository, digest
_TagKey = tuple[int, str, str]  # generation, scope, reference


def parse_key(key: str) -> tuple[str, Reference]:
    """Split a key into namespace ("" for none) and image reference.

    Keys are `image` or `[namespace]image`; line breaks are dropped, as Ratify does.

    Raises:
        InvalidKey: REFERENCE_INVALID.
    """
    text = key.replace("\n", "").replace("\r", "")
    match = _NAMESPACED_KEY.fullmatch(text)
    if match is None:
        return "", Reference.parse(text)
    namespace, image = match.groups()
    if namespace and _NAMESPACE.fullmatch(namespace) is None:
        raise InvalidKey("REFERENCE_INVALID", "the key's namespace is not a Kubernetes namespace", found=key)
    return namespace, Reference.parse(image)


def utc_now() -> datetime:
    """The time of a decision."""
    return datetime.now(UTC)


class Executor:
    """Decides on keys with the snapshot it was last given.

    Args:
        settings: limits.
        clock: the time of a decision (aware, UTC).
        monotonic: seconds of a clock that never goes back, for times-to-live.
    """

    def __init__(
        self,
        settings: ExecutorSettings | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or ExecutorSettings()
        self._clock = clock
        self._monotonic = monotonic
        self._snapshot: Snapshot | None = None
        self._empty_caches()
        self._key_flights: SingleFlight[tuple[int, str], RenderedVerdict] = SingleFlight()
        self._subject_flights: SingleFlight[_SubjectKey, _Kept] = SingleFlight()
        self._tag_flights: SingleFlight[_TagKey, Digest] = SingleFlight()
        self._patience = Patience(self._settings.patience, monotonic=monotonic)

    def use(self, snapshot: Snapshot) -> None:
        """Decide with this snapshot from now on. What is under way finishes with the one it began with, and is not kept
        for anyone who asks afterwards."""
        self._snapshot = snapshot
        self._empty_caches()

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot in use, None before the first."""
        return self._snapshot

    @property
    def suspects_any(self) -> bool:
        """Whether a registry is suspect (patience.py), so that who is in no hurry had better not ask now."""
        return self._patience.suspects_any

    def remembered(self, key: str) -> RenderedVerdict | None:
        """The verdict on a key if one is kept, without waiting for anything."""
        return None if self._snapshot is None else self._answers.peek((self._snapshot.generation, key))

    async def verify(self, key: str) -> RenderedVerdict:
        """Decide on one key. Cancelling the caller cancels nothing.

        Args:
            key: an image, or `[namespace]image`.

        Raises:
            InvalidKey: the key is not an image reference.
            Undecided: no decision was possible this time, or none is waited for (patience.py).
        """
        question = self._question(key)
        identity = (question.snapshot.generation, key)
        kept = self._answers.peek(identity)
        if kept is not None:
            return kept
        if identity not in self._key_flights:
            self._refuse_overload()
        return await self._patience.run(
            self._key_flights, identity, lambda: self._answer(question, key), where=question.where("verify")
        )

    async def resolve(self, key: str) -> str:
        """Pin an image to the digest that its tag names now, for mutation.

        A reference with a digest stays as it is. So does an image whose repository no verifier has to look at, because
        the trust policies waive it or do not cover it: nothing is verified that could change until the pull, and the
        cluster's own images must not depend on a registry that is out of reach.

        Returns:
            `repository@digest`, with the setting keep_tag `repository:tag@digest`; or the image as it was written.

        Raises:
            InvalidKey: the key is not an image reference.
            Refused: the registry has no such image.
            Undecided: the registry could not be asked, or is not waited for (patience.py).
        """
        question = self._question(key)
        scope, reference = question.scope, question.reference
        _, judges = _preflight(scope.verifiers, reference)
        if reference.digest is not None or (scope.verifiers and not judges):
            return key.rpartition("]")[2]  # no image that can be parsed has a bracket
        identity = (question.snapshot.generation, question.scope_name, str(reference))
        if identity not in self._tag_flights:
            self._refuse_overload()
        where = question.where("mutate")
        digest = await self._patience.run(
            self._tag_flights, identity, lambda: self._pin(scope, reference, where), where=where
        )
        tag = f":{reference.tag}" if self._settings.keep_tag else ""
        return f"{reference.repository}{tag}@{digest}"

    async def aclose(self) -> None:
        """End whatever is under way; who waits for it gets Undecided."""
        await self._key_flights.aclose()
        await self._subject_flights.aclose()
        await self._tag_flights.aclose()

    def figures(self) -> Iterator[Figure]:
        """What is kept and what is under way now."""
        yield from self._answers.figures("verdicts")
        yield from self._verdicts.figures("verdicts")
        yield Figure("countersign_work_under_way", len(self._key_flights), ("key",))
        yield Figure("countersign_work_under_way", len(self._subject_flights), ("digest",))
        yield Figure("countersign_work_under_way", len(self._tag_flights), ("tag",))
        yield from self._patience.figures()

    def _question(self, key: str) -> _Question:
        """Take a key apart and find what decides on it.

        Raises:
            InvalidKey: REFERENCE_INVALID.
            Undecided: NOT_READY.
        """
        snapshot = self._snapshot
        if snapshot is None:
            raise Undecided("NOT_READY", "no good configuration is loaded")
        namespace, reference = parse_key(key)
        scope_name, scope = snapshot.scope(namespace)
        return _Question(snapshot, scope_name, scope, namespace, reference)

    def _refuse_overload(self) -> None:
        pending = len(self._key_flights) + len(self._tag_flights)
        if pending >= self._settings.max_pending:
            raise Undecided("OVERLOADED", f"{pending} images are being looked at", expected="fewer than max_pending")

    def _empty_caches(self) -> None:
        share = self._settings.max_result_bytes // 2
        self._answers: ByteBoundedCache[tuple[int, str], RenderedVerdict] = ByteBoundedCache(
            share, monotonic=self._monotonic
        )
        self._verdicts: ByteBoundedCache[_SubjectKey, _Kept] = ByteBoundedCache(share, monotonic=self._monotonic)

    async def _answer(self, question: _Question, key: str) -> RenderedVerdict:
        """The flight of one key: find its digest, share the digest's verdict, render it for this spelling."""
        snapshot, reference, began = question.snapshot, question.reference, self._monotonic()
        async with self._time_limit(f"verification of {reference}"):
            kept, source = await self._decide(question)
        answer = RenderedVerdict(kept.verdict.render(reference), kept.verdict, reference)
        Decision(
            key=key,
            namespace=question.namespace,
            reference=reference,
            verdict=kept.verdict,
            source=source,
            generation=snapshot.generation,
            seconds=self._monotonic() - began,
            work=current(),
        ).log()
        if snapshot is self._snapshot:
            size = len(answer.fragment) + len(key) + _ENTRY_OVERHEAD
            self._answers.put((snapshot.generation, key), answer, size=size, expires=kept.expires)
        return answer

    async def _decide(self, question: _Question) -> tuple[_Kept, Source]:
        scope, reference = question.scope, question.reference
        reports, judges = _preflight(scope.verifiers, reference)
        if not judges:
            return self._keep(_weigh(scope.policy, reports, reference, reference.digest)), Source.TRUST_POLICY
        where = question.where("verify")
        try:
            store, subject = await _resolve(scope, reference)
        except Refused as error:
            self._patience.answered(where)
            report = VerifierReport.failed(error, message=f"failed to resolve {reference}")
            verdict = Verdict(False, reference.digest, (*reports, report), error.code, error.detail)
            return self._keep(verdict), Source.VERIFIED
        generation = question.snapshot.generation
        identity = (generation, question.scope_name, reference.repository, subject.digest)
        kept = self._verdicts.peek(identity)
        if kept is not None:
            return kept, Source.KEPT

        async def judge() -> _Kept:
            inspection = Inspection(
                store,
                subject,
                scope.policy,
                at=self._clock(),
                reports=reports,
                parallel=self._settings.parallel_artifacts,
            )
            async with self._time_limit(f"verification of {reference.at_digest(subject.digest)}"):
                await inspection.run(judges)
            kept = self._keep(_weigh(scope.policy, inspection.reports, reference, subject.digest))
            self._patience.answered(where)
            size = _ENTRY_OVERHEAD * (1 + len(kept.verdict.reports))
            if self._snapshot is not None and self._snapshot.generation == generation:
                self._verdicts.put(identity, kept, size=size, expires=kept.expires)
            return kept

        under_way = self._subject_flights.under_way(identity)
        refuse_overdue(under_way)
        source = Source.VERIFIED if under_way is None else Source.SHARED
        return await self._subject_flights.run(identity, judge), source

    async def _pin(self, scope: Scope, reference: Reference, where: Where) -> Digest:
        """The flight of one tag: the digest that it names now."""
        async with self._time_limit(f"the look-up of {reference}"):
            try:
                _, subject = await _resolve(scope, reference)
            except Refused:
                self._patience.answered(where)
                raise
        self._patience.answered(where)
        return subject.digest

    @asynccontextmanager
    async def _time_limit(self, what: str) -> AsyncIterator[None]:
        """The time of one flight.

        Raises:
            Undecided: DEADLINE_EXCEEDED, with what was waited for when the time was up.
        """
        limit = self._settings.verification_timeout_seconds
        loop, flight = asyncio.get_running_loop(), current()
        told: str | None = None

        def expire() -> None:
            nonlocal told
            told = "" if flight is None else waiting_for(flight)
            timeout.reschedule(loop.time())

        timer = loop.call_later(limit, expire)
        try:
            async with asyncio.timeout(None) as timeout:
                yield
        except TimeoutError:
            if told is None:  # somebody else's
                raise
            raise Undecided("DEADLINE_EXCEEDED", f"{what} took longer than {limit:g} s{told}") from None
        finally:
            timer.cancel()

    def _keep(self, verdict: Verdict) -> _Kept:
        return _Kept(verdict, self._monotonic() + self._settings.result_ttl_seconds)


async def _resolve(scope: Scope, reference: Reference) -> tuple[Store, Subject]:
    """The first store that knows the reference. One that cannot be asked ends the search: it might have known."""
    refusal: Refused | None = None
    with step("the digest of its tag", reference.domain):
        for store in scope.stores:
            try:
                return store, await store.resolve(reference)
            except Refused as error:
                refusal = error
    raise refusal or Undecided("NOT_READY", "no store is configured")


def _preflight(
    verifiers: Iterable[Verifier], reference: Reference
) -> tuple[tuple[VerifierReport, ...], tuple[Verifier, ...]]:
    """Ask each verifier what it can say without the registry.

    A verifier whose policy does not cover the repository counts only where no other verifier judges the same type:
    several verifiers, each with a policy for its own repositories, are one way to divide the trust.
    """
    answers = [(verifier, verifier.preflight(reference)) for verifier in verifiers]
    judges = tuple(verifier for verifier, report in answers if report is None)
    waivers = tuple(report for _, report in answers if report is not None and report.is_success)
    judged = {kind for verifier in judges for kind in verifier.artifact_types} | {
        report.artifact_type for report in waivers
    }
    uncovered = tuple(
        report
        for _, report in answers
        if report is not None and not report.is_success and report.artifact_type not in judged
    )
    return waivers + uncovered, judges


def _weigh(
    policy: PolicyEnforcer, reports: Sequence[VerifierReport], reference: Reference, digest: Digest | None
) -> Verdict:
    """Turn reports into a verdict, or raise Undecided."""
    with step("the policy", stage=Stage.POLICY):
        decision = policy.evaluate(reports)
    if decision.standing is Standing.ADMITTED:
        return Verdict(True, digest, tuple(reports))
    code = decision.code or "POLICY_NOT_SATISFIED"
    if decision.standing is Standing.UNDECIDED:
        raise Undecided(code, decision.reason)
    if not reports:
        # By digest: the verdict serves every spelling of the reference.
        what = reference.at_digest(digest) if digest else reference
        error = Refused(code, decision.reason)
        reports = (VerifierReport.failed(error, message=f"failed to verify artifact: {what}"),)
    return Verdict(False, digest, tuple(reports), code, decision.reason)
