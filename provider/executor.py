"""From a key that Gatekeeper sent to a verdict: resolve, list referrers, run verifiers, weigh the reports.

    verify(key) -> cached? -> one flight per key -> one flight per (scope, repository, digest) -> preflight -> resolve
                -> list referrers -> verify in batches -> policy -> verdict

Rules:
- This is the only place that reads the clock for a decision: once per decision, passed down as `at`.
- Work is detached from who waits for it: a caller that gives up cancels nobody, and finds the result on asking again.
- Equal work runs once, whatever the spelling of the reference. Results never cross a scope (namespace) or a generation
  of the configuration.
- Verdicts are kept for a time; what could not be decided is never kept.
- An unexpected exception of a verifier is a denial that is not kept, never an admission and never a crash.

What does not belong here: wire formats and deadlines of requests (gatekeeper/), what a signature is (verifiers/),
registries (stores/), how a configuration becomes objects (assembly.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import structlog

from provider.cache import ByteBoundedCache, SingleFlight
from provider.errors import CountersignError, InvalidKey, Refused, Undecided
from provider.interfaces import PolicyEnforcer, Standing, Store, Verifier
from provider.oci import Descriptor, Digest, Reference, Subject
from provider.reports import Verdict, VerifierReport

_log = structlog.get_logger(__name__)

_NAMESPACED_KEY = re.compile(r"\[([^\[\]]*)\](.*)", re.DOTALL)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 label, as Kubernetes demands

ANY_TYPE: Final = "*"
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
    """

    result_ttl_seconds: float = 10.0
    max_result_bytes: int = 64 * 1024 * 1024
    verification_timeout_seconds: float = 30.0
    parallel_artifacts: int = 8
    max_pending: int = 10_000
    keep_tag: bool = False


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
    """

    fragment: bytes
    verdict: Verdict
    reference: Reference

    @property
    def is_success(self) -> bool:
        """The image is admitted."""
        return self.verdict.is_success


class _Kept(NamedTuple):
    """A verdict and the monotonic time at which it stops counting."""

    verdict: Verdict
    expires: float


_SubjectKey = tuple[int, str, str, Digest]  # generation, scope, repository, digest


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

    def use(self, snapshot: Snapshot) -> None:
        """Decide with this snapshot from now on. What is under way finishes with the one it began with, and is not kept
        for anyone who asks afterwards."""
        self._snapshot = snapshot
        self._empty_caches()

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot in use, None before the first."""
        return self._snapshot

    def remembered(self, key: str) -> RenderedVerdict | None:
        """The verdict on a key if one is kept, without waiting for anything."""
        return None if self._snapshot is None else self._answers.get((self._snapshot.generation, key))

    async def verify(self, key: str) -> RenderedVerdict:
        """Decide on one key. Cancelling the caller cancels nothing else.

        Args:
            key: an image, or `[namespace]image`.

        Raises:
            InvalidKey: the key is not an image reference.
            Undecided: no decision was possible this time.
        """
        kept = self.remembered(key)
        if kept is not None:
            return kept
        snapshot = self._require_snapshot()
        identity = (snapshot.generation, key)
        namespace, reference = parse_key(key)
        if identity not in self._key_flights:
            self._refuse_overload()
        return await self._key_flights.run(identity, lambda: self._answer(snapshot, namespace, reference, key))

    async def resolve(self, key: str) -> str:
        """Pin an image to the digest that its tag names now, for mutation.

        A reference with a digest stays as it is. So does an image whose repository no verifier has to look at, because
        the trust policies waive it or do not cover it: nothing is verified that could change until the pull, and the
        cluster's own images must not depend on a registry that is out of reach.

        Returns:
            `repository@digest`, with the setting keep_tag `repository:tag@digest`; or the key.

        Raises:
            InvalidKey: the key is not an image reference.
            Refused: the registry has no such image.
            Undecided: the registry could not be asked.
        """
        snapshot = self._require_snapshot()
        namespace, reference = parse_key(key)
        if reference.digest is not None:
            return key
        _, scope = snapshot.scope(namespace)
        _, judges = _preflight(scope.verifiers, reference)
        if scope.verifiers and not judges:
            return key
        _, subject = await self._resolve(scope, reference)
        tag = f":{reference.tag}" if self._settings.keep_tag else ""
        return f"{reference.repository}{tag}@{subject.digest}"

    async def aclose(self) -> None:
        """End whatever is under way; who waits for it gets Undecided."""
        await self._key_flights.aclose()
        await self._subject_flights.aclose()

    def _require_snapshot(self) -> Snapshot:
        if self._snapshot is None:
            raise Undecided("NOT_READY", "no good configuration is loaded")
        return self._snapshot

    def _refuse_overload(self) -> None:
        pending = len(self._key_flights)
        if pending >= self._settings.max_pending:
            raise Undecided("OVERLOADED", f"{pending} verifications are under way", expected="fewer than max_pending")

    def _empty_caches(self) -> None:
        share = self._settings.max_result_bytes // 2
        self._answers: ByteBoundedCache[tuple[int, str], RenderedVerdict] = ByteBoundedCache(
            share, monotonic=self._monotonic
        )
        self._verdicts: ByteBoundedCache[_SubjectKey, _Kept] = ByteBoundedCache(share, monotonic=self._monotonic)

    async def _answer(self, snapshot: Snapshot, namespace: str, reference: Reference, key: str) -> RenderedVerdict:
        """The flight of one key: find its digest, share the digest's verdict, render it for this spelling."""
        scope_name, scope = snapshot.scope(namespace)
        try:
            async with asyncio.timeout(self._settings.verification_timeout_seconds):
                kept = await self._decide(snapshot.generation, scope_name, scope, reference)
        except TimeoutError:
            limit = self._settings.verification_timeout_seconds
            raise Undecided("DEADLINE_EXCEEDED", f"verification of {reference} took longer than {limit:g} s") from None
        answer = RenderedVerdict(kept.verdict.render(reference), kept.verdict, reference)
        _log_verdict(reference, namespace, kept.verdict)
        if snapshot is self._snapshot:
            size = len(answer.fragment) + len(key) + _ENTRY_OVERHEAD
            self._answers.put((snapshot.generation, key), answer, size=size, expires=kept.expires)
        return answer

    async def _decide(self, generation: int, scope_name: str, scope: Scope, reference: Reference) -> _Kept:
        reports, judges = _preflight(scope.verifiers, reference)
        if not judges:
            return self._keep(_weigh(scope.policy, reports, reference, reference.digest))
        try:
            store, subject = await self._resolve(scope, reference)
        except Refused as error:
            report = VerifierReport.failed(error, message=f"failed to resolve {reference}")
            return self._keep(Verdict(False, reference.digest, (*reports, report), error.code, error.detail))
        identity = (generation, scope_name, reference.repository, subject.digest)
        kept = self._verdicts.get(identity)
        if kept is not None:
            return kept

        async def judge() -> _Kept:
            inspection = _Inspection(self._settings, scope.policy, store, subject, self._clock(), list(reports))
            await inspection.run(judges)
            kept = self._keep(_weigh(scope.policy, inspection.reports, reference, subject.digest))
            size = _ENTRY_OVERHEAD * (1 + len(kept.verdict.reports))
            if self._snapshot is not None and self._snapshot.generation == generation:
                self._verdicts.put(identity, kept, size=size, expires=kept.expires)
            return kept

        return await self._subject_flights.run(identity, judge)

    def _keep(self, verdict: Verdict) -> _Kept:
        return _Kept(verdict, self._monotonic() + self._settings.result_ttl_seconds)

    async def _resolve(self, scope: Scope, reference: Reference) -> tuple[Store, Subject]:
        """The first store that knows the reference. One that cannot be asked ends the search: it might have known."""
        refusal: Refused | None = None
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


