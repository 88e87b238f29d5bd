"""A time-stamp authority that makes mistakes on demand: each option of `token` breaks one rule of RFC 3161 or CMS."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from provider.demo import pki, timestamping
from provider.demo.pki import CertifiedKey, der
from provider.notation.certificates import Certificate

NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(2030, 1, 1, tzinfo=UTC)
GEN_TIME = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def name(common_name: str) -> dict[str, str]:
    """A distinguished name."""
    return {"C": "US", "O": "Stamps", "CN": common_name}


def certify(
    common_name: str,
    extensions: pki.Extensions,
    issuer: CertifiedKey | None = None,
    *,
    not_before: datetime = NOT_BEFORE,
    not_after: datetime = NOT_AFTER,
    key: pki.PrivateKey | None = None,
    serial: int | None = None,
) -> CertifiedKey:
    """Issue a certificate with the validity of this file."""
    return pki.issue(
        name(common_name),
        extensions,
        issuer=issuer,
        not_before=not_before,
        not_after=not_after,
        key=key,
        serial=serial,
    )


def read(certificate: x509.Certificate) -> Certificate:
    """The certificate as the product sees it."""
    return Certificate.parse(der(certificate))


@dataclass(frozen=True)
class TimestampAuthority:
    """An authority by its signer; the certificates above it are the signer's issuers."""

    signer: CertifiedKey

    @classmethod
    def set_up(cls, extensions: pki.Extensions | None = None) -> TimestampAuthority:
        """Root, intermediate and signer; `extensions` in place of the signer's good ones."""
        root = certify("Root", pki.authority())
        issuing = certify("Issuing", pki.authority(path_length=0), root)
        return cls(certify("Stamper", pki.timestamping() if extensions is None else extensions, issuing))

    @property
    def root(self) -> Certificate:
        """What goes into the trust store."""
        return read(self.signer.root)

    def token(
        self,
        message: bytes,
        *,
        gen_time: datetime = GEN_TIME,
        hash_algorithm: str = "sha256",
        digest: str = "sha256",
        certificates: Sequence[x509.Certificate] | None = None,
        edit_content: Callable[[bytes], bytes] = lambda content: content,
        edit_attributes: Callable[[list[bytes]], list[bytes]] = lambda attributes: attributes,
        edit_signer: Callable[[bytes], bytes] = lambda signer: signer,
        more_signers: Sequence[bytes] = (),
        signed_data: dict[str, Any] | None = None,
        **tst_info: Any,
    ) -> bytes:
        """Stamp a message.

        Args:
            message: what is stamped.
            gen_time: the time to state.
            hash_algorithm: hash of the imprint.
            digest: hash of the content and name of the signer's digest algorithm.
            certificates: what goes along in place of signer and issuers without the root.
            edit_content: changes TSTInfo before it is signed.
            edit_attributes: changes the signed attributes before they are signed.
            edit_signer: changes the SignerInfo after it was signed.
            more_signers: encoded SignerInfos to put beside it.
            signed_data: options of timestamping.signed_data.
            tst_info: options of timestamping.tst_info.
        """
        tst_info.setdefault("message_imprint", hashlib.new(hash_algorithm, message).digest())
        content = edit_content(timestamping.tst_info(hash_algorithm=hash_algorithm, gen_time=gen_time, **tst_info))
        attributes = edit_attributes(timestamping.signed_attributes(content, self.signer.certificate, digest=digest))
        signer = timestamping.signer_info(attributes, self.signer.key, self.signer.certificate, digest=digest)
        sent = self.signer.chain[:-1] if certificates is None else certificates
        return timestamping.signed_data(
            content, [der(entry) for entry in sent], [*more_signers, edit_signer(signer)], **(signed_data or {})
        )
