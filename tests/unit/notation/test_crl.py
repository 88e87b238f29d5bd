"""CRLs: what a list may prove, how base and delta go together, and that no list takes too much time to read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.errors import Refused
from provider.notation.crl import (
    MAX_CRL_BYTES,
    MAX_ENTRIES_OF_ONE_SERIAL,
    Reason,
    RevocationList,
    RevokedEntry,
    check_authentic,
    check_clears,
    check_complete_list,
    find_revocation,
)
from provider.notation.signed_status import CLOCK_SKEW, MAX_EXTENSIONS, check_current, is_http_url
from tests.simulators.revocation_data import (
    CRL_NUMBER,
    DELTA,
    FRESHEST,
    INVALIDITY,
    NOW,
    REASON,
    SCOPE,
    TOMORROW,
    YESTERDAY,
    Entity,
    der,
    entry,
    extension,
    integer,
    locations,
    oid,
    scope,
    utc,
)

URL = "http://crl.test/root.crl"
ROOT = Entity.root()
OTHER = Entity.root("Other")
LEAF = ROOT.issue("leaf", crl=[URL])
AUTHORITY = ROOT.issue("intermediate", authority=True, crl=[URL])
SERIAL = LEAF.certificate.serial


def revocation(*entries: bytes, signing_time: datetime | None = None, **options: Any) -> RevokedEntry | None:
    """What a list of these entries says about the leaf."""
    return find_revocation(RevocationList.parse(ROOT.crl(*entries, **options)), LEAF.certificate, signing_time)


def checked(octets: bytes, entity: Entity = LEAF, issuer: Entity = ROOT, at: datetime = NOW) -> RevocationList:
    """A complete list after every check that it must pass to clear the certificate."""
    parsed = RevocationList.parse(octets)
    check_complete_list(parsed, entity.certificate, issuer.certificate, at)
    check_current("CRL", parsed.next_due, at)
    check_clears(parsed)
    return parsed


def refused(octets: bytes, **options: Any) -> str:
    """Why a list says nothing."""
    with pytest.raises(Refused) as caught:
        checked(octets, **options)
    assert caught.value.code == "REVOCATION_UNKNOWN"
    return caught.value.detail


def refused_parse(octets: bytes) -> str:
    with pytest.raises(Refused) as caught:
        RevocationList.parse(octets)
    assert caught.value.code == "REVOCATION_UNKNOWN"
    return caught.value.detail


class TestReading:
    def test_what_is_read_is_what_another_implementation_reads(self) -> None:
        octets = ROOT.crl(entry(5), entry(SERIAL, reason=1, invalid_from=YESTERDAY), freshest=["http://d.test/"])
        theirs, ours = x509.load_der_x509_crl(octets), RevocationList.parse(octets)
        assert ours.this_update == theirs.last_update_utc
        assert ours.next_update == theirs.next_update_utc
        assert ours.signed.octets == theirs.tbs_certlist_bytes
        assert ours.number == theirs.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        revoked = theirs.get_revoked_certificate_by_serial_number(SERIAL)
        assert revoked is not None
        (found,) = ours.entries(LEAF.certificate)
        assert found.revoked_at == revoked.revocation_date_utc
        assert found.reason == Reason.KEY_COMPROMISE
        assert found.invalid_from == YESTERDAY
        assert ours.delta_urls == ("http://d.test/",)

    def test_a_list_without_entries_or_optional_parts_is_read(self) -> None:
        ours = RevocationList.parse(ROOT.crl(number=None, next_update=None))
        assert (ours.next_update, ours.number, ours.scope, ours.delta_urls) == (None, None, None, None)
        assert ours.next_due is None
        assert ours.entries(LEAF.certificate) == ()

    @pytest.mark.parametrize("serial", [1, 127, 128, 255, 256, 0x80 << 120, (1 << 159) - 2])
    def test_every_serial_number_is_found_and_its_neighbours_are_not(self, serial: int) -> None:
        parsed = RevocationList.parse(ROOT.crl(*(entry(number) for number in (3, serial, 70_000))))
        for number, length in ((serial, 1), (serial + 1, 0)):
            certificate = ROOT.issue("leaf", serial=number).certificate
            assert len(parsed.entries(certificate)) == length

    def test_a_list_of_ten_thousand_entries_is_indexed(self) -> None:
        octets = ROOT.crl(*(entry(1_000_000 + number) for number in range(10_000)), entry(SERIAL))
        parsed = RevocationList.parse(octets)
        assert len(parsed.entries(LEAF.certificate)) == 1
        assert parsed.weight > len(octets)

    def test_entries_with_long_extensions_are_stepped_over(self) -> None:
        long = entry(7, extensions=[extension("1.2.3.4", b"\0" * 300)])
        assert revocation(long, entry(SERIAL), long) is not None

    def test_times_from_2050_on_are_read_too(self) -> None:
        far = datetime(2119, 1, 1, tzinfo=UTC)
        assert RevocationList.parse(ROOT.crl(next_update=far)).next_update == far

    @pytest.mark.parametrize("reason", [None, *Reason])
    def test_the_reason_is_told_to_people(self, reason: Reason | None) -> None:
        (found,) = RevocationList.parse(ROOT.crl(entry(SERIAL, reason=reason))).entries(LEAF.certificate)
        expected = "unspecified" if reason is None else reason.name.lower().replace("_", " ")
        assert str(found).startswith(f"{expected} on 2026-")

    def test_a_reason_that_nobody_defined_still_revokes(self) -> None:
        found = revocation(entry(SERIAL, reason=7))
        assert found is not None
        assert str(found).startswith("reason 7 on")


class TestMalformedLists:
    def test_a_list_over_the_limit_is_not_read(self) -> None:
        assert "too large" in refused_parse(bytes(MAX_CRL_BYTES + 1))

    def test_pem_is_not_read(self) -> None:
        assert "cannot be read" in refused_parse(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"\x30",
            b"\x30\x80\x00\x00",  # indefinite length
            b"\x30\x81\x05" + bytes(5),  # longer form than needed
            b"\x30\x82\x00\x85" + bytes(0x85),  # leading zero in the length
            b"\x30\x89" + b"\x01" * 9 + bytes(20),  # a length of nine octets
            b"\x30\x84\xff\xff\xff\xff",  # promises 4 GiB
            b"\x30\x82\x01",  # ends within the length
            ROOT.crl() + b"\0",
            ROOT.crl()[:-1],
        ],
    )
    def test_what_is_not_one_element_of_der_is_malformed(self, octets: bytes) -> None:
        assert "cannot be read" in refused_parse(octets)

    @pytest.mark.parametrize(
        "options",
        [
            {"version": b""},
            {"version": integer(0)},
            {"inner_algorithm": der(0x30, oid("1.2.840.113549.1.1.11"), der(0x05))},
            {"extensions": [extension("1.2.3", b"")] * 2},
            {"extensions": [extension(f"1.2.3.{number}", b"") for number in range(MAX_EXTENSIONS + 1)]},
            {"number": -1},
            {"number": 1 << 600},
            {"extensions": [extension(SCOPE, der(0x05))]},
            {"extensions": [extension(SCOPE, der(0x30, der(0x81, b"\x01")))]},
            {"extensions": [extension(FRESHEST, der(0x04))]},
            {"extensions": [extension(DELTA, der(0x05))]},
        ],
    )
    def test_a_list_that_breaks_its_grammar_is_malformed(self, options: dict[str, Any]) -> None:
        assert "cannot be read" in refused_parse(ROOT.crl(**options))

    @pytest.mark.parametrize(
        "odd",
        [
            der(0x31, integer(5), utc(NOW)),  # no SEQUENCE
            der(0x30, integer(5)),  # no time
            der(0x30, der(0x04, b"\x05"), utc(NOW)),  # no INTEGER
            der(0x30, der(0x02, b""), utc(NOW)),  # an empty one
            der(0x30, der(0x02, bytes(0x80)), utc(NOW)),  # one of 128 octets
            der(0x30, b"\x02\x20\x05", utc(NOW)),  # one that reaches beyond the entry
            der(0x30, der(0x02, b"\x00\x05"), utc(NOW)),  # a second form of 5
            der(0x30, der(0x02, b"\xff\x85"), utc(NOW)),
        ],
    )
    def test_an_entry_that_is_none_makes_the_whole_list_malformed(self, odd: bytes) -> None:
        assert "entry" in refused_parse(ROOT.crl(entry(1), odd)) or "SEQUENCE" in refused_parse(ROOT.crl(odd))

    def test_an_entry_that_reaches_beyond_the_list_of_entries_is_malformed(self) -> None:
        good = entry(1)
        assert "entry 2" in refused_parse(ROOT.crl(good, bytes((0x30, good[1] + 4)) + good[2:]))

    @pytest.mark.parametrize(
        "odd",
        [
            entry(SERIAL, extensions=[extension("1.2.3.4", b"", critical=True)]),
            entry(SERIAL, extensions=[extension("2.5.29.29", b"", critical=True)]),  # certificateIssuer: indirect list
            entry(SERIAL, extensions=[extension(REASON, integer(1))]),
            entry(SERIAL, extensions=[extension(INVALIDITY, der(0x05))]),
            der(0x30, integer(SERIAL), der(0x17, b"yesterday"), der(0x05), der(0x05)),
            der(0x30, integer(SERIAL), utc(NOW), der(0x05)),
        ],
    )
    def test_a_matching_entry_that_cannot_be_understood_proves_nothing(self, odd: bytes) -> None:
        parsed = RevocationList.parse(ROOT.crl(odd))
        with pytest.raises(Refused, match="REVOCATION_UNKNOWN"):
            find_revocation(parsed, LEAF.certificate, None)

    def test_one_serial_number_listed_very_often_costs_no_time(self) -> None:
        parsed = RevocationList.parse(ROOT.crl(*[entry(SERIAL, reason=6)] * (MAX_ENTRIES_OF_ONE_SERIAL + 1)))
        with pytest.raises(Refused, match="17 times"):
            parsed.entries(LEAF.certificate)

    @given(st.binary(max_size=300))
    def test_n70_any_bytes_are_refused_and_nothing_else_happens(self, octets: bytes) -> None:
        refused_parse(octets)

    @settings(max_examples=300)
    @given(st.data())
    def test_n70_no_change_of_an_octet_takes_a_certificate_off_a_list(self, data: st.DataObject) -> None:
        octets = bytearray(LISTED)
        octets[data.draw(st.integers(0, len(octets) - 1))] ^= data.draw(st.integers(1, 255))
        try:
            assert find_revocation(checked(bytes(octets)), LEAF.certificate, None) is not None
        except Refused as error:
            assert error.code == "REVOCATION_UNKNOWN"  # noqa: PT017 - either outcome is right


LISTED = ROOT.crl(entry(3), entry(SERIAL, reason=1), freshest=None, scope=scope(urls=[URL]))


class TestAuthenticity:
    def test_the_issuers_list_counts(self) -> None:
        assert find_revocation(checked(ROOT.crl(entry(3))), LEAF.certificate, None) is None

    def test_n46_a_list_of_a_stranger_under_the_issuers_name_does_not_count(self) -> None:
        assert "not signed by" in refused(OTHER.crl(issuer=ROOT.certificate))

    def test_n46_a_list_of_the_issuers_key_under_another_name_does_not_count(self) -> None:
        assert "another issuer" in refused(ROOT.crl(issuer=OTHER.certificate))

    def test_n46_a_list_of_another_authority_does_not_count(self) -> None:
        assert "another issuer" in refused(OTHER.crl())

    def test_a_list_signed_with_sha_1_does_not_count(self) -> None:
        assert "SHA-1" in refused(ROOT.crl(style="sha1"))

    def test_an_issuer_that_may_not_sign_lists_signs_none(self) -> None:
        root = Entity.root(usages=["key_cert_sign"])
        leaf = root.issue("leaf")
        assert "does not allow" in refused(root.crl(), entity=leaf, issuer=root)

    def test_an_issuer_without_key_usage_may_sign_lists(self) -> None:
        root = Entity.root(usages=())
        leaf = root.issue("leaf")
        checked(root.crl(), entity=leaf, issuer=root)

    def test_an_unknown_critical_extension_makes_a_list_unusable(self) -> None:
        assert "1.2.3.4" in refused(ROOT.crl(extensions=[extension("1.2.3.4", b"", critical=True)]))
        checked(ROOT.crl(extensions=[extension("1.2.3.4", b"")]))

    def test_the_signature_is_verified_once_and_its_outcome_remembered(self) -> None:
        parsed = RevocationList.parse(ROOT.crl())
        for _ in range(2):
            check_authentic(parsed, ROOT.certificate)
            with pytest.raises(Refused):
                parsed.signed.check_signed_by(OTHER.certificate)


class TestTime:
    def test_n46_a_list_counts_until_its_next_update(self) -> None:
        octets = ROOT.crl(next_update=NOW)
        checked(octets, at=NOW)
        assert "has expired" in refused(octets, at=NOW + timedelta(seconds=1))

    def test_n46_a_list_that_never_ends_counts_as_ended(self) -> None:
        assert "until when" in refused(ROOT.crl(next_update=None))

    def test_n54_a_list_from_the_future_does_not_count(self) -> None:
        checked(ROOT.crl(this_update=NOW + CLOCK_SKEW))
        assert "future" in refused(ROOT.crl(this_update=NOW + CLOCK_SKEW + timedelta(seconds=1)))


class TestScope:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"urls": ["ldap://somewhere", URL]},
            {"users_only": True},
        ],
    )
    def test_a_list_about_such_certificates_counts(self, options: dict[str, Any]) -> None:
        checked(ROOT.crl(scope=scope(**options)))

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"urls": ["http://crl.test/other.crl"]}, "another distribution point"),
            ({"relative": True}, "another distribution point"),
            ({"authorities_only": True}, "does not cover certificates that are not authorities"),
            ({"attributes_only": True}, "does not cover"),
            ({"indirect": True}, "indirect"),
            ({"some_reasons": True}, "some reasons"),
        ],
    )
    def test_n46_a_list_about_other_certificates_does_not_clear_this_one(
        self, options: dict[str, Any], reason: str
    ) -> None:
        assert reason in refused(ROOT.crl(scope=scope(**options)))

    def test_a_list_about_authorities_clears_authorities_only(self) -> None:
        checked(ROOT.crl(scope=scope(authorities_only=True)), entity=AUTHORITY)
        users = ROOT.crl(scope=scope(users_only=True))
        assert "does not cover authorities" in refused(users, entity=AUTHORITY)


class TestEntries:
    @pytest.mark.parametrize("reason", [None, 0, 1, 2, 3, 4, 5, 9, 10])
    def test_any_other_reason_than_a_hold_revokes_for_good(self, reason: int | None) -> None:
        later = TOMORROW
        assert revocation(entry(SERIAL, reason=reason), entry(SERIAL, later, reason=8)) is not None

    def test_n46_a_hold_counts_until_it_is_lifted(self) -> None:
        held, lifted, again = (
            entry(SERIAL, NOW - timedelta(days=days), reason=reason) for days, reason in ((3, 6), (2, 8), (1, 6))
        )
        assert revocation(held) is not None
        assert revocation(held, lifted) is None
        assert revocation(lifted, held) is None
        assert revocation(held, lifted, again) is not None

    @pytest.mark.parametrize("order", [1, -1])
    def test_of_a_hold_and_its_end_at_the_same_time_the_hold_counts(self, order: int) -> None:
        entries = [entry(SERIAL, YESTERDAY, reason=reason) for reason in (6, 8)]
        assert revocation(*entries[::order]) is not None

    def test_a_key_that_became_invalid_after_the_signature_was_made_does_not_undo_it(self) -> None:
        listed = entry(SERIAL, reason=1, invalid_from=NOW - timedelta(hours=1))
        assert revocation(listed, signing_time=NOW - timedelta(hours=2)) is None
        assert revocation(listed, signing_time=NOW - timedelta(hours=1)) is not None
        assert revocation(listed) is not None

    def test_without_an_invalidity_date_listed_is_listed_whenever_the_signature_was_made(self) -> None:
        assert revocation(entry(SERIAL, NOW), signing_time=NOW - timedelta(days=100)) is not None


class TestDelta:
    BASE: dict[str, Any] = {"freshest": ["http://crl.test/delta.crl"]}  # noqa: RUF012 - never changed

    def joined(self, base: bytes, delta: bytes) -> RevocationList:
        return RevocationList.parse(base).joined(RevocationList.parse(delta), ROOT.certificate, NOW)

    def reason(self, base: bytes, delta: bytes) -> str:
        with pytest.raises(Refused) as caught:
            self.joined(base, delta)
        return caught.value.detail

    def test_entries_of_both_are_weighed_together(self) -> None:
        base = ROOT.crl(entry(SERIAL, NOW - timedelta(days=3), reason=6), **self.BASE)
        lifted = ROOT.crl(entry(SERIAL, NOW - timedelta(days=2), reason=8), number=11, delta_to=10)
        assert find_revocation(self.joined(base, lifted), LEAF.certificate, None) is None
        fresh = ROOT.crl(entry(SERIAL, reason=1), number=11, delta_to=9)
        assert find_revocation(self.joined(ROOT.crl(**self.BASE), fresh), LEAF.certificate, None) is not None

    def test_the_pair_is_due_when_the_first_of_them_is(self) -> None:
        base, delta = ROOT.crl(next_update=TOMORROW, **self.BASE), ROOT.crl(next_update=NOW, number=11, delta_to=10)
        pair = self.joined(base, delta)
        assert (pair.next_due, pair.wants_delta) == (NOW, False)
        assert pair.weight > RevocationList.parse(base).weight

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"number": 11}, "no deltaCRLIndicator"),
            ({"number": 10, "delta_to": 10}, "does not follow"),
            ({"number": 9, "delta_to": 8}, "does not follow"),
            ({"number": 12, "delta_to": 11}, "does not follow"),
            ({"number": None, "delta_to": 10}, "no number"),
            ({"number": 11, "delta_to": 10, "next_update": NOW - timedelta(seconds=1)}, "has expired"),
            ({"number": 11, "delta_to": 10, "this_update": TOMORROW}, "future"),
            ({"number": 11, "delta_to": 10, "scope": scope(users_only=True)}, "another scope"),
        ],
    )
    def test_n46_a_delta_that_does_not_belong_to_the_list_is_refused(
        self, options: dict[str, Any], reason: str
    ) -> None:
        assert reason in self.reason(ROOT.crl(**self.BASE), ROOT.crl(**options))

    def test_a_delta_to_a_list_without_a_number_is_refused(self) -> None:
        assert "no number" in self.reason(ROOT.crl(number=None, **self.BASE), ROOT.crl(number=11, delta_to=10))

    def test_n46_a_delta_of_a_stranger_is_refused(self) -> None:
        delta = OTHER.crl(number=11, delta_to=10, issuer=ROOT.certificate)
        assert "not signed by" in self.reason(ROOT.crl(**self.BASE), delta)

    def test_n46_a_delta_in_place_of_the_complete_list_clears_nobody(self) -> None:
        assert "is a delta" in refused(ROOT.crl(number=11, delta_to=10))

    def test_a_delta_named_by_the_certificate_alone_is_not_supported(self) -> None:
        leaf = ROOT.issue("leaf", extensions={FRESHEST: locations("http://crl.test/delta.crl")})
        assert "not supported" in refused(ROOT.crl(), entity=leaf)
        checked(ROOT.crl(**self.BASE), entity=leaf)

    def test_locations_of_other_forms_are_passed_over(self) -> None:
        relative = der(0x30, der(0xA0, der(0xA1, der(0x30))))
        issuer_only = der(0x30, der(0xA2, der(0x30)))
        directory = der(0x30, der(0xA0, der(0xA0, der(0xA4, der(0x30)), der(0x86, b"http://d.test/"))))
        freshest = extension(FRESHEST, der(0x30, relative, issuer_only, directory))
        assert RevocationList.parse(ROOT.crl(extensions=[freshest])).delta_urls == ("http://d.test/",)
        nowhere = extension(FRESHEST, der(0x30, issuer_only))
        parsed = RevocationList.parse(ROOT.crl(extensions=[nowhere]))
        assert (parsed.delta_urls, parsed.wants_delta) == ((), True)


@pytest.mark.parametrize(
    ("url", "usable"),
    [
        ("http://crl.test/root.crl", True),
        ("HTTP://CRL.TEST:8080/root.crl?x=1#y", True),
        ("http://[2001:db8::1]:80/", True),
        ("http://10.0.0.1", True),
        ("https://crl.test/root.crl", False),
        ("ldap://crl.test/cn=root", False),
        ("file:///etc/passwd", False),
        ("http://user:password@crl.test/", False),
        ("http://crl.test/a b", False),
        ("http://crl.test/\r\nHost: x", False),
        ("http://crl.test/\u00e9", False),
        ("http:///root.crl", False),
        ("http://crl.test\\@evil.test/", False),
        ("http://crl.test:port/", False),
        ("http://crl.test/" + "a" * 2048, False),
        ("", False),
    ],
)
def test_n09_only_plain_http_urls_are_ever_asked(url: str, usable: bool) -> None:
    assert is_http_url(url) == usable


def test_a_crl_number_is_read_whatever_its_size() -> None:
    octets = ROOT.crl(number=None, extensions=[extension(CRL_NUMBER, integer(1 << 150))])
    assert RevocationList.parse(octets).number == 1 << 150