class _Inspection:
    """Looks at the referrers of one subject until the policy needs no more of them."""

    def __init__(
        self,
        settings: ExecutorSettings,
        policy: PolicyEnforcer,
        store: Store,
        subject: Subject,
        at: datetime,
        reports: list[VerifierReport],
    ) -> None:
        self.reports = reports
        self._settings = settings
        self._policy = policy
        self._store = store
        self._subject = subject
        self._at = at
        self._attempts: dict[Verifier, int] = {}
        self._exhausted: dict[Verifier, str] = {}  # verifiers at their limit, and the type of the artifact too many
        self._batch: list[tuple[Verifier, Descriptor]] = []

    async def run(self, verifiers: Sequence[Verifier]) -> None:
        """List and verify in listing order; reports come in that order too.

        Raises:
            Undecided: the list could not be had.
        """
        wanted = frozenset(kind for verifier in verifiers for kind in verifier.artifact_types)
        only = next(iter(wanted)) if len(wanted) == 1 and ANY_TYPE not in wanted else None
        try:
            async for artifact in self._store.list_referrers(self._subject, only):
                self._enqueue(verifiers, artifact)
                if len(self._batch) >= self._settings.parallel_artifacts:
                    await self._verify_batch()
                if self._settled(wanted) or len(self._exhausted) == len(verifiers):
                    break
        except Refused as unreadable:
            await self._verify_batch()
            self._fail_unsatisfied(unreadable, only or "", "")
        await self._verify_batch()
        for verifier, kind in self._exhausted.items():
            limit = Refused(
                "SIGNATURE_LIMIT",
                f"more than {verifier.max_attempts} artifacts are listed for {self._subject.digest}, none sufficed",
                expected=f"a good one among the first {verifier.max_attempts}",
            )
            self._fail_unsatisfied(limit, kind, verifier.name)

    def _enqueue(self, verifiers: Sequence[Verifier], artifact: Descriptor) -> None:
        kind = artifact.artifact_type or ""
        if self._policy.satisfied(kind, self.reports):
            return
        for verifier in verifiers:
            if verifier in self._exhausted or not verifier.artifact_types & {kind, ANY_TYPE}:
                continue
            attempts = self._attempts[verifier] = self._attempts.get(verifier, 0) + 1
            if attempts > verifier.max_attempts:
                self._exhausted[verifier] = kind
            else:
                self._batch.append((verifier, artifact))

    def _settled(self, wanted: frozenset[str]) -> bool:
        """No further artifact can change the decision."""
        return ANY_TYPE not in wanted and all(self._policy.satisfied(kind, self.reports) for kind in wanted)

    def _fail_unsatisfied(self, error: Refused, kind: str, verifier: str) -> None:
        if not self._policy.satisfied(kind, self.reports):
            message = f"failed to look at everything that refers to {self._subject.digest}"
            self.reports.append(VerifierReport.failed(error, message=message, name=verifier, artifact_type=kind))

    async def _verify_batch(self) -> None:
        batch, self._batch = self._batch, []
        self.reports.extend(
            await asyncio.gather(*(self._verify_one(verifier, artifact) for verifier, artifact in batch))
        )

    async def _verify_one(self, verifier: Verifier, artifact: Descriptor) -> VerifierReport:
        """One verifier's report on one artifact; what goes wrong is a failed report, never kept as a verdict."""
        error: CountersignError
        try:
            return await verifier.verify(self._store, self._subject, artifact, self._at)
        except Undecided as undecided:
            error = undecided
        except Exception:  # noqa: BLE001 - a fault of a verifier must deny this image, not end the process
            _log.exception("verifier failed unexpectedly", verifier=verifier.name, artifact=str(artifact.digest))
            error = Undecided("INTERNAL", f"the verifier {verifier.name} failed unexpectedly")
        return VerifierReport.failed(
            error,
            message=f"failed to verify artifact: {artifact.digest}",
            name=verifier.name,
            reference_digest=artifact.digest,
            artifact_type=artifact.artifact_type or "",
            undecided=True,
        )


def _log_verdict(reference: Reference, namespace: str, verdict: Verdict) -> None:
    """The decision event, one for each verdict that was worked out: what users of Ratify search their logs for."""
    _log.info(
        f"verification response for subject {reference}",
        namespace=namespace or None,
        is_success=verdict.is_success,
        digest=str(verdict.digest) if verdict.digest else None,
        code=verdict.code or None,
        errorReason=verdict.reason or None,
        reports=[report.to_json(str(reference)) for report in verdict.reports],
    )
