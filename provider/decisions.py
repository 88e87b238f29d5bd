"""The event of a decision: what somebody who looks back has to know, in one line of the log.

    verification response for subject <image>      the words that users of Ratify search for

Rules:
- One event for each verdict that was worked out, whatever the number of requests that waited for it. A verdict that is
  given out again has none: it is the same decision, and Gatekeeper gives verdicts out again without asking.
- No secret: reports and reasons hold none, and a trace id that a caller sent is one of a narrow alphabet.
- The request that started the work is the event's `trace-id`, as of every event; those that waited for it are listed, a
  bounded number of them.

What does not belong here: deciding (executor.py), the format of lines (telemetry.py).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from provider.errors import printable
from provider.oci import Reference
from provider.progress import Step
from provider.reports import Verdict, VerifierReport

MAX_LOGGED_KEY: Final = 1200  # characters: a namespace and a reference, the longest that can be one

_log = structlog.get_logger(__name__)

# Facts of the report that decided, and the extensions that they are taken from.
_FACTS: Final[Mapping[str, str]] = {
    "signer": "SN",
    "issuer": "Issuer",
    "trustPolicy": "trustPolicy",
    "signedAt": "timestamp",
    "certificateNotAfter": "notAfter",
}


class Source(enum.Enum):
    """Where a verdict comes from."""

    VERIFIED = "verified"  # worked out for this very key
    SHARED = "shared"  # worked out for another spelling of the image at the same time
    KEPT = "kept"  # worked out before, for the same digest
    TRUST_POLICY = "trust-policy"  # the trust policies alone decide; the registry was not asked


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and how it came about.

    Attributes:
        key: as it was sent.
        namespace: of the key, empty for none.
        reference: the image, in normal form.
        verdict: what was decided.
        source: where it comes from.
        generation: of the configuration that decided.
        seconds: from when the key was first asked for to the verdict.
        work: the shared work, which knows who waited for it.
    """

    key: str
    namespace: str
    reference: Reference
    verdict: Verdict
    source: Source
    generation: int
    seconds: float
    work: Step | None

    def log(self) -> None:
        """Write the event."""
        verdict, work = self.verdict, self.work
        _log.info(
            f"verification response for subject {self.reference}",
            key=printable(self.key, MAX_LOGGED_KEY),
            namespace=self.namespace or None,
            is_success=verdict.is_success,
            digest=str(verdict.digest) if verdict.digest else None,
            code=verdict.code or None,
            errorReason=verdict.reason or None,
            source=self.source.value,
            generation=self.generation,
            duration_ms=round(self.seconds * 1000, 3),
            **_facts(_deciding(verdict)),
            reports=[report.to_json(str(self.reference)) for report in verdict.reports],
            waiters=work.followers if work is not None and work.followers > 1 else None,
            **_traces(work),
        )


def _deciding(verdict: Verdict) -> VerifierReport | None:
    """The first report that agrees with the verdict: the one that says who signed, or what is wrong."""
    return next((report for report in verdict.reports if report.is_success == verdict.is_success), None)


def _facts(report: VerifierReport | None) -> dict[str, Any]:
    if report is None:
        return {}
    facts = {name: report.extensions.get(extension) for name, extension in _FACTS.items()}
    return {"verifier": report.name or None, "artifact": str(report.reference_digest or "") or None, **facts}


def _traces(work: Step | None) -> dict[str, Any]:
    """The trace ids of the requests that waited, when there is another one than the event's own."""
    return {} if work is None or len(work.trace_ids) < 2 else {"trace-ids": list(work.trace_ids)}
