"""Certificate revocation lists: read and indexed once, and what a list proves about a certificate.

Rules:
- A list counts only if the certificate's issuer signed it, under its own name and with the right to (keyUsage cRLSign),
  and if the certificate is in its scope. Indirect lists are not supported.
- A list is current from thisUpdate to nextUpdate. One that has expired clears nobody, but still revokes whom it lists
  for good.
- A complete list that names where its delta lives (freshestCRL) counts only together with that delta, which must follow
  it; the entries of both are weighed together. A delta named by the certificate alone is not supported.
- certificateHold and removeFromCRL: the latest entry decides. Every other reason, none included, revokes for good.
- An entry is ignored when the signature is known to be older than the entry's invalidityDate. revocationDate alone
  forgives nothing: a stolen key can sign with any date.
- Only extensions processed here may be critical, in a list and in an entry that matches.

A list may have 32 MiB and a million entries, so reading copies little and the index holds the serial numbers alone; an
entry is read when somebody asks for it. `RevocationList.parse` takes about 1 s then, and may run in a thread.

What does not belong here: fetching, which location to ask next and what follows from the answer (revocation.py).
Sources: RFC 5280 sections 5 and 6.3.3; notaryproject/specifications trust-store-trust-policy.md "Revocation Checking
with CRL"; the limits are those of notation-core-go.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from provider.notation import asn1
from provider.notation.asn1 import Element, MalformedASN1Error, Reader
from provider.notation.certificates import Certificate
from provider.notation.extensions import Extension
from provider.notation.signed_status import (
    INVALIDITY_DATE,
    SignedPart,
    check_current,
    check_not_from_future,
    read_extension_list,
    read_invalidity_date,
    unknown,
)

MAX_CRL_BYTES: Final = 32 * 1024 * 1024  # notation-core-go; 100,000 entries take 3 to 4 MiB
MAX_CRL_ENTRIES: Final = 1_000_000  # about what MAX_CRL_BYTES hold; bounds the index to some 150 MiB
CRL_TIMEOUT_SECONDS: Final = 5.0  # for one download; the specification's number
MAX_ENTRIES_OF_ONE_SERIAL: Final = 16  # a complete list has one, a delta one; more would only cost time

FRESHEST_CRL: Final = "2.5.29.46"
_CRL_NUMBER: Final = "2.5.29.20"
_REASON: Final = "2.5.29.21"
_DELTA_INDICATOR: Final = "2.5.29.27"
_SCOPE: Final = "2.5.29.28"  # issuingDistributionPoint

_MAY_BE_CRITICAL: Final = frozenset({_SCOPE, _DELTA_INDICATOR})  # the specification's two
_MAY_BE_CRITICAL_IN_ENTRY: Final = frozenset({_REASON, INVALIDITY_DATE})
_ENUMERATED: Final = 0x0A
_URI: Final = asn1.context(6, constructed=False)
_BYTES_PER_SERIAL: Final = 150  # what the index takes for one entry, roughly
_MIN_ENTRY_TAIL: Final = 15  # octets of the shortest time, a UTCTime
_MAX_HEAD_BYTES: Final = 64 * 1024  # of a list before its entries: names have up to some hundred
_MAX_NUMBER_BYTES: Final = 64  # of a CRL number; RFC 5280 section 5.2.3 has up to 20
_WHAT: Final = "CRL"


@dataclass(frozen=True, slots=True)
class CrlQuery:
    """A wish for the list at one location.

    Attributes:
        url: an http URL as the certificate, or the complete list, has it.
        issuer: who is to have signed it. Part of what makes two queries equal: what the certificates of one authority
            brought in is never taken for another's list. It also lets the signature be verified where the list is read.
    """

    url: str
    issuer: Certificate


class Reason(enum.IntEnum):
    """Reasons of RFC 5280 section 5.3.1."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    CA_COMPROMISE = 2
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    CERTIFICATE_HOLD = 6
    REMOVE_FROM_CRL = 8
    PRIVILEGE_WITHDRAWN = 9
    AA_COMPROMISE = 10


