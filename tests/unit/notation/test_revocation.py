"""Whether a chain was revoked: whom the check asks, in which order, and what it makes of the answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import Refused
from provider.notation.crl import CrlQuery, RevocationList
from provider.notation.ocsp import OcspQuery, OcspResponse
from provider.notation.revocation import (
    MAX_SERVERS,
    Answer,
    CertificateStatus,
    ChainRevocation,
    ChainStatus,
    FetchFailure,
    Inquiry,
    Keep,
    Method,
    Purpose,
    ServerOutcome,
    check_chain,
    in_parallel,
)
from tests.simulators.revocation_data import (
    NOW,
    TOMORROW,
    YESTERDAY,
    Entity,
    Network,
    der,
    entry,
    locations,
    ocsp_response,
    scope,
)

OCSP, OCSP2 = "http://ocsp.test/a", "http://ocsp.test/b"
CRL, CRL2, DELTA, ROOT_CRL = (f"http://crl.test/{name}" for name in ("a", "b", "delta", "root"))
FRESHEST: dict[str, Any] = {"freshest": [DELTA]}

ROOT = Entity.root()
CA = ROOT.issue("CA", authority=True, crl=[ROOT_CRL])
GOOD_ROOT_CRL = ROOT.crl()


def leaf(**options: Any) -> Entity:
    return CA.issue("leaf", **options)


def check(
    entity: Entity,
    answers: dict[str, Answer],
    *,
    signing_time: datetime | None = None,
    purpose: Purpose = Purpose.CODE_SIGNING,
) -> tuple[ChainRevocation, Network]:
    """Check a leaf of CA, whose own CRL is good unless the answers say otherwise."""
    network = Network({ROOT_CRL: GOOD_ROOT_CRL, **answers})
    inquiry = check_chain(entity.chain, purpose=purpose, at=NOW, signing_time=signing_time)
    return network.drive(inquiry), network


def outcomes(found: ChainRevocation, number: int = 0) -> list[tuple[str, ServerOutcome]]:
    return [(note.url, note.outcome) for note in found.certificates[number].servers]


class TestChains:
    def test_a_chain_that_names_no_responder_and_no_list_cannot_be_revoked(self) -> None:
        ca = ROOT.issue("CA", authority=True)
        found, network = check(ca.issue("leaf"), {})
        assert (found.status, found.reason, found.unavailable) == (ChainStatus.OK, "", False)
        assert [part.status for part in found.certificates] == [CertificateStatus.NON_REVOKABLE] * 3
        assert "names no OCSP responder" in found.certificates[0].reason
        assert network.asked == []

    def test_the_root_is_never_asked_about(self) -> None:
        root = Entity.root(ocsp=[OCSP], crl=[CRL])
        found, network = check(root.issue("leaf"), {})
        assert (found.status, network.asked) == (ChainStatus.OK, [])

    def test_a_self_signed_signer_is_its_own_root(self) -> None:
        found, network = check(Entity.root("signer", authority=False, usages=["digital_signature"]), {})
        assert (found.status, len(found.certificates), network.asked) == (ChainStatus.OK, 1, [])

    def test_all_certificates_are_asked_about_at_once(self) -> None:
        entity = leaf(ocsp=[OCSP], crl=[CRL])
        found, network = check(entity, {OCSP: CA.ocsp(entity.certificate)})
        assert network.rounds == [(OCSP, ROOT_CRL)]
        assert found.status is ChainStatus.OK
        assert [part.method for part in found.certificates] == [Method.OCSP, Method.CRL, Method.NONE]

    def test_n46_a_revoked_authority_revokes_the_chain(self) -> None:
        found, _ = check(leaf(), {ROOT_CRL: ROOT.crl(entry(CA.certificate.serial, reason=2))})
        assert found.status is ChainStatus.REVOKED
        assert "'CN=CA' was revoked" in found.reason
        assert "ca compromise" in found.reason

    def test_revoked_weighs_more_than_unknown(self) -> None:
        entity = leaf(ocsp=[OCSP])
        found, _ = check(entity, {OCSP: CA.ocsp(entity.certificate, says="revoked"), ROOT_CRL: FetchFailure("down")})
        assert (found.status, found.unavailable) == (ChainStatus.REVOKED, False)
        assert "CN=CA" not in found.reason

    def test_n46_unknown_weighs_more_than_good_and_never_passes(self) -> None:
        entity = leaf(ocsp=[OCSP])
        found, _ = check(entity, {OCSP: CA.ocsp(entity.certificate), ROOT_CRL: b"garbage"})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)
        assert "'CN=CA' may have been revoked" in found.reason

    def test_nothing_is_asked_about_a_chain_that_breaks_the_rules(self) -> None:
        network = Network()
        entity = leaf(ocsp=[OCSP], purposes=[ExtendedKeyUsageOID.SERVER_AUTH])
        with pytest.raises(Refused, match="CERTIFICATE_CHAIN_INVALID"):
            network.drive(check_chain(entity.chain, purpose=Purpose.CODE_SIGNING, at=NOW, signing_time=None))
        assert network.asked == []

    def test_n47_a_time_stamp_authoritys_chain_is_checked_by_its_own_rules(self) -> None:
        tsa = CA.issue("tsa", crl=[CRL], purposes=[ExtendedKeyUsageOID.TIME_STAMPING])
        revoked = CA.crl(entry(tsa.certificate.serial))
        found, _ = check(tsa, {CRL: revoked}, purpose=Purpose.TIMESTAMPING)
        assert found.status is ChainStatus.REVOKED
        with pytest.raises(Refused, match="timeStamping"):
            check(tsa, {CRL: revoked}, purpose=Purpose.CODE_SIGNING)


class TestOcsp:
    @pytest.mark.parametrize(
        ("says", "status"),
        [("good", ChainStatus.OK), ("revoked", ChainStatus.REVOKED), ("unknown", ChainStatus.UNKNOWN)],
    )
    def test_what_the_responder_says_decides(self, says: str, status: ChainStatus) -> None:
        entity = leaf(ocsp=[OCSP])
        found, _ = check(entity, {OCSP: CA.ocsp(entity.certificate, says=says)})
        assert (found.status, found.unavailable) == (status, False)
        assert outcomes(found) == [(OCSP, ServerOutcome(says))]

    def test_the_next_responder_is_asked_when_one_gives_no_status(self) -> None:
        entity = leaf(ocsp=[OCSP, OCSP2])
        good = CA.ocsp(entity.certificate)
        for bad in (FetchFailure("down"), b"garbage", CA.ocsp(entity.certificate, next_update=None)):
            found, network = check(entity, {OCSP: bad, OCSP2: good})
            assert found.status is ChainStatus.OK
            assert network.asked == [OCSP, ROOT_CRL, OCSP2]

    @pytest.mark.parametrize("says", ["revoked", "unknown"])
    def test_n46_a_status_ends_the_search_for_a_better_one(self, says: str) -> None:
        entity = leaf(ocsp=[OCSP, OCSP2])
        answers: dict[str, Answer] = {
            OCSP: CA.ocsp(entity.certificate, says=says),
            OCSP2: CA.ocsp(entity.certificate),
        }
        found, network = check(entity, answers)
        assert found.status is not ChainStatus.OK
        assert OCSP2 not in network.asked

    @pytest.mark.parametrize("bad", [FetchFailure("down"), b"garbage", "unknown", "expired"])
    def test_the_list_decides_when_no_responder_does(self, bad: Answer | str) -> None:
        entity = leaf(ocsp=[OCSP], crl=[CRL])
        if bad == "unknown":
            bad = CA.ocsp(entity.certificate, says="unknown")
        elif bad == "expired":
            bad = CA.ocsp(entity.certificate, next_update=YESTERDAY)
        assert not isinstance(bad, str)
        found, _ = check(entity, {OCSP: bad, CRL: CA.crl()})
        assert (found.status, found.certificates[0].method) == (ChainStatus.OK, Method.OCSP_FALLBACK_CRL)
        found, _ = check(entity, {OCSP: bad, CRL: CA.crl(entry(entity.certificate.serial))})
        assert found.status is ChainStatus.REVOKED

    def test_the_list_is_not_asked_when_a_responder_says_good(self) -> None:
        entity = leaf(ocsp=[OCSP], crl=[CRL])
        _, network = check(entity, {OCSP: CA.ocsp(entity.certificate), CRL: CA.crl(entry(entity.certificate.serial))})
        assert CRL not in network.asked

    def test_n09_only_http_is_asked_and_only_some_servers(self) -> None:
        many = [f"http://ocsp.test/{number}" for number in range(20)]
        found, network = check(leaf(ocsp=["https://ocsp.test/", "ldap://ocsp.test/", *many]), {})
        assert [url for url in network.asked if url != ROOT_CRL] == many[:MAX_SERVERS]
        notes = outcomes(found)
        assert notes[:2] == [
            ("https://ocsp.test/", ServerOutcome.NOT_ASKED),
            ("ldap://ocsp.test/", ServerOutcome.NOT_ASKED),
        ]
        assert (many[MAX_SERVERS], ServerOutcome.NOT_ASKED) in notes
        assert len(notes) == MAX_SERVERS + 3

    def test_addresses_that_cannot_be_read_are_not_taken_for_absent(self) -> None:
        found, network = check(leaf(extensions={"1.3.6.1.5.5.7.1.1": der(0x30, der(0x05))}), {})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)
        assert "no location that can be read" in found.reason
        assert network.asked == [ROOT_CRL]

    def test_a_crl_for_an_answer_says_nothing(self) -> None:
        entity = leaf(ocsp=[OCSP], crl=[CRL])
        wrong: dict[str, Answer] = {
            OCSP: RevocationList.parse(CA.crl()),
            CRL: OcspResponse.parse(CA.ocsp(entity.certificate)),
        }
        found, _ = check(entity, wrong)
        assert outcomes(found) == [(OCSP, ServerOutcome.UNUSABLE), (CRL, ServerOutcome.UNUSABLE)]

    def test_a_driver_that_leaves_a_query_unanswered_gets_unknown(self) -> None:
        entity = leaf(ocsp=[OCSP])
        inquiry = check_chain(entity.chain, purpose=Purpose.CODE_SIGNING, at=NOW, signing_time=None)
        next(inquiry)
        with pytest.raises(StopIteration) as finished:
            inquiry.send({})
        assert finished.value.value.status is ChainStatus.UNKNOWN

    def test_a_trusted_signing_time_reaches_the_judgement(self) -> None:
        entity = leaf(crl=[CRL])
        listed = CA.crl(entry(entity.certificate.serial, reason=1, invalid_from=YESTERDAY))
        before = YESTERDAY - timedelta(seconds=1)
        assert check(entity, {CRL: listed}, signing_time=before)[0].status is ChainStatus.OK
        assert check(entity, {CRL: listed})[0].status is ChainStatus.REVOKED


class TestAppointedResponders:
    PURPOSES = (ExtendedKeyUsageOID.OCSP_SIGNING,)

    def answer(self, responder: Entity, entity: Entity) -> bytes:
        return responder.ocsp(entity.certificate, CA.certificate, certificates=[responder.certificate])

    def test_one_that_need_not_be_checked_is_not(self) -> None:
        entity = leaf(ocsp=[OCSP])
        responder = CA.issue("responder", purposes=self.PURPOSES, no_check=True, crl=[CRL])
        found, network = check(entity, {OCSP: self.answer(responder, entity)})
        assert (found.status, network.asked) == (ChainStatus.OK, [OCSP, ROOT_CRL])

    def test_one_that_is_not_on_its_list_counts(self) -> None:
        entity = leaf(ocsp=[OCSP])
        responder = CA.issue("responder", purposes=self.PURPOSES, crl=[CRL])
        found, network = check(entity, {OCSP: self.answer(responder, entity), CRL: CA.crl()})
        assert (found.status, network.rounds) == (ChainStatus.OK, [(OCSP, ROOT_CRL), (CRL,)])

    def test_n46_one_that_was_revoked_does_not_count(self) -> None:
        entity = leaf(ocsp=[OCSP])
        responder = CA.issue("responder", purposes=self.PURPOSES, crl=[CRL])
        listed = CA.crl(entry(responder.certificate.serial))
        found, _ = check(entity, {OCSP: self.answer(responder, entity), CRL: listed})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)
        assert "the OCSP responder 'CN=responder' was revoked" in found.reason

    def test_n46_one_whose_list_is_unusable_does_not_count(self) -> None:
        entity = leaf(ocsp=[OCSP])
        responder = CA.issue("responder", purposes=self.PURPOSES, crl=[CRL])
        found, _ = check(entity, {OCSP: self.answer(responder, entity), CRL: CA.crl(next_update=YESTERDAY)})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)

    def test_one_whose_list_is_out_of_reach_is_no_judgement(self) -> None:
        entity = leaf(ocsp=[OCSP])
        responder = CA.issue("responder", purposes=self.PURPOSES, crl=[CRL])
        found, _ = check(entity, {OCSP: self.answer(responder, entity)})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, True)

    def test_n46_one_that_nobody_can_check_does_not_count_and_the_list_decides(self) -> None:
        responder = CA.issue("responder", purposes=self.PURPOSES)
        entity = leaf(ocsp=[OCSP])
        found, _ = check(entity, {OCSP: self.answer(responder, entity)})
        assert found.status is ChainStatus.UNKNOWN
        assert "nocheck" in found.reason
        entity = leaf(ocsp=[OCSP], crl=[CRL])
        found, _ = check(entity, {OCSP: self.answer(responder, entity), CRL: CA.crl()})
        assert found.status is ChainStatus.OK


class TestCrl:
    def test_the_first_location_that_delivers_decides(self) -> None:
        entity = leaf(crl=["ldap://crl.test/", CRL, CRL2])
        found, network = check(entity, {CRL2: CA.crl()})
        assert found.status is ChainStatus.OK
        assert network.asked == [CRL, ROOT_CRL, CRL2]
        found, network = check(entity, {CRL: CA.crl(), CRL2: CA.crl(entry(entity.certificate.serial))})
        assert found.status is ChainStatus.OK
        assert CRL2 not in network.asked

    @pytest.mark.parametrize(
        "bad", [b"garbage", CA.crl(next_update=YESTERDAY), FetchFailure("too large", ServerOutcome.UNUSABLE)]
    )
    def test_n46_a_location_that_delivers_something_unusable_decides_too(self, bad: Answer) -> None:
        found, network = check(leaf(crl=[CRL, CRL2]), {CRL: bad, CRL2: CA.crl()})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)
        assert CRL2 not in network.asked

    def test_a_location_that_may_not_be_asked_is_passed_over(self) -> None:
        refused = FetchFailure("the address is private", ServerOutcome.NOT_ASKED)
        assert check(leaf(crl=[CRL, CRL2]), {CRL: refused, CRL2: CA.crl()})[0].status is ChainStatus.OK
        found, _ = check(leaf(crl=[CRL, CRL2]), {CRL: refused})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, True)
        found, _ = check(leaf(crl=[CRL]), {CRL: refused})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)

    def test_a_distribution_point_without_a_location_is_not_taken_for_absent(self) -> None:
        nowhere = der(0x30, der(0x30, der(0xA2, der(0x30))))
        found, _ = check(leaf(extensions={"2.5.29.31": nowhere}), {})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)

    def test_n46_an_expired_list_clears_nobody_and_still_revokes_for_good(self) -> None:
        entity = leaf(crl=[CRL])
        for reason, status in ((None, ChainStatus.REVOKED), (1, ChainStatus.REVOKED), (6, ChainStatus.UNKNOWN)):
            listed = CA.crl(entry(entity.certificate.serial, reason=reason), next_update=YESTERDAY)
            found, network = check(entity, {CRL: listed})
            assert found.status is status
            assert [keep.query.url for keep in network.kept] == [ROOT_CRL]
        assert check(entity, {CRL: CA.crl(next_update=YESTERDAY)})[0].status is ChainStatus.UNKNOWN

    def test_a_list_about_some_reasons_revokes_and_does_not_clear(self) -> None:
        entity = leaf(crl=[CRL])
        some = scope(some_reasons=True)
        listed = CA.crl(entry(entity.certificate.serial), scope=some)
        assert check(entity, {CRL: listed})[0].status is ChainStatus.REVOKED
        assert check(entity, {CRL: CA.crl(scope=some)})[0].status is ChainStatus.UNKNOWN


class TestDelta:
    def test_a_list_with_a_delta_counts_together_with_it(self) -> None:
        entity = leaf(crl=[CRL])
        base = CA.crl(**FRESHEST)
        found, network = check(entity, {CRL: base, DELTA: CA.crl(number=11, delta_to=10)})
        assert (found.status, network.rounds) == (ChainStatus.OK, [(CRL, ROOT_CRL), (DELTA,)])
        listed = CA.crl(entry(entity.certificate.serial), number=11, delta_to=10)
        assert check(entity, {CRL: base, DELTA: listed})[0].status is ChainStatus.REVOKED

    def test_n46_without_its_delta_a_list_clears_nobody(self) -> None:
        entity = leaf(crl=[CRL])
        base = CA.crl(**FRESHEST)
        found, network = check(entity, {CRL: base})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, True)
        assert [keep.query.url for keep in network.kept] == [ROOT_CRL]
        for bad in (b"garbage", CA.crl(number=9, delta_to=8), FetchFailure("too large", ServerOutcome.UNUSABLE)):
            found, _ = check(entity, {CRL: base, DELTA: bad})
            assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)

    def test_the_next_location_of_a_delta_is_asked_when_one_does_not_deliver(self) -> None:
        base = CA.crl(freshest=["ldap://crl.test/", "http://crl.test/nothing", DELTA])
        found, _ = check(leaf(crl=[CRL]), {CRL: base, DELTA: CA.crl(number=11, delta_to=10)})
        assert found.status is ChainStatus.OK

    def test_a_delta_that_is_nowhere_leaves_the_list_incomplete(self) -> None:
        found, _ = check(leaf(crl=[CRL]), {CRL: CA.crl(freshest=["ldap://crl.test/"])})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)
        found, _ = check(leaf(crl=[CRL]), {CRL: CA.crl(freshest=[])})
        assert found.status is ChainStatus.UNKNOWN

    def test_who_is_listed_for_good_is_revoked_whatever_the_delta_says(self) -> None:
        entity = leaf(crl=[CRL])
        listed = CA.crl(entry(entity.certificate.serial, reason=1), **FRESHEST)
        found, network = check(entity, {CRL: listed})
        assert found.status is ChainStatus.REVOKED
        assert DELTA not in network.asked
        assert [keep.query.url for keep in network.kept] == [ROOT_CRL]

    def test_a_delta_named_by_certificate_and_list_is_used(self) -> None:
        entity = leaf(crl=[CRL], extensions={"2.5.29.46": locations(DELTA)})
        answers: dict[str, Answer] = {CRL: CA.crl(**FRESHEST), DELTA: CA.crl(number=11, delta_to=10)}
        assert check(entity, answers)[0].status is ChainStatus.OK
        assert check(entity, {CRL: CA.crl()})[0].status is ChainStatus.UNKNOWN


class TestUnavailable:
    def test_silence_of_everybody_is_no_judgement(self) -> None:
        found, network = check(leaf(ocsp=[OCSP, OCSP2], crl=[CRL, CRL2]), {ROOT_CRL: FetchFailure("down")})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, True)
        assert len(network.asked) == 5
        assert "unreachable" in found.reason

    def test_a_busy_responder_counts_as_silent(self) -> None:
        found, _ = check(leaf(ocsp=[OCSP]), {OCSP: ocsp_response(3, "1.2.3", b"")})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, True)

    def test_one_unusable_answer_is_a_judgement(self) -> None:
        found, _ = check(leaf(ocsp=[OCSP, OCSP2]), {OCSP: b"garbage"})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)

    def test_a_certificate_that_was_judged_makes_the_chain_judged(self) -> None:
        found, _ = check(leaf(ocsp=[OCSP]), {OCSP: b"garbage", ROOT_CRL: FetchFailure("down")})
        assert (found.status, found.unavailable) == (ChainStatus.UNKNOWN, False)


class TestKeeping:
    def test_what_was_judged_good_is_to_be_kept_until_it_ends(self) -> None:
        entity = leaf(ocsp=[OCSP])
        for says in ("good", "revoked"):
            _, network = check(entity, {OCSP: CA.ocsp(entity.certificate, says=says)})
            assert {(keep.query.url, keep.until) for keep in network.kept} == {(OCSP, TOMORROW), (ROOT_CRL, TOMORROW)}

    @pytest.mark.parametrize(
        "options", [{"says": "unknown"}, {"next_update": YESTERDAY}, {"this_update": TOMORROW}, {"style": "sha1"}]
    )
    def test_what_is_no_good_is_not_kept(self, options: dict[str, Any]) -> None:
        entity = leaf(ocsp=[OCSP])
        _, network = check(entity, {OCSP: CA.ocsp(entity.certificate, **options)})
        assert [keep.query.url for keep in network.kept] == [ROOT_CRL]

    @pytest.mark.parametrize(
        "bad", [CA.crl(this_update=TOMORROW), CA.crl(scope=scope(authorities_only=True)), ROOT.crl(), b"garbage"]
    )
    def test_a_list_that_is_no_good_is_not_kept(self, bad: bytes) -> None:
        _, network = check(leaf(crl=[CRL]), {CRL: bad})
        assert [keep.query.url for keep in network.kept] == [ROOT_CRL]

    def test_a_list_that_revokes_is_kept_too(self) -> None:
        entity = leaf(crl=[CRL])
        _, network = check(entity, {CRL: CA.crl(entry(entity.certificate.serial))})
        assert {keep.query.url for keep in network.kept} == {CRL, ROOT_CRL}

    def test_kept_answers_serve_again_and_a_joined_delta_is_not_fetched_again(self) -> None:
        entity = leaf(ocsp=[OCSP], crl=[CRL])
        answers: dict[str, Answer] = {
            CRL: CA.crl(**FRESHEST),
            DELTA: CA.crl(number=11, delta_to=10, next_update=NOW + timedelta(hours=1)),
        }
        _, network = check(entity, answers)
        (keep,) = [keep for keep in network.kept if keep.query.url == CRL]
        assert keep.until == NOW + timedelta(hours=1)
        found, again = check(entity, {CRL: keep.answer})
        assert found.status is ChainStatus.OK
        assert DELTA not in again.asked

    def test_a_kept_answer_is_judged_again_by_the_time_of_the_decision(self) -> None:
        entity = leaf(ocsp=[OCSP])
        _, network = check(entity, {OCSP: CA.ocsp(entity.certificate)})
        answers: dict[str, Answer] = {keep.query.url: keep.answer for keep in network.kept}
        later = TOMORROW + timedelta(seconds=1)
        inquiry = check_chain(entity.chain, purpose=Purpose.CODE_SIGNING, at=later, signing_time=None)
        assert Network(answers).drive(inquiry).status is ChainStatus.UNKNOWN

    def test_queries_of_different_issuers_are_different(self) -> None:
        """What an attacker's authority brings in under somebody's URL is never given out for that somebody."""
        assert CrlQuery(CRL, CA.certificate) != CrlQuery(CRL, ROOT.certificate)
        entity, other = leaf(serial=5), ROOT.issue("leaf", serial=5)
        assert OcspQuery.build(OCSP, entity.certificate, CA.certificate) != OcspQuery.build(
            OCSP, other.certificate, ROOT.certificate
        )


class TestInParallel:
    QUERIES = tuple(CrlQuery(f"http://crl.test/{number}", CA.certificate) for number in range(4))

    def asking(self, *numbers: int, log: list[str] | None = None) -> Inquiry[tuple[Answer, ...]]:
        answers = []
        try:
            for number in numbers:
                query = self.QUERIES[number]
                answers.append((yield (query,))[query])
        finally:
            if log is not None:
                log.append("closed")
        return tuple(answers)

    def keeping(self, number: int) -> Inquiry[int]:
        yield (Keep(self.QUERIES[number], RevocationList.parse(GOOD_ROOT_CRL), NOW),)
        return number

    def network(self) -> Network:
        return Network({query.url: query.url.encode() for query in self.QUERIES})

    def test_nothing_to_run_needs_nobody(self) -> None:
        network = self.network()
        assert network.drive(in_parallel([])) == ()
        assert network.drive(in_parallel([self.asking(), self.asking()])) == ((), ())
        assert network.rounds == []

    @given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=5))
    def test_each_gets_its_own_answers_in_order_and_nothing_is_asked_twice_in_a_round(
        self, plans: list[list[int]]
    ) -> None:
        network = self.network()
        results = network.drive(in_parallel([self.asking(*plan) for plan in plans]))
        assert results == tuple(tuple(self.QUERIES[n].url.encode() for n in plan) for plan in plans)
        assert len(network.rounds) == max(map(len, plans), default=0)
        assert all(len(set(urls)) == len(urls) for urls in network.rounds)

    def test_what_is_to_be_kept_does_not_hold_anybody_up(self) -> None:
        network = self.network()
        batches: list[int] = []

        def counting(inquiry: Inquiry[tuple[object, ...]]) -> Inquiry[tuple[object, ...]]:
            batch = next(inquiry)
            while True:
                batches.append(len(batch))
                answers = yield batch
                try:
                    batch = inquiry.send(answers)
                except StopIteration as stop:
                    return tuple(stop.value)

        inquiries: list[Inquiry[object]] = [self.keeping(0), self.asking(1), self.keeping(2)]
        results = network.drive(counting(in_parallel(inquiries)))
        assert results == (0, (self.QUERIES[1].url.encode(),), 2)
        assert batches == [3]
        assert len(network.kept) == 2

    def test_a_round_of_nothing_but_keeping_is_passed_on(self) -> None:
        network = self.network()
        assert network.drive(in_parallel([self.keeping(0), self.keeping(1)])) == (0, 1)
        assert (len(network.kept), network.rounds) == (2, [])

    def test_one_that_fails_ends_the_others(self) -> None:
        log: list[str] = []

        def failing() -> Inquiry[tuple[Answer, ...]]:
            yield (self.QUERIES[0],)
            raise Refused("REVOCATION_UNKNOWN", "no")

        with pytest.raises(Refused):
            self.network().drive(in_parallel([self.asking(1, 2, log=log), failing()]))
        assert log == ["closed"]
