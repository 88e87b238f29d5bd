"""Whether a certificate of a chain was revoked: whom to ask, in which order, and what follows from the answers.

A generator without input or output: it yields batches of what it wants of the network, and is sent what came of it.

    OcspQuery, CrlQuery  fetch this; the answer is bytes, what a Keep gave to keep, or a FetchFailure
    Keep                 an answer was judged authentic and current: keep it until then, give it out for an equal query

Rules:
- Every certificate but the root is checked, each with the next as its issuer, all at the same time.
- No OCSP responder and no CRL named: the certificate cannot be revoked, which passes. OCSP first; CRLs when there is no
  responder or none of them says good or revoked.
- Responders are asked in order until one gives a status. CRL locations are asked in order until one delivers; what it
  delivers decides. Locations that are not http are passed over.
- Anything but a valid "good" or a valid list without the certificate is not good: revoked if some authority says so,
  else unknown. Nothing passes for want of an answer.
- An appointed OCSP responder without id-pkix-ocsp-nocheck must itself not be on its issuer's CRL. If it names no CRL,
  its response is not used: RFC 6960 leaves that to local policy, and the CRL of the certificate may still answer.
- An answer that fails a check is never kept.

What does not belong here: the network (verifiers/revocation_fetcher.py), what a failure means for the signature
(verification.py), the rules inside a response or list (ocsp.py, crl.py).
Source: notaryproject/specifications trust-store-trust-policy.md "Certificate Revocation Evaluation".
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final, TypeAlias, TypeVar

from provider.errors import Refused, Undecided
from provider.notation import crl, ocsp
from provider.notation.certificates import Certificate, check_code_signing_chain, check_timestamping_chain
from provider.notation.crl import CrlQuery, RevocationList
from provider.notation.extensions import AUTHORITY_INFORMATION_ACCESS, CRL_DISTRIBUTION_POINTS
from provider.notation.ocsp import CertStatus, OcspQuery, OcspResponse
from provider.notation.signed_status import check_current, is_http_url, unknown

MAX_SERVERS: Final = 4  # servers asked for one certificate by one method; certificates name one or two

T = TypeVar("T")


class ServerOutcome(enum.Enum):
    """What came of one server."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"  # the responder does not know the certificate
    UNUSABLE = "unusable"  # it answered, and the answer does not count
    UNREACHABLE = "unreachable"  # no answer this time
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class FetchFailure:
    """An answer that could not be had.

    Attributes:
        reason: why, for people.
        outcome: UNREACHABLE when asking again may help, UNUSABLE when an answer came that breaks a limit, NOT_ASKED
            when the location may not be asked.
    """

    reason: str
    outcome: ServerOutcome = ServerOutcome.UNREACHABLE


@dataclass(frozen=True, slots=True, eq=False)
class Keep:
    """An answer worth keeping. Who drives the generator may do so, and then gives it out for an equal query.

    Attributes:
        query: what it answers.
        answer: the answer, read and verified, so that its next use costs neither.
        until: the time from which on it is not current any more (aware, UTC).
    """

    query: OcspQuery | CrlQuery
    answer: OcspResponse | RevocationList
    until: datetime


Fetch: TypeAlias = OcspQuery | CrlQuery
Query: TypeAlias = Fetch | Keep
Answer: TypeAlias = bytes | OcspResponse | RevocationList | FetchFailure
Inquiry: TypeAlias = Generator[tuple[Query, ...], Mapping[Query, Answer], T]


class Purpose(enum.Enum):
    """What a chain is for, which decides its certificate rules."""

    CODE_SIGNING = "codesigning"
    TIMESTAMPING = "timestamping"


class CertificateStatus(enum.Enum):
    """What was found of one certificate."""

    OK = "OK"
    NON_REVOKABLE = "NonRevokable"
    REVOKED = "Revoked"
    UNKNOWN = "Unknown"


class Method(enum.Enum):
    """How it was found."""

    NONE = "none"
    OCSP = "OCSP"
    CRL = "CRL"
    OCSP_FALLBACK_CRL = "OCSPFallbackCRL"


@dataclass(frozen=True, slots=True)
class ServerNote:
    """What one server contributed.

    Attributes:
        method: OCSP or CRL.
        url: the location; foreign text.
        outcome: what came of it.
        text: the reason for people; holds foreign text.
    """

    method: Method
    url: str
    outcome: ServerOutcome
    text: str

    def __str__(self) -> str:
        return f"{self.method.value} {self.url} {self.outcome.value}: {self.text}"


