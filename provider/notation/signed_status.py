"""What OCSP responses and CRLs have in common: an authority signed them, they hold for a while, http leads to them.

Rules:
- Whatever keeps a response or list from saying anything about a certificate is a Refused of REVOCATION_UNKNOWN: the
  certificate is not revoked by it, and not good by it either.
- The outcome of a signature verification is remembered with the signed octets, per key: it cannot change.
- Only http locations are asked (OCSP and CRLs are signed themselves; https would need a chain, and its revocation).

What does not belong here: what is inside (ocsp.py, crl.py), who may sign (there too), fetching (verifiers/).
Sources: RFC 6960 section 3.2 and 4.2.2; RFC 5280 sections 5.1.2 and 6.3.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from provider.errors import Refused
from provider.notation import asn1
from provider.notation.asn1 import MalformedASN1Error
from provider.notation.certificates import Certificate
from provider.notation.extensions import Extension, read_extension
from provider.notation.signature_algorithms import (
    UnsupportedAlgorithmError,
    WrongSignatureError,
    read_signature_algorithm,
    verify_signature,
)

CLOCK_SKEW: Final = timedelta(minutes=5)  # how far an authority's clock may be ahead of ours; OpenSSL's default too
MAX_URL_LENGTH: Final = 2048  # characters; locations in real certificates have 30 to 120

MAX_EXTENSIONS: Final = 64  # of one list, response or entry; real ones have up to 5

INVALIDITY_DATE: Final = "2.5.29.24"

_MAX_REMEMBERED_KEYS: Final = 8  # outcomes kept with one signed part; an authority has one key, two while it changes it
_HTTP_URL: Final = re.compile(
    r"http://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?:[/?#][!-~]*)?", re.IGNORECASE | re.ASCII
)


def unknown(reason: str, *, expected: str | None = None, found: str | None = None) -> Refused:
    """The refusal of a response or list that says nothing about the certificate."""
    return Refused("REVOCATION_UNKNOWN", reason, expected=expected, found=found)


def is_http_url(url: str) -> bool:
    """Whether a location can be asked: http, a host, no user information, printable ASCII, at most MAX_URL_LENGTH."""
    return len(url) <= MAX_URL_LENGTH and _HTTP_URL.fullmatch(url) is not None


@dataclass(frozen=True, slots=True, eq=False)
class SignedPart:
    """Octets with a signature over them. Holding one proves nothing; `check_signed_by` does.

    Attributes:
        what: what was signed, for messages.
        octets: what was signed.
        algorithm: DER of the AlgorithmIdentifier.
        signature: the signature's octets.
    """

    what: str
    octets: bytes
    algorithm: bytes
    signature: bytes
    _faults: dict[bytes, str | None] = field(default_factory=dict, init=False, repr=False)

    def check_signed_by(self, signer: Certificate) -> None:
        """Check that the signer's key made the signature. Costs a signature operation once for each key.

        Whether the signer may sign this is not checked.

        Raises:
            Refused: REVOCATION_UNKNOWN, also for a key or algorithm that is not accepted (SHA-1, MD5).
        """
        key = signer.public_key_info
        if key not in self._faults:
            if len(self._faults) >= _MAX_REMEMBERED_KEYS:
                self._faults.clear()
            self._faults[key] = self._fault(signer)
        fault = self._faults[key]
        if fault is not None:
            raise unknown(f"the {self.what} is not signed by {signer.subject_text!r}: {fault}")

    def _fault(self, signer: Certificate) -> str | None:
        if signer.public_key is None:
            return f"its key cannot be used, {signer.key_name}"
        try:
            algorithm = read_signature_algorithm(asn1.read_whole(self.algorithm, asn1.SEQUENCE, "algorithm"))
            verify_signature(signer.public_key, algorithm, self.signature, self.octets)
        except (MalformedASN1Error, UnsupportedAlgorithmError, WrongSignatureError) as error:
            return str(error)
        return None


def check_not_from_future(what: str, this_update: datetime, at: datetime) -> None:
    """Check that something was issued by now, give or take CLOCK_SKEW. Raises Refused, REVOCATION_UNKNOWN."""
    if this_update > at + CLOCK_SKEW:
        raise unknown(
            f"the {what} is from the future",
            expected=f"thisUpdate up to {at.isoformat()}",
            found=this_update.isoformat(),
        )


def check_current(what: str, next_update: datetime | None, at: datetime) -> datetime:
    """Check that nothing newer is due. Without a date nobody can know, which counts as over (facts of notation-go).

    Returns:
        The date.

    Raises:
        Refused: REVOCATION_UNKNOWN.
    """
    if next_update is None:
        raise unknown(f"the {what} does not say until when it holds", expected="a nextUpdate")
    if next_update < at:
        raise unknown(
            f"the {what} has expired", expected=f"nextUpdate from {at.isoformat()}", found=next_update.isoformat()
        )
    return next_update


def read_extension_list(encoded: bytes) -> dict[str, Extension]:
    """Extensions of RFC 5280 by dotted object identifier, from the DER of the SEQUENCE. Raises MalformedASN1Error."""
    found: dict[str, Extension] = {}
    for element in asn1.open_sequence(asn1.read_whole(encoded, asn1.SEQUENCE, "extensions"), "extensions").rest():
        identifier, extension = read_extension(element)
        if identifier in found or len(found) == MAX_EXTENSIONS:
            raise MalformedASN1Error(f"the extension {identifier} occurs twice or is one too many")
        found[identifier] = extension
    return found


def read_invalidity_date(value: bytes) -> datetime:
    """The value of an invalidityDate extension (RFC 5280 section 5.3.2). Raises MalformedASN1Error."""
    return asn1.decode_time(asn1.read_whole(value, asn1.GENERALIZED_TIME, "invalidityDate"))
