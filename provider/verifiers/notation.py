"""The verifier of Notary Project signatures: fetches what notation/ needs and turns its outcome into a report.

Rules:
- A signature manifest is one of the two forms of the specification (or the withdrawn artifact manifest), refers to the
  image at hand, and holds exactly one envelope; anything else is a refused artifact, and the next one is tried.
- For an image asked for by digest, the media type and size that the payload is compared with are those of the signature
  manifest's subject: the digest binds the content, and a look-up of the rest would cost every admission a round trip.
- Trust stores are read from memory at each decision, so that refreshed key material counts at once. While a key source
  lacks something, a signer that is not in the trust stores is not known to be a stranger: that is no decision.

What does not belong here: the rules of verification (notation/verification.py), which artifacts to try (executor.py).
Source: signature-specification.md "OCI Signatures".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from provider.errors import ConfigurationError, CountersignError, Refused, Undecided
from provider.interfaces import KeyManagementProvider, Store
from provider.notation.certificates import Certificate, check_timestamp_trust_anchor, check_trust_anchor
from provider.notation.revocation import Inquiry
from provider.notation.trust_policy import Action, Level, StoreType, TrustPolicyDocument, TrustPolicyStatement
from provider.notation.verification import Outcome, verify
from provider.oci import MEDIA_TYPE_ARTIFACT_MANIFEST, MEDIA_TYPE_EMPTY, Descriptor, Manifest, Reference, Subject
from provider.progress import Stage, step
from provider.reports import VerifierReport

ARTIFACT_TYPE: Final = "application/vnd.cncf.notary.signature"
VERIFIER_TYPE: Final = "notation"
DEFAULT_MAX_ATTEMPTS: Final = 50  # signatures tried for one image; the number of notation's own examples
MAX_ENVELOPE_BYTES: Final = 4 * 1024 * 1024  # real envelopes have 2 to 12 KiB; notation-go reads up to 32 MiB

T = TypeVar("T")

_FAILED = "Failed to validate the Notation signature"
_VERIFIED = "Notation signature verification success"


class InquiryDriver(Protocol):
    """Fetches what the core asks for while it decides (verifiers/revocation_fetcher.py)."""

    async def run(self, inquiry: Inquiry[T]) -> T:
        """Drive an inquiry to its result. What cannot be fetched is an answer too, not an exception."""
        ...


class NotationVerifier:
    """A Verifier of Notary Project signatures.

    Args:
        name: name of the Verifier resource.
        artifact_types: artifact types it is asked for.
        document: the trust policy.
        trust_stores: the key sources behind each trust store of the policy.
        revocation: fetches OCSP answers and CRLs.
        max_attempts: signatures tried for one image before giving up.
        user_metadata: user metadata that every signature must carry.
    """

    def __init__(
        self,
        *,
        name: str,
        document: TrustPolicyDocument,
        trust_stores: Mapping[tuple[StoreType, str], Sequence[KeyManagementProvider]],
        revocation: InquiryDriver,
        artifact_types: frozenset[str] = frozenset({ARTIFACT_TYPE}),
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        user_metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.artifact_types = artifact_types
        self.max_attempts = max_attempts
        self._document = document
        self._trust_stores = trust_stores
        self._revocation = revocation
        self._user_metadata = dict(user_metadata or {})

    def preflight(self, reference: Reference) -> VerifierReport | None:
        """A waiver when the policy's statement has level skip, a refusal when no statement covers the repository."""
        try:
            statement = self._document.select(reference.repository)
        except Refused as error:
            return self._failed(error, None, artifact_type=ARTIFACT_TYPE)
        if statement.level is not Level.SKIP:
            return None
        return VerifierReport(
            is_success=True,
            name=self.name,
            type=VERIFIER_TYPE,
            artifact_type=ARTIFACT_TYPE,
            message=f"Trust policy {statement.name} has level skip: no signature is asked of this repository",
            extensions={"trustPolicy": statement.name},
        )

    async def verify(self, store: Store, subject: Subject, artifact: Descriptor, at: datetime) -> VerifierReport:
        """Verify one signature. See interfaces.Verifier."""
        artifact_type = artifact.artifact_type or ARTIFACT_TYPE
        missing: dict[StoreType, str] = {}
        try:
            statement = self._document.select(subject.reference.repository)
            manifest = Manifest.parse(await store.fetch_manifest(subject, artifact))
            target, layer = _check_manifest(manifest, subject)
            data = await store.fetch_blob(subject, layer, MAX_ENVELOPE_BYTES)
            with step("what its signature says", stage=Stage.VERIFY):
                outcome = await self._revocation.run(
                    verify(
                        data,
                        layer.media_type,
                        target=target,
                        statement=statement,
                        trust_stores=self._certificates(statement, missing),
                        required_metadata=self._user_metadata,
                        at=at,
                    )
                )
        except Refused as error:
            return self._failed(error, artifact, artifact_type=artifact_type)
        extensions = _extensions(outcome, statement)
        failure = outcome.failure
        if failure is None:
            return VerifierReport(
                is_success=True,
                name=self.name,
                type=VERIFIER_TYPE,
                message=_VERIFIED,
                reference_digest=artifact.digest,
                artifact_type=artifact_type,
                extensions=extensions,
            )
        if isinstance(failure.error, Undecided):
            raise failure.error
        assert failure.error is not None  # noqa: S101 - a failure is a check with an error
        _check_nothing_missing(failure.error, missing)
        return self._failed(failure.error, artifact, artifact_type=artifact_type, extensions=extensions)

    def trust_anchors(self) -> Iterator[tuple[str, str, Certificate]]:
        """Every certificate that anchors trust now: the key provider, the trust store (`ca:name`), and it."""
        for (store_type, name), sources in self._trust_stores.items():
            for source in sources:
                try:
                    certificates = source.material().certificates
                except CountersignError:  # none is there now; a metric of its own says so
                    continue
                for one in certificates:
                    if _may_anchor(one, store_type):
                        yield source.name, f"{store_type.value}:{name}", one

    def _certificates(
        self, statement: TrustPolicyStatement, missing: dict[StoreType, str]
    ) -> dict[tuple[StoreType, str], tuple[Certificate, ...]]:
        """What the statement's trust stores hold now. Certificates that may not anchor trust are left out.

        Args:
            statement: the statement.
            missing: takes for each type of store the first thing that should be in one and could not be had.
        """
        stores = {}
        for store_type, store_name in statement.trust_stores:
            certificates: list[Certificate] = []
            for source in self._trust_stores.get((store_type, store_name), ()):
                material = source.material()
                certificates += [one for one in material.certificates if _may_anchor(one, store_type)]
                for lack in material.missing[:1]:
                    missing.setdefault(store_type, f"{source.name} lacks {lack}")
            stores[store_type, store_name] = tuple(certificates)
        return stores

    def _failed(
        self,
        error: CountersignError,
        artifact: Descriptor | None,
        *,
        artifact_type: str,
        extensions: Mapping[str, Any] | None = None,
    ) -> VerifierReport:
        return VerifierReport.failed(
            error,
            name=self.name,
            type=VERIFIER_TYPE,
            message=_FAILED,
            reference_digest=artifact.digest if artifact else None,
            artifact_type=artifact_type,
            extensions=extensions,
        )