@dataclass(frozen=True, slots=True)
class CertificateRevocation:
    """What was found of one certificate, and from whom.

    Attributes:
        certificate: the certificate.
        status: what was found.
        method: how.
        servers: one note for each server, in the order in which they were asked.
    """

    certificate: Certificate
    status: CertificateStatus
    method: Method
    servers: tuple[ServerNote, ...] = ()

    @property
    def unavailable(self) -> bool:
        """Whether it is unknown only because nobody could be reached, so that another attempt may find out."""
        outcomes = {note.outcome for note in self.servers}
        return (
            self.status is CertificateStatus.UNKNOWN
            and ServerOutcome.UNREACHABLE in outcomes
            and not outcomes & {ServerOutcome.UNKNOWN, ServerOutcome.UNUSABLE}
        )

    @property
    def reason(self) -> str:
        """The finding in one line, for people. Holds foreign text."""
        words = {
            CertificateStatus.OK: "was not revoked",
            CertificateStatus.NON_REVOKABLE: "names no OCSP responder and no CRL",
            CertificateStatus.REVOKED: "was revoked",
            CertificateStatus.UNKNOWN: "may have been revoked",
        }
        notes = "".join(f"; {note}" for note in self.servers)
        return f"{self.certificate.subject_text!r} {words[self.status]}{notes}"


class ChainStatus(enum.Enum):
    """What was found of a whole chain."""

    OK = "OK"
    REVOKED = "Revoked"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class ChainRevocation:
    """What was found of a chain.

    Attributes:
        certificates: leaf first, root last; the root is never asked about.
    """

    certificates: tuple[CertificateRevocation, ...]

    @property
    def status(self) -> ChainStatus:
        """Revoked if any certificate is, else unknown if any is, else OK."""
        statuses = {found.status for found in self.certificates}
        if CertificateStatus.REVOKED in statuses:
            return ChainStatus.REVOKED
        return ChainStatus.UNKNOWN if CertificateStatus.UNKNOWN in statuses else ChainStatus.OK

    @property
    def unavailable(self) -> bool:
        """Whether it is unknown only because servers could not be reached, so that another attempt may find out."""
        unknown_ones = [found for found in self.certificates if found.status is CertificateStatus.UNKNOWN]
        return self.status is ChainStatus.UNKNOWN and all(found.unavailable for found in unknown_ones)

    @property
    def reason(self) -> str:
        """Why the chain is not OK, in one line for people; empty when it is. Holds foreign text."""
        decisive = {
            ChainStatus.OK: None,
            ChainStatus.REVOKED: CertificateStatus.REVOKED,
            ChainStatus.UNKNOWN: CertificateStatus.UNKNOWN,
        }[self.status]
        return " / ".join(found.reason for found in self.certificates if found.status is decisive)


def check_chain(
    chain: Sequence[Certificate], *, purpose: Purpose, at: datetime, signing_time: datetime | None
) -> Inquiry[ChainRevocation]:
    """Find out whether a certificate of a chain was revoked.

    Args:
        chain: leaf first, root last.
        purpose: what the chain is for.
        at: the time of the decision (aware, UTC).
        signing_time: a trusted time by which the signature existed, None when there is none. It forgives a revocation
            whose invalidityDate is later.

    Returns:
        What was found. REVOKED and UNKNOWN are findings; the caller decides what they mean.

    Raises:
        Refused: CERTIFICATE_CHAIN_INVALID or ALGORITHM_UNSUPPORTED, before anything is asked, when the chain breaks the
            certificate rules of its purpose.
    """
    check = check_code_signing_chain if purpose is Purpose.CODE_SIGNING else check_timestamping_chain
    check(chain)
    found = yield from in_parallel(
        [
            _check_certificate(_Question(certificate, issuer, at, signing_time))
            for certificate, issuer in pairwise(chain)
        ]
    )
    root = CertificateRevocation(chain[-1], CertificateStatus.NON_REVOKABLE, Method.NONE)
    return ChainRevocation((*found, root))


def in_parallel(inquiries: Iterable[Inquiry[T]]) -> Inquiry[tuple[T, ...]]:
    """Run inquiries side by side: each round yields what all of them want, once, and sends the answers to all.

    Returns:
        Their results, in their order.
    """
    running = dict(enumerate(inquiries))
    results: dict[int, T] = {}
    answers: Mapping[Query, Answer] | None = None
    kept: list[Query] = []
    try:
        while running:
            wanted: list[Query] = []
            for number, inquiry in tuple(running.items()):
                try:
                    batch = _next_fetches(inquiry, answers, kept)
                except StopIteration as stop:
                    results[number] = stop.value
                    del running[number]
                else:
                    wanted.extend(batch)
            if kept or wanted:
                # A Keep goes out with the round in which it was found, not after the slowest server of the next.
                answers = yield tuple(dict.fromkeys((*kept, *wanted)))
                kept.clear()
    finally:
        for inquiry in running.values():
            inquiry.close()
    return tuple(results[number] for number in sorted(results))