@dataclass(frozen=True, slots=True)
class RevokedEntry:
    """One entry of a list.

    Attributes:
        revoked_at: revocationDate.
        reason: number of the reason, UNSPECIFIED when absent; numbers that nobody defined are kept as they are.
        invalid_from: invalidityDate, None when absent.
    """

    revoked_at: datetime
    reason: int
    invalid_from: datetime | None

    @property
    def is_for_good(self) -> bool:
        """Whether nothing can undo it."""
        return self.reason not in (Reason.CERTIFICATE_HOLD, Reason.REMOVE_FROM_CRL)

    def __str__(self) -> str:
        known = {reason.value: reason.name.lower().replace("_", " ") for reason in Reason}
        return f"{known.get(self.reason, f'reason {self.reason}')} on {self.revoked_at.isoformat()}"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which certificates a list is about: its issuingDistributionPoint.

    Attributes:
        encoded: the extension's value; a delta must have the same as its complete list.
        names: URIs of the distribution point; None when it has no name, and is that of all certificates.
        users_only: only certificates that are not authorities.
        authorities_only: only authorities.
        attributes_only: only attribute certificates.
        some_reasons_only: only some reasons, so that absence from the list clears nobody.
        indirect: entries may be of other authorities.
    """

    encoded: bytes
    names: tuple[str, ...] | None
    users_only: bool
    authorities_only: bool
    attributes_only: bool
    some_reasons_only: bool
    indirect: bool


@dataclass(frozen=True, slots=True, eq=False)
class RevocationList:
    """A list that was read. Nothing of it is verified by that; `check_authentic` and its neighbours do.

    Kept for a second use it costs neither reading nor a signature operation (SignedPart remembers).

    Attributes:
        signed: what the issuer signed.
        issuer: DER of the issuer's name.
        this_update: when it was issued.
        next_update: when the next one is due; None when it does not say.
        number: cRLNumber, None when absent.
        base_number: the number of the complete list that this is a delta to; None for a complete list.
        scope: None when the list is about every certificate of the issuer.
        delta_urls: where its delta lives, of any scheme; None when it has none.
        critical_extensions: identifiers of critical extensions that are not processed.
        delta: the delta that was joined to it.
    """

    signed: SignedPart
    issuer: bytes
    this_update: datetime
    next_update: datetime | None
    number: int | None
    base_number: int | None
    scope: Scope | None
    delta_urls: tuple[str, ...] | None
    critical_extensions: tuple[str, ...]
    _positions: dict[bytes, int | list[int]] = field(repr=False)  # by the serial number's octets, into signed.octets
    delta: RevocationList | None = None

    @classmethod
    def parse(cls, der: bytes) -> RevocationList:
        """Read and index a list.

        Args:
            der: foreign bytes in DER (PEM is not accepted), at most MAX_CRL_BYTES.

        Raises:
            Refused: REVOCATION_UNKNOWN.
        """
        if len(der) > MAX_CRL_BYTES:
            raise unknown(f"the {_WHAT} is too large", expected=f"at most {MAX_CRL_BYTES} bytes")
        try:
            return _parse(der)
        except MalformedASN1Error as error:
            raise unknown(f"the {_WHAT} cannot be read: {error}") from None

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes, its delta included."""
        own = len(self.signed.octets) + _BYTES_PER_SERIAL * len(self._positions) + 2048
        return own + (self.delta.weight if self.delta is not None else 0)

    @property
    def wants_delta(self) -> bool:
        """Whether it names a delta that was not joined to it yet."""
        return self.delta_urls is not None and self.delta is None

    def entries(self, certificate: Certificate) -> tuple[RevokedEntry, ...]:
        """The entries for a certificate's serial number, the delta's after its own.

        Raises:
            Refused: REVOCATION_UNKNOWN, when one is malformed or has an unknown critical extension.
        """
        serial = certificate.serial
        found = self._positions.get(serial.to_bytes(serial.bit_length() // 8 + 1, "big"), [])
        positions = [found] if isinstance(found, int) else found
        if len(positions) > MAX_ENTRIES_OF_ONE_SERIAL:
            raise unknown(f"the {_WHAT} lists one serial number {len(positions)} times")
        try:
            own = tuple(_read_entry(self.signed.octets, position) for position in positions)
        except MalformedASN1Error as error:
            raise unknown(f"an entry of the {_WHAT} cannot be read: {error}") from None
        return own + (self.delta.entries(certificate) if self.delta is not None else ())

    @property
    def next_due(self) -> datetime | None:
        """When it, or the delta joined to it, is to be replaced; None when one of them does not say."""
        dates = [part.next_update for part in (self, self.delta) if part is not None]
        return None if None in dates else min(date for date in dates if date is not None)

    def joined(self, delta: RevocationList, issuer: Certificate, at: datetime) -> RevocationList:
        """The list together with a delta to it (RFC 5280 section 5.2.4).

        Raises:
            Refused: REVOCATION_UNKNOWN, when the delta is not authentic, not current or not one to this list.
        """
        what = "delta CRL"
        check_authentic(delta, issuer)
        check_not_from_future(what, delta.this_update, at)
        check_current(what, delta.next_update, at)
        if delta.base_number is None:
            raise unknown(f"the {what} is none: it has no deltaCRLIndicator")
        if self.number is None or delta.number is None:
            raise unknown(f"the {what} cannot be joined: it or the complete CRL has no number")
        if delta.base_number > self.number or delta.number <= self.number:
            raise unknown(
                f"the {what} does not follow the complete CRL",
                expected=f"a base up to {self.number:#x} and a number over it",
                found=f"base {delta.base_number:#x}, number {delta.number:#x}",
            )
        if (delta.scope and delta.scope.encoded) != (self.scope and self.scope.encoded):
            raise unknown(f"the {what} has another scope than the complete CRL")
        return replace(self, delta=delta)


# -- what a list proves (RFC 5280 section 6.3.3) ----------------------------------------------------------------------


def check_authentic(revocation_list: RevocationList, issuer: Certificate) -> None:
    """Check that a list is the issuer's, and that it asks for nothing that is not processed.

    Raises:
        Refused: REVOCATION_UNKNOWN.
    """
    if revocation_list.issuer != issuer.subject:
        raise unknown(f"the {_WHAT} is of another issuer", expected=issuer.subject_text)
    if issuer.key_usage is not None and "cRLSign" not in issuer.key_usage.usages:
        raise unknown(f"the keyUsage of {issuer.subject_text!r} does not allow it to sign CRLs")
    if revocation_list.critical_extensions:
        raise unknown(
            f"the {_WHAT} has the critical extension {revocation_list.critical_extensions[0]}, which is not processed"
        )
    revocation_list.signed.check_signed_by(issuer)


def check_complete_list(
    revocation_list: RevocationList, certificate: Certificate, issuer: Certificate, at: datetime
) -> None:
    """Check that a list is an authentic complete one, already issued, with the certificate in its scope.

    Whether it has expired, and whether a delta is wanting, is not checked.

    Raises:
        Refused: REVOCATION_UNKNOWN.
    """
    check_authentic(revocation_list, issuer)
    check_not_from_future(_WHAT, revocation_list.this_update, at)
    if revocation_list.base_number is not None:
        raise unknown(f"the {_WHAT} is a delta, not a complete one")
    if revocation_list.scope is not None:
        _check_scope(revocation_list.scope, certificate)
    if revocation_list.delta_urls is None and FRESHEST_CRL in certificate.extensions:
        raise unknown("a delta CRL is named by the certificate and not by its CRL, which is not supported")


def _check_scope(scope: Scope, certificate: Certificate) -> None:
    if scope.indirect:
        raise unknown(f"the {_WHAT} is an indirect one, which is not supported")
    if scope.names is not None and not set(scope.names) & set(certificate.crl_urls):
        raise unknown(
            f"the {_WHAT} is of another distribution point",
            expected=", ".join(certificate.crl_urls),
            found=", ".join(scope.names),
        )
    excluded = scope.users_only if certificate.is_authority else scope.authorities_only
    if excluded or scope.attributes_only:
        kind = "authorities" if certificate.is_authority else "certificates that are not authorities"
        raise unknown(f"the {_WHAT} does not cover {kind}")


def find_revocation(
    revocation_list: RevocationList, certificate: Certificate, signing_time: datetime | None
) -> RevokedEntry | None:
    """Find the entry that revokes a certificate, in a list that was checked. None: the list does not revoke it.

    Args:
        revocation_list: the list, with its delta.
        certificate: the certificate in question.
        signing_time: a trusted time by which the signature existed, None when there is none.

    Raises:
        Refused: REVOCATION_UNKNOWN, when an entry cannot be read.
    """
    latest: RevokedEntry | None = None
    for entry in revocation_list.entries(certificate):
        if signing_time is not None and entry.invalid_from is not None and signing_time < entry.invalid_from:
            continue
        if entry.is_for_good:
            return entry
        # Of two of the same date the hold counts: the order of entries says nothing.
        if latest is None or (entry.revoked_at, -entry.reason) > (latest.revoked_at, -latest.reason):
            latest = entry
    return latest if latest is not None and latest.reason == Reason.CERTIFICATE_HOLD else None


def check_clears(revocation_list: RevocationList) -> None:
    """Check that absence from a list means anything: it does not when the list is about some reasons only.

    Raises:
        Refused: REVOCATION_UNKNOWN.
    """
    if revocation_list.scope is not None and revocation_list.scope.some_reasons_only:
        raise unknown(f"the {_WHAT} covers some reasons only")


# -- reading (RFC 5280 section 5.1) -----------------------------------------------------------------------------------


def _parse(der: bytes) -> RevocationList:
    outer_start, outer_end = _sequence_at(der, 0)
    _, signed_end = _sequence_at(der, outer_start)
    tail = Reader(der[signed_end:outer_end], _WHAT)
    algorithm = tail.read(asn1.SEQUENCE, "signatureAlgorithm")
    signature = asn1.decode_whole_octets(tail.read(asn1.BIT_STRING, "signature"))
    tail.finish()
    if outer_end != len(der):
        raise MalformedASN1Error(f"{len(der) - outer_end} octets too many after the CRL")

    octets = der[outer_start:signed_end]
    position, end = _sequence_at(octets, 0)
    head = Reader(octets[position : position + _MAX_HEAD_BYTES], "TBSCertList")
    version = head.read(asn1.INTEGER, "version")
    inner_algorithm = head.read(asn1.SEQUENCE, "signature algorithm")
    issuer = head.read(asn1.SEQUENCE, "issuer")
    this_update = head.read_any()
    next_update = head.read_any() if head.next_tag() in (asn1.UTC_TIME, asn1.GENERALIZED_TIME) else None
    if asn1.decode_integer(version) != 1:
        raise MalformedASN1Error("the CRL is not of version 2")
    if inner_algorithm.encoded != algorithm.encoded:
        raise MalformedASN1Error("the signature algorithm inside differs from the one outside")
    for element in (version, inner_algorithm, issuer, this_update, next_update):
        position += 0 if element is None else len(element.encoded)

    positions: dict[bytes, int | list[int]] = {}
    if octets[position : position + 1] == b"\x30":
        first, position = _sequence_at(octets, position)
        positions = _index(octets, first, position)
    rest = Reader(octets[position:end], "TBSCertList")
    wrapped = rest.optional(asn1.context(0))
    rest.finish()
    extensions = {} if wrapped is None else read_extension_list(wrapped.content)
    number, base_number = extensions.get(_CRL_NUMBER), extensions.get(_DELTA_INDICATOR)
    scope, freshest = extensions.get(_SCOPE), extensions.get(FRESHEST_CRL)
    return RevocationList(
        signed=SignedPart(_WHAT, octets, algorithm.encoded, signature),
        issuer=issuer.encoded,
        this_update=asn1.decode_time(this_update),
        next_update=None if next_update is None else asn1.decode_time(next_update),
        number=None if number is None else _read_number(number),
        base_number=None if base_number is None else _read_number(base_number),
        scope=None if scope is None else _read_scope(scope.value),
        delta_urls=None if freshest is None else _read_delta_urls(freshest.value),
        critical_extensions=_unprocessed(extensions, _MAY_BE_CRITICAL),
        _positions=positions,
    )


def _sequence_at(data: bytes, position: int) -> tuple[int, int]:
    """Where the content of the SEQUENCE at `position` starts and ends. asn1.Reader would copy what may be 32 MiB."""
    if data[position : position + 1] != b"\x30" or position + 2 > len(data):
        raise MalformedASN1Error("a SEQUENCE of the CRL is missing or truncated")
    length, start = data[position + 1], position + 2
    if length >= 0x80:
        octets = data[start : start + (length & 0x7F)]
        start += length & 0x7F
        length = int.from_bytes(octets[:8], "big")
        if not 0 < len(octets) <= 8 or octets[0] == 0 or length < 0x80:
            raise MalformedASN1Error("a length in the CRL is not as DER has it")
    if start + length > len(data):
        raise MalformedASN1Error("a SEQUENCE of the CRL is truncated")
    return start, start + length


def _index(octets: bytes, position: int, end: int) -> dict[bytes, int | list[int]]:
    """Find every entry's place by its serial number. Nothing else of the entries is read.

    The octets of the serial number are the key, not the number: an attacker can choose numbers whose hashes collide.
    """
    index: dict[bytes, int | list[int]] = {}
    count = 0
    while position < end:
        count += 1
        start, entry_end = _sequence_at(octets, position)
        size = octets[start + 1] if entry_end - start > _MIN_ENTRY_TAIL else 0
        serial = octets[start + 2 : start + 2 + size]
        # The shortest form only: a second form of one number would hide it from who looks for the first.
        if (
            not 0 < size < 0x80
            or entry_end - start < 2 + size + _MIN_ENTRY_TAIL
            or octets[start] != asn1.INTEGER
            or (size > 1 and serial[0] in (0x00, 0xFF) and serial[0] >> 7 == serial[1] >> 7)
            or entry_end > end
            or count > MAX_CRL_ENTRIES
        ):
            raise MalformedASN1Error(f"entry {count} of the CRL is malformed, or one too many")
        known = index.setdefault(serial, position)
        if isinstance(known, list):
            known.append(position)
        elif known != position:
            index[serial] = [known, position]
        position = entry_end
    return index


def _read_entry(octets: bytes, position: int) -> RevokedEntry:
    start, end = _sequence_at(octets, position)
    reader = Reader(octets[start:end], "entry")
    reader.read(asn1.INTEGER, "serial number")
    revoked_at = asn1.decode_time(reader.read_any())
    listed = reader.optional(asn1.SEQUENCE)
    reader.finish()
    extensions = {} if listed is None else read_extension_list(listed.encoded)
    unprocessed = _unprocessed(extensions, _MAY_BE_CRITICAL_IN_ENTRY)
    if unprocessed:
        raise MalformedASN1Error(f"it has the critical extension {unprocessed[0]}, which is not processed")
    reason, invalidity = extensions.get(_REASON), extensions.get(INVALIDITY_DATE)
    return RevokedEntry(
        revoked_at=revoked_at,
        reason=Reason.UNSPECIFIED
        if reason is None
        else asn1.decode_integer(asn1.read_whole(reason.value, _ENUMERATED, "reason"), _ENUMERATED),
        invalid_from=None if invalidity is None else read_invalidity_date(invalidity.value),
    )


def _unprocessed(extensions: Mapping[str, Extension], may_be_critical: frozenset[str]) -> tuple[str, ...]:
    return tuple(key for key, extension in extensions.items() if extension.critical and key not in may_be_critical)


def _read_number(extension: Extension) -> int:
    number = asn1.decode_integer(asn1.read_whole(extension.value, asn1.INTEGER, "CRL number"))
    if number < 0 or len(extension.value) > _MAX_NUMBER_BYTES:
        raise MalformedASN1Error("the CRL number is negative or too long")
    return number


def _read_scope(value: bytes) -> Scope:
    """IssuingDistributionPoint of RFC 5280 section 5.2.5."""
    what = "issuingDistributionPoint"
    reader = asn1.open_sequence(asn1.read_whole(value, asn1.SEQUENCE, what), what)
    point = reader.optional(asn1.context(0))
    users_only, authorities_only = _flag(reader, 1), _flag(reader, 2)
    reasons = reader.optional(asn1.context(3, constructed=False))
    indirect, attributes_only = _flag(reader, 4), _flag(reader, 5)
    reader.finish()
    return Scope(
        encoded=value,
        names=None if point is None else tuple(_full_names(point, what)),
        users_only=users_only,
        authorities_only=authorities_only,
        attributes_only=attributes_only,
        some_reasons_only=reasons is not None,
        indirect=indirect,
    )


def _flag(reader: Reader, number: int) -> bool:
    element = reader.optional(asn1.context(number, constructed=False))
    return element is not None and asn1.decode_boolean(Element(asn1.BOOLEAN, element.content, element.encoded))


def _read_delta_urls(value: bytes) -> tuple[str, ...]:
    """CRLDistributionPoints as in freshestCRL (RFC 5280 section 5.2.6)."""
    what = "freshestCRL"
    urls: list[str] = []
    for point in asn1.open_sequence(asn1.read_whole(value, asn1.SEQUENCE, what), what).rest():
        name = asn1.open_sequence(point, what).optional(asn1.context(0))
        if name is not None:
            urls.extend(_full_names(name, what))
    return tuple(urls)


def _full_names(name: Element, what: str) -> Iterator[str]:
    """The URIs of a DistributionPointName. One that is relative to the issuer has none, and so matches nothing."""
    full_name = Reader(name.content, what).optional(asn1.context(0))
    if full_name is None:
        return
    for general_name in Reader(full_name.content, what).rest():
        if general_name.tag == _URI:
            yield general_name.content.decode("latin-1")  # never fails; what is not ASCII is no URL of ours
