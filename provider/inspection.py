"""What refers to one image, looked at artifact by artifact until the policy needs no more.

    list of referrers -> those that some verifier judges -> batches, side by side -> reports in the order of the list

Rules:
- What is listed is bounded by the store, what is looked at by each verifier's limit; reaching a limit denies, unless
  what was seen before suffices.
- One artifact that is bad, or cannot be had, does not hide a good one.
- An unexpected exception of a verifier is a denial that is not kept, never an admission and never a crash.

What does not belong here: weighing the reports (policy.py), sharing and keeping of results (executor.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Final

import structlog

from provider.errors import CountersignError, Refused, Undecided
from provider.interfaces import PolicyEnforcer, Store, Verifier
from provider.oci import Descriptor, Subject
from provider.progress import Stage, note, step
from provider.reports import VerifierReport

_log = structlog.get_logger(__name__)

ANY_TYPE: Final = "*"


class Inspection:
    """Looks at the referrers of one subject until the policy needs no more of them.

    Args:
        store: where they are.
        subject: the resolved image.
        policy: says when enough was seen.
        at: the time of the decision (aware, UTC).
        reports: what is known of the image beforehand.
        parallel: artifacts that are looked at side by side.

    Attributes:
        reports: what is known now, in the order of the listing.
    """

    def __init__(
        self,
        store: Store,
        subject: Subject,
        policy: PolicyEnforcer,
        *,
        at: datetime,
        reports: Iterable[VerifierReport],
        parallel: int,
    ) -> None:
        self.reports = list(reports)
        self._parallel = parallel
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
            listing = aiter(self._store.list_referrers(self._subject, only))
            while (artifact := await self._next(listing)) is not None:
                self._enqueue(verifiers, artifact)
                if len(self._batch) >= self._parallel:
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

    async def _next(self, listing: AsyncIterator[Descriptor]) -> Descriptor | None:
        with step("the list of referrers", self._subject.reference.domain):
            return await anext(listing, None)

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
            with step(f"an artifact for {verifier.name}", self._subject.reference.domain, stage=Stage.ARTIFACT):
                report = await verifier.verify(self._store, self._subject, artifact, self._at)
                note("verifier", report.type)
                note("success", report.is_success)
                return report
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