def _check_nothing_missing(error: CountersignError, missing: Mapping[StoreType, str]) -> None:
    """Whether a failure stands, whatever else the trust stores may hold.

    Raises:
        Undecided: KEYS_UNAVAILABLE, when what is missing might have made it a success.
    """
    for store_type, lack in missing.items():
        untrusted = "TIMESTAMP_UNTRUSTED" if store_type is StoreType.TSA else "UNTRUSTED_ROOT"
        if error.code in ("TRUST_STORE_EMPTY", untrusted):
            raise Undecided("KEYS_UNAVAILABLE", f"{error.detail}, but {lack}")


def _may_anchor(certificate: Certificate, store_type: StoreType) -> bool:
    """Key services hand out whole chains; of these only authorities and self-signed certificates may anchor trust."""
    check = check_timestamp_trust_anchor if store_type is StoreType.TSA else check_trust_anchor
    try:
        check(certificate)
    except ConfigurationError:
        return False
    return True


def _check_manifest(manifest: Manifest, subject: Subject) -> tuple[Descriptor, Descriptor]:
    """The descriptor that must have been signed, and the envelope's descriptor.

    Raises:
        Refused: MANIFEST_INVALID, when it is no signature manifest of this subject.
    """
    config_type = manifest.config.media_type if manifest.config else None
    forms = ((ARTIFACT_TYPE, MEDIA_TYPE_EMPTY), (None, ARTIFACT_TYPE))
    withdrawn = manifest.media_type == MEDIA_TYPE_ARTIFACT_MANIFEST and manifest.artifact_type == ARTIFACT_TYPE
    if not withdrawn and (manifest.artifact_type, config_type) not in forms:
        raise Refused(
            "MANIFEST_INVALID",
            "the manifest is not of a form that Notary Project signatures have",
            expected=f"artifactType {ARTIFACT_TYPE} with the empty config, or a config of that type",
            found=f"artifactType {manifest.artifact_type}, config {config_type}",
        )
    if manifest.subject is None or manifest.subject.digest != subject.digest:
        raise Refused(
            "MANIFEST_INVALID",
            "the signature manifest refers to another image",
            expected=str(subject.digest),
            found=str(manifest.subject.digest) if manifest.subject else "no subject",
        )
    if len(manifest.layers) != 1:
        raise Refused(
            "MANIFEST_INVALID", "a signature manifest has one layer", expected="1", found=str(len(manifest.layers))
        )
    return subject.descriptor or manifest.subject, manifest.layers[0]


def _extensions(outcome: Outcome, statement: TrustPolicyStatement) -> dict[str, Any]:
    """Facts of one signature: Issuer and SN as Ratify has them, and ours."""
    facts: dict[str, Any] = {}
    if outcome.envelope is not None:
        leaf = outcome.envelope.chain[0]
        facts["Issuer"] = leaf.issuer_text
        facts["SN"] = leaf.subject_text
        facts["notAfter"] = leaf.not_after.isoformat()
    if outcome.timestamp is not None:
        facts["timestamp"] = outcome.timestamp.gen_time.isoformat()
    facts["trustPolicy"] = statement.name
    facts["checks"] = [
        {
            "type": check.check,
            "action": check.action.value,
            "result": "success" if check.error is None else "failure",
            **({} if check.error is None else {"code": check.error.code, "reason": check.error.detail}),
        }
        for check in outcome.checks
        if check.error is not None or check.action is not Action.SKIP
    ]
    return facts
