"""The config-policy: required types, any and all, and that nothing missing is ever success."""

from __future__ import annotations

import pytest

from provider.errors import Refused, Undecided
from provider.interfaces import Standing
from provider.policy import ConfigPolicy, Rule
from provider.reports import VerifierReport

SIGNATURE = "application/vnd.cncf.notary.signature"
SBOM = "application/spdx+json"


def good(artifact_type: str = SIGNATURE) -> VerifierReport:
    return VerifierReport(is_success=True, artifact_type=artifact_type)


def bad(artifact_type: str = SIGNATURE, code: str = "UNTRUSTED_ROOT") -> VerifierReport:
    return VerifierReport.failed(Refused(code, code.lower()), message="failed", artifact_type=artifact_type)


def unknown(artifact_type: str = SIGNATURE) -> VerifierReport:
    error = Undecided("REGISTRY_UNAVAILABLE", "down")
    return VerifierReport.failed(error, message="failed", artifact_type=artifact_type, undecided=True)


A, R, U = Standing.ADMITTED, Standing.REFUSED, Standing.UNDECIDED

CASES = [
    # rules, default, reports, standing, code
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [good()], A, None),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [bad(), good()], A, None),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [unknown(), good()], A, None),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [bad()], R, "UNTRUSTED_ROOT"),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [bad(), bad()], R, "UNTRUSTED_ROOT"),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [bad(), bad(code="SIGNATURE_INVALID")], R, "POLICY_NOT_SATISFIED"),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [bad(), bad(code="SIGNATURE_LIMIT")], R, "SIGNATURE_LIMIT"),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [bad(), unknown()], U, "REGISTRY_UNAVAILABLE"),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [], R, "UNSIGNED"),
    ({}, Rule.ANY, [], R, "UNSIGNED"),
    ({SIGNATURE: Rule.ANY}, Rule.ANY, [good(SBOM)], R, "UNSIGNED"),
    ({SIGNATURE: Rule.ANY, SBOM: Rule.ALL}, Rule.ANY, [good()], R, "UNSIGNED"),
    ({SIGNATURE: Rule.ALL}, Rule.ANY, [good(), good()], A, None),
    ({SIGNATURE: Rule.ALL}, Rule.ANY, [good(), bad()], R, "UNTRUSTED_ROOT"),
    ({SIGNATURE: Rule.ALL}, Rule.ANY, [good(), unknown()], U, "REGISTRY_UNAVAILABLE"),
    ({SIGNATURE: Rule.ALL}, Rule.ANY, [unknown(), bad()], R, "UNTRUSTED_ROOT"),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [good(), bad(SBOM)], R, "UNTRUSTED_ROOT"),
    ({SIGNATURE: Rule.ANY}, Rule.ANY, [good(), bad(SBOM), good(SBOM)], A, None),
    ({SIGNATURE: Rule.ANY}, Rule.ALL, [unknown(), bad(SBOM)], R, "UNTRUSTED_ROOT"),
    ({}, Rule.ANY, [good()], A, None),
]


@pytest.mark.parametrize(("rules", "default", "reports", "standing", "code"), CASES)
def test_n62_the_policy_weighs_reports(
    rules: dict[str, Rule], default: Rule, reports: list[VerifierReport], standing: Standing, code: str | None
) -> None:
    decision = ConfigPolicy(rules, default).evaluate(reports)
    assert (decision.standing, decision.code) == (standing, code)
    assert (decision.reason == "") is (standing is A)


def test_looking_further_stops_only_where_one_success_settles_the_type() -> None:
    policy = ConfigPolicy({SIGNATURE: Rule.ANY}, Rule.ALL)
    assert policy.satisfied(SIGNATURE, [bad(), good()])
    assert not policy.satisfied(SIGNATURE, [bad()])
    assert not policy.satisfied(SIGNATURE, [good(SBOM)])
    assert not policy.satisfied(SBOM, [good(SBOM)])
