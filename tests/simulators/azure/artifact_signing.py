"""Artifact Signing (formerly Trusted Signing): chains and signatures as its notation plugin makes them.

    service = ArtifactSigning(now)
    envelope = service.sign(image, service.certify(signed_at))      # COSE, PS384, time-stamped

Names, lifetimes, key sizes of signers and key usages are those of facts about the service; the authorities' keys are
ECDSA, which are quicker to make. Its certificates live three days, and its time-stamps hold up what they signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from provider.demo import pki, signing
from provider.oci import Descriptor
from tests.simulators.timestamp_authority import TimestampAuthority

SUBJECT: Final = {"C": "US", "ST": "WA", "O": "Contoso", "CN": "release"}
LIFETIME: Final = timedelta(hours=72)
YEARS: Final = timedelta(days=3650)
# Of a certificate profile of Private Trust: what kind it is, and which one.
PROFILE: Final = tuple(
    ObjectIdentifier(f"1.3.6.1.4.1.311.97.{rest}") for rest in ("1.3.1.29433.35007.34545.16815", "990309390.766961637")
)


@cache
def signing_key() -> rsa.RSAPrivateKey:
    """The one kind of key that the service signs with. Making it takes a moment."""
    return rsa.generate_private_key(65537, 3072)


@dataclass
class ArtifactSigning:
    """The service with its authorities.

    Args:
        now: its authorities are years old then.
        name: of whom the authorities are.
    """

    now: datetime
    name: str = "Microsoft Enterprise"

    def __post_init__(self) -> None:
        valid = {"not_before": self.now - YEARS, "not_after": self.now + YEARS}
        organisation = {"C": "US", "O": "Microsoft Corporation"}
        self.root = pki.issue(
            {**organisation, "CN": f"{self.name} Identity Verification Root CA 2020"},
            pki.authority(),
            issuer=None,
            **valid,
        )
        self.issuing = pki.issue(
            {**organisation, "CN": f"{self.name} ID Verified Policy AOC CA 01"},
            pki.authority(path_length=0),
            issuer=self.root,
            **valid,
        )
        self.timestamps = TimestampAuthority.set_up()

    def certify(self, at: datetime, subject: dict[str, str] | None = None) -> pki.CertifiedKey:
        """A signer's certificate: issued the day before, with the extended key usages of its profile."""
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING, *PROFILE])
        extensions = [
            (usages, False) if isinstance(value, x509.ExtendedKeyUsage) else (value, critical)
            for value, critical in pki.code_signing()
        ]
        begin = at - timedelta(days=1)
        return pki.issue(
            subject or SUBJECT,
            extensions,
            issuer=self.issuing,
            not_before=begin,
            not_after=begin + LIFETIME,
            key=signing_key(),
        )

    def sign(
        self,
        image: Descriptor,
        signer: pki.CertifiedKey,
        at: datetime,
        *,
        stamped: datetime | None = None,
        timestamps: TimestampAuthority | None = None,
        message: bytes | None = None,
        without_timestamp: bool = False,
    ) -> bytes:
        """A COSE envelope.

        Args:
            image: what is signed.
            signer: see `certify`.
            at: when.
            stamped: when the time-stamp was made, if not then.
            timestamps: who made it, if not the service's own.
            message: what was stamped, if not the signature.
            without_timestamp: leave it out.
        """

        def stamp(signature: bytes) -> bytes:
            authority = timestamps or self.timestamps
            return authority.token(message or signature, gen_time=(stamped or at).replace(microsecond=0))

        options = signing.SignOptions(
            format=signing.EnvelopeFormat.COSE, timestamp=None if without_timestamp else stamp
        )
        return signing.sign(image, signer, at, options)
