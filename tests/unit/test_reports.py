"""The value that templates read: Ratify's 0.2.0, field for field, with digest and code."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from provider.errors import Refused
from provider.oci import Digest, Reference
from provider.reports import Verdict, VerifierReport, verdict_tail

DIGEST = Digest.of(b"image")
REFERENCE = Reference.parse("reg.example.com/app:v1")
AT = datetime(2026, 11, 23, 8, 30, 1, 250_000, tzinfo=UTC)


def answer(verdict: Verdict) -> dict[str, object]:
    value = json.loads(b"{" + verdict.render(REFERENCE) + verdict_tail(trace_id='t"1', at=AT))
    assert isinstance(value, dict)
    return value


def test_an_admission_has_every_field_that_ratify_writes() -> None:
    report = VerifierReport(
        is_success=True,
        name="verifier-notation",
        type="notation",
        message="Notation signature verification success",
        reference_digest=Digest.of(b"signature"),
        artifact_type="application/vnd.cncf.notary.signature",
        extensions={"Issuer": "CN=root", "SN": "CN=leaf"},
    )
    assert answer(Verdict(True, DIGEST, (report,))) == {
        "version": "0.2.0",
        "isSuccess": True,
        "digest": str(DIGEST),
        "traceID": 't"1',
        "timestamp": "2026-11-23T08:30:01.250000Z",
        "verifierReports": [
            {
                "subject": "reg.example.com/app:v1",
                "isSuccess": True,
                "name": "verifier-notation",
                "verifierName": "verifier-notation",
                "type": "notation",
                "verifierType": "notation",
                "referenceDigest": str(Digest.of(b"signature")),
                "artifactType": "application/vnd.cncf.notary.signature",
                "message": "Notation signature verification success",
                "extensions": {"Issuer": "CN=root", "SN": "CN=leaf"},
            }
        ],
    }


def test_a_refusal_says_why_and_what_to_do() -> None:
    error = Refused("UNTRUSTED_ROOT", "no certificate is trusted", found="CN=<evil> é")
    report = VerifierReport.failed(error, message="failed", name="v", type="notation", extensions={"SN": "CN=x"})
    value = answer(Verdict(False, None, (report,), error.code, error.detail))
    assert value["isSuccess"] is False
    assert value["code"] == "UNTRUSTED_ROOT"
    assert "digest" not in value
    assert value["verifierReports"] == [
        {
            "subject": "reg.example.com/app:v1",
            "isSuccess": False,
            "name": "v",
            "verifierName": "v",
            "type": "notation",
            "verifierType": "notation",
            "message": "failed",
            "errorReason": "no certificate is trusted (found CN=<evil> é)",
            "remediation": error.remediation,
            "code": "UNTRUSTED_ROOT",
            "extensions": {"SN": "CN=x"},
        }
    ]


def test_without_reports_there_is_no_list() -> None:
    assert "verifierReports" not in answer(Verdict(True, DIGEST, ()))
