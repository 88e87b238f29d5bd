"""Parameters of Policy resources, by type.

    config-policy: artifactVerificationPolicies: {<artifact type>: any | all, default: any | all}

What does not belong here: what the rules mean (provider/policy.py).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from provider.configuration.sections import Section, Text

DEFAULT_KEY: Final = "default"

RuleName = Literal["any", "all"]


class ConfigPolicyParameters(Section):
    """Parameters of `config-policy`.

    Attributes:
        artifact_verification_policies: a rule for each artifact type that images must carry, and under `default` the
            one for types that are present without being required; without it, `all`.
    """

    artifact_verification_policies: Annotated[dict[Text, RuleName], Field(default_factory=dict)]

    @property
    def rules(self) -> dict[str, RuleName]:
        """The rules of required types."""
        return {kind: rule for kind, rule in self.artifact_verification_policies.items() if kind != DEFAULT_KEY}

    @property
    def default(self) -> RuleName:
        """The rule of all other types."""
        return self.artifact_verification_policies.get(DEFAULT_KEY, "all")
