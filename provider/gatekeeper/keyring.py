"""What the Secret of the serving certificate holds, read as far as it can be used, and written.

| key | content |
|---|---|
| ca.crt, ca.key | the authority of the serving certificate; the key is absent when somebody else keeps it |
| tls.crt, tls.key | serving certificate with intermediates, and its key |
| next-ca.crt, next-ca.key | the coming authority, on its way into every caBundle |
| old-ca.crt, old-ca.until | authorities that are still trusted, as some replica may use them; until when (RFC 3339) |

Rules:
- The first four are those of Ratify and of cert-controller, so that a cluster can be moved over and back without a new
  authority. The others are ours and are there during a change only. Keys that are not listed stay as they are.
- Reading never fails: a part that cannot be used is left out and named in `faults`. Whether what is left will do is for
  rotation_plan.py to say; time and names are not looked at here.
- No key and no foreign text gets into `faults` or a repr.

What does not belong here: the Kubernetes API (rotation.py), decisions (rotation_plan.py).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from cryptography import x509

from provider.errors import ConfigurationError
from provider.gatekeeper.issuance import (
    MAX_CERTIFICATES,
    MAX_PEM_BYTES,
    Authority,
    ServingPair,
    authority_of,
    certificates_pem,
    key_pem,
    read_certificates,
    read_key,
    unusable,
)

T = TypeVar("T")

CA_CERTIFICATE: Final = "ca.crt"
CA_KEY: Final = "ca.key"
CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
NEXT_CA_CERTIFICATE: Final = "next-ca.crt"
NEXT_CA_KEY: Final = "next-ca.key"
OLD_CA_CERTIFICATES: Final = "old-ca.crt"
OLD_CA_UNTIL: Final = "old-ca.until"
ENTRIES: Final = (
    *(CA_CERTIFICATE, CA_KEY, CERTIFICATE, KEY),
    *(NEXT_CA_CERTIFICATE, NEXT_CA_KEY, OLD_CA_CERTIFICATES, OLD_CA_UNTIL),
)
MAX_OLD: Final = 8  # authorities; more than two are there only if somebody replaces the Secret again and again
_MAX_BUNDLE: Final = 3 * MAX_CERTIFICATES  # more than ca.crt, next-ca.crt and old-ca.crt can hold together
_MAX_TIME_LENGTH: Final = 40  # characters of an RFC 3339 time with microseconds and zone


@dataclass(frozen=True, slots=True)
class Keyring:
    """The usable content of the Secret.

    Attributes:
        authority: None when its certificate is absent or cannot be used.
        pair: None when it is absent, cannot be used, or does not lead to the authority.
        coming: the next authority, with its key.
        old: authorities that are still trusted, the newest first.
        old_until: when trust in them ends (aware, UTC); None when that is not known.
        faults: what could not be used, a sentence each.
    """

    authority: Authority | None = None
    pair: ServingPair | None = None
    coming: Authority | None = None
    old: tuple[x509.Certificate, ...] = ()
    old_until: datetime | None = None
    faults: tuple[str, ...] = ()

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """What callers are to trust: each caBundle has exactly these."""
        current = () if self.authority is None else self.authority.certificates
        coming = () if self.coming is None else self.coming.certificates
        return tuple(dict.fromkeys((*current, *coming, *self.old)))

    def with_old(self, certificates: Iterable[x509.Certificate], until: datetime) -> Keyring:
        """The same with more authorities in `old`, none of which is trusted for another reason."""
        others = replace(self, old=()).trusted
        wanted = dict.fromkeys((*certificates, *self.old))
        old = tuple(certificate for certificate in wanted if certificate not in others)[:MAX_OLD]
        return replace(self, old=old, old_until=until if old else None)

    def entries(self) -> dict[str, bytes]:
        """The content as it is written to the Secret; keys of ENTRIES that are missing are to be removed from it."""
        entries: dict[str, bytes] = {}
        if self.authority is not None:
            entries |= _authority_entries(self.authority, CA_CERTIFICATE, CA_KEY)
        if self.pair is not None:
            entries |= {CERTIFICATE: certificates_pem(self.pair.chain), KEY: key_pem(self.pair.key)}
        if self.coming is not None:
            entries |= _authority_entries(self.coming, NEXT_CA_CERTIFICATE, NEXT_CA_KEY)
        if self.old:
            entries[OLD_CA_CERTIFICATES] = certificates_pem(self.old)
            if self.old_until is not None:
                entries[OLD_CA_UNTIL] = self.old_until.astimezone(UTC).isoformat(timespec="seconds").encode()
        return entries


def read_keyring(data: Mapping[str, Any]) -> Keyring:
    """Read the `data` of a Secret, as the Kubernetes API gives it: values are base64."""
    faults: list[str] = []

    def read(name: str, parse: Callable[[bytes], T]) -> T | None:
        try:
            value = _decode(data.get(name))
            return parse(value) if value else None
        except ConfigurationError as error:
            faults.append(f"{name}: {error.reason}")
            return None

    authority = _read_authority(read, CA_CERTIFICATE, CA_KEY)
    coming = _read_authority(read, NEXT_CA_CERTIFICATE, NEXT_CA_KEY)
    if coming is not None and coming.key is None:
        faults.append(f"{NEXT_CA_KEY}: the key of {NEXT_CA_CERTIFICATE} is missing")
        coming = None
    chain, key = read(CERTIFICATE, read_certificates), read(KEY, read_key)
    pair: ServingPair | None = None
    if chain is not None and key is not None and authority is not None:
        try:
            pair = ServingPair.of(chain, key, authority.certificates)
        except ConfigurationError as error:
            faults.append(f"{CERTIFICATE}: {error.reason}")
    old = read(OLD_CA_CERTIFICATES, read_certificates) or ()
    old_until = read(OLD_CA_UNTIL, _read_time)
    return Keyring(authority, pair, coming, old[:MAX_OLD], old_until, tuple(faults))


def encode(entry: bytes) -> str:
    """A value of a Secret's `data`, or a caBundle."""
    return base64.b64encode(entry).decode("ascii")


def read_bundle(value: object) -> frozenset[x509.Certificate] | None:
    """The certificates of a caBundle; None when it cannot be read."""
    try:
        return frozenset(read_certificates(_decode(value), limit=_MAX_BUNDLE))
    except ConfigurationError:
        return None


def _authority_entries(authority: Authority, certificate: str, key: str) -> dict[str, bytes]:
    entries = {certificate: certificates_pem(authority.certificates)}
    if authority.key is not None:
        entries[key] = key_pem(authority.key)
    return entries


def _read_authority(read: Callable[[str, Callable[[bytes], Any]], Any], certificate: str, key: str) -> Authority | None:
    certificates = read(certificate, read_certificates)
    return None if certificates is None else authority_of(certificates, read(key, read_key))


def _decode(value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str) or len(value) > 2 * MAX_PEM_BYTES:
        raise unusable("the value is not base64 text, or too long")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise unusable("the value is not base64") from None


def _read_time(data: bytes) -> datetime:
    try:
        time = datetime.fromisoformat(data[:_MAX_TIME_LENGTH].decode("ascii"))
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise unusable("the value is not a time with its zone")
