"""The extension points: what a store, a verifier, a policy, a key source and a credential source must offer.

Rules:
- A Protocol here has at most four methods; a new back-end is one file that satisfies one of them, one line in
  components.py, one model in configuration/resources.py, and a run of the Protocol's contract test in tests/contracts.
- Every method that reads foreign data bounds what it reads, and raises only errors of provider.errors.
- Time is an argument (`at`); nobody below the executor reads a clock to decide.
- Objects that hold connections also have `async def aclose(self) -> None`; assembly closes them when a snapshot
  retires.

What does not belong here: implementations, defaults, wire formats.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from provider.notation.certificates import Certificate
from provider.oci import Descriptor, Reference, Subject
from provider.reports import VerifierReport


class Store(Protocol):
    """Where images and their referrers are kept. What it returns was checked against digest, size and media type."""

    @property
    def name(self) -> str:
        """Name of the Store resource."""
        ...

    async def resolve(self, reference: Reference) -> Subject:
        """Find the digest behind a reference.

        A reference with a digest needs no round trip: its Subject then has no descriptor.

        Raises:
            Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH.
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        ...

    def list_referrers(self, subject: Subject, artifact_type: str | None) -> AsyncIterator[Descriptor]:
        """List what refers to the subject, in the registry's order, page by page as it is consumed.

        Args:
            subject: the resolved image.
            artifact_type: list only this type; None lists all. The filter is applied here when the registry does not.

        Raises:
            Refused: REFERRERS_LIMIT after the store's limit of entries or pages; MANIFEST_INVALID.
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        ...

    async def fetch_manifest(self, subject: Subject, descriptor: Descriptor) -> bytes:
        """Fetch a manifest of the subject's repository: bytes with exactly the descriptor's digest and size.

        Raises:
            Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH, MANIFEST_INVALID (larger than allowed, other media type).
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        ...

    async def fetch_blob(self, subject: Subject, descriptor: Descriptor, max_bytes: int) -> bytes:
        """Fetch a blob of the subject's repository: bytes with exactly the descriptor's digest and size.

        Args:
            subject: the resolved image.
            descriptor: the blob wanted; a declared size over `max_bytes` is refused before anything is read.
            max_bytes: the most that will be read.

        Raises:
            Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH, MANIFEST_INVALID (larger than allowed).
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        ...


class Verifier(Protocol):
    """Judges artifacts of certain types that refer to an image."""

    @property
    def name(self) -> str:
        """Name of the Verifier resource."""
        ...

    @property
    def artifact_types(self) -> frozenset[str]:
        """Artifact types it judges; the single member `*` means any."""
        ...

    @property
    def max_attempts(self) -> int:
        """How many artifacts of one image it may be asked to judge before the executor gives up."""
        ...

    def preflight(self, reference: Reference) -> VerifierReport | None:
        """Decide without the registry, where the verifier's own policy can.

        Returns a successful report when the policy waives verification for this repository (level skip), a failed one
        when no statement of the policy covers it, and None when signatures have to be looked at.
        """
        ...

    async def verify(self, store: Store, subject: Subject, artifact: Descriptor, at: datetime) -> VerifierReport:
        """Judge one artifact. A refusal is a report, not an exception.

        Args:
            store: where to fetch the artifact from.
            subject: the resolved image.
            artifact: one entry of the referrers list.
            at: the time of the decision (aware, UTC).

        Raises:
            Undecided: the artifact, a key or a revocation answer could not be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """What a key management provider holds now.

    Attributes:
        certificates: for trust stores, in the order given, duplicates removed.
        public_keys: SubjectPublicKeyInfo DER of bare public keys, by name.
        properties: what `status.properties` of the resource shows (facts only, no key material).
        missing: what should be here and could not be had, in words. While there is something, a signer who is not among
            these is not known to be a stranger.
        as_of: when the oldest part of it was last seen to be so (aware, UTC); None for what does not age.
    """

    certificates: tuple[Certificate, ...] = ()
    public_keys: Mapping[str, bytes] = field(default_factory=dict)
    properties: Mapping[str, object] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    as_of: datetime | None = None


class KeyManagementProvider(Protocol):
    """A source of trusted certificates and keys."""

    @property
    def name(self) -> str:
        """Name of the KeyManagementProvider resource, `namespace/name` for a namespaced one."""
        ...

    def material(self) -> KeyMaterial:
        """The last good material, from memory: admission never waits for a key service.

        Raises:
            Undecided: KEYS_UNAVAILABLE, when nothing good was ever loaded or the last good set is too old.
        """
        ...

    async def refresh(self) -> None:
        """Load the material again; on failure the last good set stays.

        Raises:
            ConfigurationError: CERTIFICATE_INVALID.
            Undecided: KEYS_UNAVAILABLE.
        """
        ...


class Standing(enum.Enum):
    """What a policy says of a set of reports."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's answer. `code` and `reason` say why when it is not an admission; the code is one of errors.CODES."""

    standing: Standing
    code: str | None = None
    reason: str = ""


class PolicyEnforcer(Protocol):
    """Weighs reports. Empty is never success."""

    def satisfied(self, artifact_type: str, reports: Sequence[VerifierReport]) -> bool:
        """Whether no further artifact of this type needs to be looked at, so that the executor may stop early."""
        ...

    def evaluate(self, reports: Sequence[VerifierReport]) -> Decision:
        """Decide on all reports of one subject."""
        ...


@dataclass(frozen=True, slots=True)
class Credential:
    """What to show a registry. Exactly one of (username, password), identity_token and registry_token is set.

    Attributes:
        username: for basic authentication or a token service.
        password: secret.
        identity_token: OAuth2 refresh token for the registry's token service; secret.
        registry_token: a bearer token to send as it is; secret.
        own_origin_only: it goes over https to the registry's own origin and nowhere else, whatever token hosts are
            listed: for what a cloud's identity was exchanged for.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    own_origin_only: bool = False


class CredentialProvider(Protocol):
    """A source of registry credentials."""

    async def credential(self, domain: str, path: str) -> Credential | None:
        """The credential for a repository, or None to go on to the next source and at last to anonymous access.

        Args:
            domain: registry host with port, normalised (`docker.io`, not index.docker.io).
            path: repository path.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, when this source is meant for the registry and failed.
        """
        ...


@runtime_checkable
class RenewableCredentialProvider(CredentialProvider, Protocol):
    """A source that keeps what it has read, and can read it anew when a registry would not have it."""

    def refused(self, domain: str, path: str) -> None:
        """Told that a registry refused the credential: it may have been rotated, so do not give it again unread.

        Reading anew too often is for the source to prevent: whoever names an image decides how often a registry
        refuses.
        """
        ...


@runtime_checkable
class AlternativeCredentialProvider(CredentialProvider, Protocol):
    """A source that may have several credentials for one repository, of which not all are good for it."""

    async def another(self, domain: str, path: str, refused: Collection[Credential | None]) -> Credential | None:
        """A credential for a repository that is none of those that its registry refused; None when there is none.

        Args:
            domain: registry host with port, normalised.
            path: repository path.
            refused: what the registry would not have; None stands for anonymous access.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, as `credential` does, when it is not known whether there is another.
        """
        ...