def _next_fetches(inquiry: Inquiry[T], answers: Mapping[Query, Answer] | None, kept: list[Query]) -> tuple[Query, ...]:
    """Advance an inquiry to its next batch that has something to fetch; what it wants kept is put aside."""
    # A generator that was not started takes None; the type of `send` cannot say so.
    batch = next(inquiry) if answers is None else inquiry.send(answers)
    while True:
        fetches = tuple(query for query in batch if not isinstance(query, Keep))
        kept.extend(query for query in batch if isinstance(query, Keep))
        if fetches:
            return fetches
        batch = inquiry.send({})


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of every server: was this certificate of this issuer revoked, as of this time?"""

    certificate: Certificate
    issuer: Certificate
    at: datetime
    signing_time: datetime | None


_Decision: TypeAlias = tuple[CertificateStatus, tuple[ServerNote, ...]]


def _check_certificate(question: _Question) -> Inquiry[CertificateRevocation]:
    certificate = question.certificate
    has_ocsp = bool(certificate.ocsp_urls) or AUTHORITY_INFORMATION_ACCESS in certificate.decoded_extensions.unreadable
    has_crl = CRL_DISTRIBUTION_POINTS in certificate.extensions
    status, method = CertificateStatus.NON_REVOKABLE, Method.NONE
    notes: tuple[ServerNote, ...] = ()
    if has_ocsp:
        method = Method.OCSP
        status, notes = yield from _ask_responders(question)
    if has_crl and status in (CertificateStatus.NON_REVOKABLE, CertificateStatus.UNKNOWN):
        method = Method.OCSP_FALLBACK_CRL if has_ocsp else Method.CRL
        status, more = yield from _ask_crl_locations(question)
        notes += more
    return CertificateRevocation(certificate, status, method, notes)


def _ask(query: Fetch) -> Inquiry[bytes | OcspResponse | RevocationList | FetchFailure]:
    answers = yield (query,)
    return answers.get(query, FetchFailure("no answer was given"))


class _Servers:
    """The locations that one method has for a certificate, and notes on what came of them."""

    def __init__(self, method: Method, urls: Sequence[str], what: str) -> None:
        self.notes: list[ServerNote] = []
        self._method = method
        usable = [url for url in urls if is_http_url(url)]
        self.urls = usable[:MAX_SERVERS]
        for url in [url for url in urls if not is_http_url(url)][:MAX_SERVERS]:
            self.note(url, ServerOutcome.NOT_ASKED, "only http locations are asked")
        for url in usable[MAX_SERVERS : MAX_SERVERS + 1]:
            self.note(url, ServerOutcome.NOT_ASKED, f"only {MAX_SERVERS} locations are asked")
        if not urls:
            self.note("-", ServerOutcome.NOT_ASKED, f"{what} names no location that can be read")

    def note(self, url: str, outcome: ServerOutcome, text: str) -> None:
        self.notes.append(ServerNote(self._method, url, outcome, text))

    def decide(self, status: CertificateStatus) -> _Decision:
        return status, tuple(self.notes)


# -- OCSP -------------------------------------------------------------------------------------------------------------


def _ask_responders(question: _Question) -> Inquiry[_Decision]:
    servers = _Servers(Method.OCSP, question.certificate.ocsp_urls, "the authorityInfoAccess")
    for url in servers.urls:
        query = OcspQuery.build(url, question.certificate, question.issuer)
        answer = yield from _ask(query)
        if isinstance(answer, FetchFailure):
            servers.note(url, answer.outcome, answer.reason)
            continue
        try:
            response = _as_response(answer)
            finding = ocsp.judge(
                response,
                question.certificate,
                question.issuer,
                at=question.at,
                signing_time=question.signing_time,
            )
            if finding.signer != question.issuer:
                yield from _check_responder(finding.signer, question)
        except Undecided as error:
            servers.note(url, ServerOutcome.UNREACHABLE, error.detail)
            continue
        except Refused as error:
            servers.note(url, ServerOutcome.UNUSABLE, error.detail)
            continue
        servers.note(url, ServerOutcome(finding.status.value), finding.detail)
        if finding.status is CertStatus.UNKNOWN:
            break  # not kept: a certificate may be younger than the responder's knowledge
        yield (Keep(query, response, finding.next_update),)
        revoked = finding.status is CertStatus.REVOKED
        return servers.decide(CertificateStatus.REVOKED if revoked else CertificateStatus.OK)
    return servers.decide(CertificateStatus.UNKNOWN)


def _as_response(answer: bytes | OcspResponse | RevocationList) -> OcspResponse:
    if isinstance(answer, RevocationList):
        raise unknown("the answer to an OCSP request is a CRL")
    return answer if isinstance(answer, OcspResponse) else OcspResponse.parse(answer)


def _check_responder(responder: Certificate, question: _Question) -> Inquiry[None]:
    """Check that an appointed responder was not revoked itself.

    Raises:
        Refused: REVOCATION_UNKNOWN.
        Undecided: REVOCATION_UNAVAILABLE, when its CRL could not be reached.
    """
    if ocsp.NO_CHECK in responder.extensions:
        return
    if CRL_DISTRIBUTION_POINTS not in responder.extensions:
        raise unknown(
            f"the OCSP responder {responder.subject_text!r} may have been revoked",
            expected="the extension id-pkix-ocsp-nocheck, or a CRL",
        )
    status, notes = yield from _ask_crl_locations(_Question(responder, question.issuer, question.at, None))
    found = CertificateRevocation(responder, status, Method.CRL, notes)
    if found.unavailable:
        raise Undecided("REVOCATION_UNAVAILABLE", f"the OCSP responder {found.reason}")
    if status is not CertificateStatus.OK:
        raise unknown(f"the OCSP responder {found.reason}")


# -- CRL --------------------------------------------------------------------------------------------------------------


def _ask_crl_locations(question: _Question) -> Inquiry[_Decision]:
    servers = _Servers(Method.CRL, question.certificate.crl_urls, "the cRLDistributionPoints")
    for url in servers.urls:
        query = CrlQuery(url, question.issuer)
        answer = yield from _ask(query)
        if isinstance(answer, FetchFailure):
            servers.note(url, answer.outcome, answer.reason)
            if answer.outcome is ServerOutcome.UNUSABLE:
                break
            continue
        try:
            return (yield from _judge_list(query, _as_list(answer), question, servers))
        except Refused as error:
            servers.note(url, ServerOutcome.UNUSABLE, error.detail)
        break
    return servers.decide(CertificateStatus.UNKNOWN)


def _as_list(answer: bytes | OcspResponse | RevocationList) -> RevocationList:
    if isinstance(answer, OcspResponse):
        raise unknown("the answer to a request for a CRL is an OCSP response")
    return answer if isinstance(answer, RevocationList) else RevocationList.parse(answer)


def _judge_list(
    query: CrlQuery, revocation_list: RevocationList, question: _Question, servers: _Servers
) -> Inquiry[_Decision]:
    """Decide by the list that a location delivered."""
    certificate, at = question.certificate, question.at
    crl.check_complete_list(revocation_list, certificate, question.issuer, at)
    entry = crl.find_revocation(revocation_list, certificate, question.signing_time)
    if entry is None or not entry.is_for_good:  # else neither the list's age nor a delta can change anything
        check_current("CRL", revocation_list.next_due, at)
        if revocation_list.wants_delta:
            delta = yield from _fetch_delta(revocation_list, question, servers)
            if delta is None:
                return servers.decide(CertificateStatus.UNKNOWN)
            revocation_list = revocation_list.joined(delta, question.issuer, at)
            entry = crl.find_revocation(revocation_list, certificate, question.signing_time)
    due = revocation_list.next_due
    if due is not None and due >= at and not revocation_list.wants_delta:
        yield (Keep(query, revocation_list, due),)
    if entry is not None:
        servers.note(query.url, ServerOutcome.REVOKED, f"the CRL lists it: {entry}")
        return servers.decide(CertificateStatus.REVOKED)
    crl.check_clears(revocation_list)
    servers.note(query.url, ServerOutcome.GOOD, "the CRL does not list it")
    return servers.decide(CertificateStatus.OK)


def _fetch_delta(
    revocation_list: RevocationList, question: _Question, servers: _Servers
) -> Inquiry[RevocationList | None]:
    """The delta of a complete list from the first location that delivers; None when none does."""
    locations = _Servers(Method.CRL, revocation_list.delta_urls or (), "the freshestCRL of the CRL")
    for url in locations.urls:
        answer = yield from _ask(CrlQuery(url, question.issuer))
        if not isinstance(answer, FetchFailure):
            return _as_list(answer)
        locations.note(url, answer.outcome, f"delta CRL: {answer.reason}")
        if answer.outcome is ServerOutcome.UNUSABLE:
            break
    servers.notes.extend(locations.notes)
    return None
