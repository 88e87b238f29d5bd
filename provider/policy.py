"""The config-policy of the Policy resource: which artifact types an image must carry, and how many of each must verify.

Rules:
- A type that the policy names is required: an image without an artifact of it is refused.
- `any`: one artifact of the type that verifies suffices. `all`: every artifact of the type must verify.
- A type that is present and not named follows `default`.
- Empty is never success: no reports, no admission.
- Three outcomes, because a registry or responder out of reach is no judgement: a refusal that no missing answer could
  undo is a refusal; else anything undecided leaves the whole undecided.

What does not belong here: running verifiers (executor.py), the resource's syntax (configuration/).
Source: Ratify v1.4 config-policy; the differences are in docs/ratify-compatibility.md.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provider.interfaces import Decision, Standing
from provider.reports import VerifierReport


class Rule(enum.Enum):
    """How many artifacts of one type must verify."""

    ANY = "any"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class ConfigPolicy:
    """A PolicyEnforcer.

    Attributes:
        rules: required artifact types and their rules.
        default: the rule for types that are present without being required.
    """

    rules: Mapping[str, Rule]
    default: Rule = Rule.ALL

    def satisfied(self, artifact_type: str, reports: Sequence[VerifierReport]) -> bool:
        """Whether one success settles the type and is there."""
        if self.rules.get(artifact_type, self.default) is Rule.ALL:
            return False
        return any(report.is_success for report in reports if report.artifact_type == artifact_type)

    def evaluate(self, reports: Sequence[VerifierReport]) -> Decision:
        """Decide on all reports of one subject: refused types first, then undecided ones, then admission."""
        by_type: dict[str, list[VerifierReport]] = {artifact_type: [] for artifact_type in self.rules}
        for report in reports:
            by_type.setdefault(report.artifact_type, []).append(report)
        if not by_type:
            return Decision(Standing.REFUSED, "UNSIGNED", "nothing that a verifier judges is attached to the image")
        decisions = [self._decide(artifact_type, of_type) for artifact_type, of_type in by_type.items()]
        for standing in (Standing.REFUSED, Standing.UNDECIDED):
            for decision in decisions:
                if decision.standing is standing:
                    return decision
        return Decision(Standing.ADMITTED)

    def _decide(self, artifact_type: str, reports: Sequence[VerifierReport]) -> Decision:
        if not reports:
            return Decision(
                Standing.REFUSED, "UNSIGNED", f"no artifact of the required type {artifact_type} is attached"
            )
        failed = [report for report in reports if not report.is_success]
        judged = [report for report in failed if not report.undecided]
        rule = self.rules.get(artifact_type, self.default)
        if not failed or (rule is Rule.ANY and len(failed) < len(reports)):
            return Decision(Standing.ADMITTED)
        if len(judged) == len(failed) or (rule is Rule.ALL and judged):
            return Decision(Standing.REFUSED, *_explain(judged))
        waiting = next(report for report in failed if report.undecided)
        return Decision(Standing.UNDECIDED, waiting.code, waiting.error_reason)


def _explain(failed: Sequence[VerifierReport]) -> tuple[str, str]:
    """The code and reason that say most about a refusal: the common code of all failures, or that they differ."""
    for report in failed:
        if report.code == "SIGNATURE_LIMIT":
            return report.code, report.error_reason
    if len({report.code for report in failed}) == 1:
        return failed[0].code, failed[0].error_reason
    return "POLICY_NOT_SATISFIED", "; ".join(f"{report.code}: {report.error_reason}" for report in failed)
