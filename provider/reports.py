"""What a verification says: reports of verifiers, and the verdict on a subject in Ratify's value format 0.2.0.

Rules: field names and meanings are Ratify v1.4's, field for field, because templates and users' Rego read them;
`digest` and `code` are additions. Fields that are empty are left out, except `isSuccess`. Rendering is deterministic.

What does not belong here: deciding (policy.py), the ProviderResponse around it (gatekeeper/protocol.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from provider.errors import CountersignError
from provider.oci import Digest, Reference

VALUE_VERSION: Final = "0.2.0"


@dataclass(frozen=True, slots=True)
class VerifierReport:
    """One verifier's word on one artifact.

    Attributes:
        is_success: the artifact verified.
        name: name of the Verifier resource; empty for a report that no verifier made (an unsigned image).
        type: type of the verifier, such as `notation`.
        message: one sentence for people.
        reference_digest: digest of the artifact's manifest.
        artifact_type: artifact type of the artifact.
        code: code of errors.CODES when it failed.
        error_reason: the root cause in words.
        remediation: what to do.
        extensions: facts for people and Rego; JSON values.
        undecided: the failure is no judgement (registry or responder out of reach): the verdict must not be kept.
    """

    is_success: bool
    name: str = ""
    type: str = ""
    message: str = ""
    reference_digest: Digest | None = None
    artifact_type: str = ""
    code: str = ""
    error_reason: str = ""
    remediation: str = ""
    extensions: Mapping[str, Any] = field(default_factory=dict)
    undecided: bool = False

    @classmethod
    def failed(
        cls,
        error: CountersignError,
        *,
        message: str,
        name: str = "",
        type: str = "",  # noqa: A002 - Ratify's field name
        reference_digest: Digest | None = None,
        artifact_type: str = "",
        extensions: Mapping[str, Any] | None = None,
        undecided: bool = False,
    ) -> VerifierReport:
        """A failed report that carries an error's code, reason and remediation."""
        return cls(
            is_success=False,
            name=name,
            type=type,
            message=message,
            reference_digest=reference_digest,
            artifact_type=artifact_type,
            code=error.code,
            error_reason=error.detail,
            remediation=error.remediation,
            extensions=extensions or {},
            undecided=undecided,
        )

    def to_json(self, subject: str) -> dict[str, Any]:
        """The report as Ratify 0.2.0 writes it; `subject` is the reference as asked, in normal form."""
        members: dict[str, Any] = {
            "subject": subject,
            "isSuccess": self.is_success,
            "name": self.name,
            "verifierName": self.name,
            "type": self.type,
            "verifierType": self.type,
            "referenceDigest": str(self.reference_digest or ""),
            "artifactType": self.artifact_type,
            "message": self.message,
            "errorReason": self.error_reason,
            "remediation": self.remediation,
            "code": self.code,
            "extensions": dict(self.extensions),
        }
        return {key: value for key, value in members.items() if key == "isSuccess" or value}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on one subject. It is a decision: what could not be decided is raised as Undecided instead.

    Attributes:
        is_success: the image is admitted.
        digest: the digest the decision is about; None when there is none (refused before resolving).
        reports: in order of listing.
        code: the policy's code when refused, as in errors.CODES.
        reason: the policy's reason when refused.
    """

    is_success: bool
    digest: Digest | None
    reports: tuple[VerifierReport, ...]
    code: str = ""
    reason: str = ""

    def render(self, reference: Reference) -> bytes:
        """Everything of the value that does not change from answer to answer: JSON members without the outer braces."""
        members: dict[str, Any] = {"version": VALUE_VERSION, "isSuccess": self.is_success}
        if self.digest is not None:
            members["digest"] = str(self.digest)
        if self.code:
            members["code"] = self.code
        if self.reports:
            members["verifierReports"] = [report.to_json(str(reference)) for report in self.reports]
        return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()[1:-1]


def verdict_tail(*, trace_id: str, at: datetime) -> bytes:
    """What completes every verdict of one answer to a JSON value: `b"{" + Verdict.render(...) + tail`.

    The trace id and the time are the same for all items of an answer, so they are rendered once and not per item.

    Args:
        trace_id: the request's.
        at: when the answer was made (aware, UTC); fresh also for a verdict that was kept.
    """
    time = (
        at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    )  # strftime takes ten times as long
    return f',"traceID":{json.dumps(trace_id)},"timestamp":"{time}Z"}}'.encode()
