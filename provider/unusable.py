"""Stand-ins for what is configured and cannot be used: each denies whatever depends on it, and says why.

Rules:
- What a stand-in cannot say is undecided (RESOURCE_UNUSABLE), never a refusal: nobody keeps it, and the first attempt
  after the resource was mended is decided.
- A stand-in denies no more than what its resource would have had a say in. A Verifier holds up the artifact types that
  it was to judge, a Store the images that no other store has, a key provider the trust stores that it was to fill.

What does not belong here: which resources cannot be used (configuration/), the objects that can.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NoReturn

from provider.errors import Undecided
from provider.interfaces import Decision, KeyMaterial, Standing, Store
from provider.oci import Descriptor, Reference, Subject
from provider.reports import VerifierReport

CODE: Final = "RESOURCE_UNUSABLE"
ANY_TYPE: Final = frozenset({"*"})
MAX_ATTEMPTS: Final = 100  # artifacts of one image that are reported on


@dataclass(frozen=True, slots=True, eq=False)
class _StandIn:
    """What all of them have.

    Attributes:
        name: name of the resource.
        reason: which resource cannot be used, and why.
    """

    name: str
    reason: str

    def deny(self) -> NoReturn:
        """Say that it cannot be decided.

        Raises:
            Undecided: RESOURCE_UNUSABLE.
        """
        raise Undecided(CODE, self.reason)


@dataclass(frozen=True, slots=True, eq=False)
class UnusableStore(_StandIn):
    """A Store: what no other store has may be in this one."""

    async def resolve(self, reference: Reference) -> Subject:  # noqa: ARG002 - as all arguments here: the Protocol's
        """Not known."""
        self.deny()

    def list_referrers(self, subject: Subject, artifact_type: str | None) -> AsyncIterator[Descriptor]:  # noqa: ARG002
        """Not known."""
        self.deny()

    async def fetch_manifest(self, subject: Subject, descriptor: Descriptor) -> bytes:  # noqa: ARG002
        """Not known."""
        self.deny()

    async def fetch_blob(self, subject: Subject, descriptor: Descriptor, max_bytes: int) -> bytes:  # noqa: ARG002
        """Not known."""
        self.deny()


@dataclass(frozen=True, slots=True, eq=False)
class UnusableVerifier(_StandIn):
    """A Verifier: no artifact of its types can be judged.

    Attributes:
        artifact_types: what it was to judge; any when that cannot be read.
    """

    artifact_types: frozenset[str] = ANY_TYPE
    max_attempts: int = MAX_ATTEMPTS

    def preflight(self, reference: Reference) -> VerifierReport | None:  # noqa: ARG002
        """Artifacts have to be looked at: those of other types are not held up."""
        return None

    async def verify(self, store: Store, subject: Subject, artifact: Descriptor, at: datetime) -> VerifierReport:  # noqa: ARG002
        """Not known."""
        self.deny()


@dataclass(frozen=True, slots=True, eq=False)
class UnusableKeyManagementProvider(_StandIn):
    """A source of keys: what it would trust is not known."""

    def material(self) -> KeyMaterial:
        """Not known."""
        self.deny()

    async def refresh(self) -> None:
        """Nothing to do until the resource is mended."""


@dataclass(frozen=True, slots=True, eq=False)
class UnusablePolicy(_StandIn):
    """A policy: nothing satisfies it."""

    def satisfied(self, artifact_type: str, reports: Sequence[VerifierReport]) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def evaluate(self, reports: Sequence[VerifierReport]) -> Decision:  # noqa: ARG002
        """Not known."""
        return Decision(Standing.UNDECIDED, CODE, self.reason)
