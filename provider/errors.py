"""Every way in which Countersign says no, as one tree with stable codes.

    CountersignError
    |-- Refused               decided: the image or its signature is not acceptable -> a verdict (isSuccess false)
    |-- InvalidKey            the key itself is wrong and will not heal             -> items[].error
    |-- Undecided             no decision was possible this time                    -> key left out, systemError
    |-- ConfigurationError    the operator's configuration is wrong; carries every fault found, not the first
    `-- UsageError            the command line was used wrongly

Rules:
- An error says what happened (reason), what was expected, what was found, and what to do (remediation). The remediation
  comes from the code's entry in CODES unless the raiser knows a better one.
- A code never changes its meaning; users search for it and docs/errors.md is generated from CODES.
- Foreign text (`found`, `reason`) is cut and stripped of control characters here, once, so that no registry or
  certificate can forge log lines or flood an answer. Secrets are never passed in: this file cannot know them.

What does not belong here: wire formats (gatekeeper/protocol.py), exit codes (cli/), HTTP statuses.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

MAX_FOREIGN_TEXT: Final = 512  # characters of foreign text kept in a message; kopf keeps 256, digests and DNs are long


class Kind(enum.Enum):
    """Where an error goes; one member for each branch of the tree."""

    REFUSED = "refused"
    INVALID_KEY = "invalid key"
    UNDECIDED = "undecided"
    CONFIGURATION = "configuration"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """What a code means to a person: its branch of the tree, a one-line meaning, and the way out."""

    kind: Kind
    meaning: str
    remediation: str


def _refused(meaning: str, remediation: str) -> CodeEntry:
    return CodeEntry(Kind.REFUSED, meaning, remediation)


def _undecided(meaning: str, remediation: str) -> CodeEntry:
    return CodeEntry(Kind.UNDECIDED, meaning, remediation)


def _configuration(meaning: str, remediation: str) -> CodeEntry:
    return CodeEntry(Kind.CONFIGURATION, meaning, remediation)


CODES: Final[dict[str, CodeEntry]] = {
    # -- the key --------------------------------------------------------------------------------------------------
    "REFERENCE_INVALID": CodeEntry(
        Kind.INVALID_KEY,
        "The image reference cannot be parsed.",
        "Write the image as registry/repository:tag or registry/repository@sha256:<64 hex digits>.",
    ),
    # -- policy and discovery -------------------------------------------------------------------------------------
    "UNSIGNED": _refused(
        "No signature of a required kind is attached to the image.",
        "Sign the image (notation sign <image>@<digest>) and push the signature to the same repository.",
    ),
    "NO_TRUST_POLICY": _refused(
        "No statement of the trust policy covers the image's repository.",
        "Add the repository to registryScopes of a trust policy statement, or deploy from a covered repository.",
    ),
    "POLICY_NOT_SATISFIED": _refused(
        "Some artifact of the image failed a rule of the Policy resource.",
        "Read the failed reports beneath; re-sign or remove the artifact, or relax the rule from all to any.",
    ),
    "SIGNATURE_LIMIT": _refused(
        "More signatures are attached than may be tried, and none of those tried was good.",
        "Remove stale signatures from the repository, or raise maxSignatureAttempts of the Verifier.",
    ),
    "REFERRERS_LIMIT": _refused(
        "The registry lists more referrers for the image than are read.",
        "Remove stale referrers from the repository.",
    ),
    "IMAGE_NOT_FOUND": _refused(
        "The registry has no such repository, tag or digest.",
        "Check the image name and that it was pushed; for a private repository check the credentials too.",
    ),
    "DIGEST_MISMATCH": _refused(
        "The registry answered with content of another digest or size than asked for.",
        "Push the artifact again; if it recurs the registry or something in front of it alters content.",
    ),
    "MANIFEST_INVALID": _refused(
        "A manifest is malformed, too large or of an unexpected media type.",
        "Push the artifact again with a tool that writes OCI 1.1 manifests.",
    ),
    # -- notation: envelope and payload ---------------------------------------------------------------------------
    "ENVELOPE_UNSUPPORTED": _refused(
        "The signature envelope is of a media type that is not supported.",
        "Sign with notation, signature format jws or cose.",
    ),
    "ENVELOPE_MALFORMED": _refused(
        "The signature envelope cannot be parsed or breaks a rule of the Notary Project specification.",
        "Sign the image again with a current notation.",
    ),
    "SIGNATURE_INVALID": _refused(
        "The signature does not verify with the key of its signing certificate.",
        "The signature was altered or belongs to other content: sign the image again.",
    ),
    "ALGORITHM_UNSUPPORTED": _refused(
        "The key or signature algorithm is not one the Notary Project specification allows.",
        "Sign with RSA 2048, 3072 or 4096 (PSS) or with ECDSA P-256, P-384 or P-521.",
    ),
    "CRITICAL_ATTRIBUTE_UNKNOWN": _refused(
        "The signature carries a critical attribute that Countersign does not process.",
        "Sign without the plugin or attribute named; Countersign runs no verification plugins.",
    ),
    "PAYLOAD_MISMATCH": _refused(
        "The signed payload does not describe this image.",
        "The signature belongs to another image: sign this one.",
    ),
    "METADATA_MISMATCH": _refused(
        "A user metadata entry that is demanded is not in the signature.",
        "Sign with --user-metadata <key>=<value>, or drop the demand from the Verifier.",
    ),
    # -- notation: certificates, trust, time ----------------------------------------------------------------------
    "CERTIFICATE_CHAIN_INVALID": _refused(
        "The certificate chain in the signature breaks a certificate rule of the Notary Project specification.",
        "Sign with a chain that is ordered leaf to root and whose leaf is made for code signing.",
    ),
    "UNTRUSTED_ROOT": _refused(
        "No certificate of the signature's chain is in the trust stores of the policy.",
        "Add the signer's root to a KeyManagementProvider that the trust policy uses, if you trust the signer.",
    ),
    "UNTRUSTED_IDENTITY": _refused(
        "The signing certificate's subject matches none of the trusted identities.",
        "Add the subject to trustedIdentities of the trust policy, if you trust the signer.",
    ),
    "TRUST_STORE_EMPTY": _refused(
        "A trust store that the policy names holds no usable certificate.",
        "Check the KeyManagementProvider behind the trust store: its status says what it loaded.",
    ),
    "SIGNATURE_EXPIRED": _refused(
        "The signature's own expiry has passed.",
        "Sign the image again.",
    ),
    "CERTIFICATE_EXPIRED": _refused(
        "A certificate of the chain has expired and no trusted time-stamp shows an earlier signing time.",
        "Sign with a time-stamp (notation sign --timestamp-url ...) and list a tsa store in the trust policy.",
    ),
    "CERTIFICATE_NOT_YET_VALID": _refused(
        "A certificate of the chain is not valid yet.",
        "Check the clocks of the signer and of this host.",
    ),
    "TIMESTAMP_MISSING": _refused(
        "The trust policy demands a time-stamp and the signature has none.",
        "Sign with notation sign --timestamp-url <TSA> --timestamp-root-cert <file>.",
    ),
    "TIMESTAMP_INVALID": _refused(
        "The time-stamp token is malformed, of other content, or not correctly signed.",
        "Sign the image again with a time-stamp authority that follows RFC 3161 and RFC 5816.",
    ),
    "TIMESTAMP_UNTRUSTED": _refused(
        "The time-stamp authority's certificate does not lead to a root in the tsa stores of the policy.",
        "Add the authority's root to a KeyManagementProvider that a tsa trust store uses, if you trust it.",
    ),
    "TIMESTAMP_OUTSIDE_VALIDITY": _refused(
        "The time-stamped signing time lies outside the validity of a certificate of the chain.",
        "Sign again while the signing certificate is valid.",
    ),
    "CERTIFICATE_REVOKED": _refused(
        "A certificate of the chain was revoked by its issuer.",
        "Sign again with a certificate that is in good standing.",
    ),
    "REVOCATION_UNKNOWN": _refused(
        "The answers of the certificate's OCSP responders and CRLs do not establish its status.",
        "See that the issuer's OCSP responder or CRL answers with current, well-signed data; to let one inside your "
        "network be asked, set revocation.allowPrivateAddresses and allowedHosts of the Verifier.",
    ),
    # -- could not decide -----------------------------------------------------------------------------------------
    "REGISTRY_UNAVAILABLE": _undecided(
        "The registry could not be reached or answered with a server error.",
        "Retry; check the registry's health, DNS, the CA bundle of the Store and any proxy.",
    ),
    "REGISTRY_THROTTLED": _undecided(
        "The registry limits the request rate (429).",
        "Retry in a while; a larger registry tier or fewer distinct tags lessens the load.",
    ),
    "REGISTRY_UNAUTHORIZED": _undecided(
        "The registry refused the credentials, or there are none for it.",
        "Give the Store credentials for this registry; check that the identity may pull.",
    ),
    "REGISTRY_PROTOCOL": _undecided(
        "The registry's answer breaks the OCI distribution specification or a safety rule.",
        "Check the registry and what stands in front of it; the reason names the rule.",
    ),
    "CREDENTIALS_UNAVAILABLE": _undecided(
        "The configured credential source failed.",
        "Check the credential source named; Countersign does not fall back to anonymous access.",
    ),
    "REVOCATION_UNAVAILABLE": _undecided(
        "No OCSP responder or CRL of the certificate could be reached.",
        "Allow egress to the named URLs, or set the revocation override of the trust policy to log or skip.",
    ),
    "KEYS_UNAVAILABLE": _undecided(
        "Certificates or keys that the policy needs are not loaded.",
        "Look at the KeyManagementProvider's status; retry when it is loaded.",
    ),
    "DEADLINE_EXCEEDED": _undecided(
        "Verification did not finish before the answer had to leave; it goes on in the background.",
        "Retry: the result will be ready. If it recurs, raise the Provider's timeout or look at registry latency.",
    ),
    "OVERLOADED": _undecided(
        "More work is waiting than may wait.",
        "Retry; add replicas or raise the limit named.",
    ),
    "REQUEST_INVALID": _undecided(
        "The body is not a ProviderRequest of externaldata.gatekeeper.sh/v1beta1 within the limits.",
        "Let Gatekeeper call this endpoint; for a test use docs/operations.md#a-request-by-hand.",
    ),
    "CLIENT_NOT_ALLOWED": _undecided(
        "The caller's client certificate carries none of the names that may ask.",
        "Call from Gatekeeper, or add the name of the caller's certificate to the allowed client names.",
    ),
    "RESOURCE_UNUSABLE": _undecided(
        "A Store, Verifier, KeyManagementProvider or Policy that the decision needs has a fault, or is not there.",
        "Mend or apply the resource named: kubectl get shows the fault in its status, check-config finds it before.",
    ),
    "NOT_READY": _undecided(
        "No good configuration is loaded.",
        "Apply at least one Store, Verifier, KeyManagementProvider and Policy; check-config says what is missing.",
    ),
    "INTERNAL": _undecided(
        "Something failed that should not have; the image is denied.",
        "Report it with the trace id; the log has the details.",
    ),
    # -- configuration and usage ----------------------------------------------------------------------------------
    "CONFIG_INVALID": _configuration(
        "A resource of the configuration is wrong.",
        "Mend what is named; a running server keeps its last good configuration meanwhile.",
    ),
    "CERTIFICATE_INVALID": _configuration(
        "Certificate or key material in the configuration cannot be used.",
        "Give PEM blocks that are complete, or DER; a CA or self-signed certificate for a trust store.",
    ),
    "TRUST_POLICY_INVALID": _configuration(
        "The Notary Project trust policy document is not valid.",
        "Mend the statement named; see docs/trust-policy.md.",
    ),
    "TLS_INVALID": _configuration(
        "The serving certificate, its key or the client CA cannot be used.",
        "Check the files named: PEM, matching key and certificate, readable by the process.",
    ),
    "USAGE": CodeEntry(
        Kind.USAGE,
        "The command was used wrongly.",
        "See --help of the command.",
    ),
}


def printable(text: str, limit: int = MAX_FOREIGN_TEXT) -> str:
    """Return foreign text made safe to print: control and format characters replaced, cut to `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    if cut.isprintable():  # nearly always
        return cut
    return "".join(character if character.isprintable() else "�" for character in cut)


class CountersignError(Exception):
    """Root of the tree; never raised itself.

    Args:
        code: a key of CODES whose kind is this class's kind.
        reason: what happened, one sentence without a full stop at the end. May hold foreign text.
        expected: what would have been right, where that helps.
        found: what was there instead. May hold foreign text.
        remediation: what to do, when the raiser knows better than the code's entry.

    Raises:
        ValueError: the code is not one of this class's kind (a programming error).
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        code: str,
        reason: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        remediation: str | None = None,
    ) -> None:
        entry = CODES[code]
        if entry.kind is not self.kind:
            raise ValueError(f"{code} is of kind {entry.kind.value}, not {self.kind.value}")
        self.code = code
        self.reason = printable(reason)
        self.expected = None if expected is None else printable(expected)
        self.found = None if found is None else printable(found)
        self.remediation = remediation if remediation is not None else entry.remediation
        super().__init__(code, reason)

    @property
    def detail(self) -> str:
        """The reason with what was expected and found, one line."""
        differences = [
            f"{word} {value}" for word, value in (("expected", self.expected), ("found", self.found)) if value
        ]
        return f"{self.reason} ({', '.join(differences)})" if differences else self.reason

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class Refused(CountersignError):
    """Decided: no. Cached as a verdict; another attempt on the same content gives the same answer."""

    kind = Kind.REFUSED


class InvalidKey(CountersignError):
    """The key that Gatekeeper sent is not an image reference."""

    kind = Kind.INVALID_KEY


class Undecided(CountersignError):
    """No decision this time: denied, never cached, to be asked again.

    Args:
        retry_after: seconds after which another attempt is worth while, when the cause said so.
    """

    kind = Kind.UNDECIDED

    def __init__(
        self,
        code: str,
        reason: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        remediation: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, reason, expected=expected, found=found, remediation=remediation)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in the configuration.

    Attributes:
        source: file (with document number) or cluster object it was read from.
        resource: `kind/name`, or `kind/namespace/name` for a namespaced one; empty when not known yet.
        path: key path inside the resource, such as `spec.parameters.trustPolicyDoc.trustPolicies[0].name`.
        message: what is wrong and what was expected.
    """

    source: str
    resource: str
    path: str
    message: str

    def __str__(self) -> str:
        # A cluster's object is its own source, and is named once.
        where = " ".join(part for part in dict.fromkeys((self.source, self.resource, self.path)) if part)
        return f"{where}: {self.message}"


class ConfigurationError(CountersignError):
    """The configuration is wrong; `faults` lists everything found, so that one edit mends it all."""

    kind = Kind.CONFIGURATION

    def __init__(
        self,
        code: str,
        reason: str,
        *,
        faults: Sequence[Fault] = (),
        expected: str | None = None,
        found: str | None = None,
        remediation: str | None = None,
    ) -> None:
        super().__init__(code, reason, expected=expected, found=found, remediation=remediation)
        self.faults = tuple(faults)


class UsageError(CountersignError):
    """The command line was used wrongly."""

    kind = Kind.USAGE
