"""OCSP: what is asked, and what a response may prove. Everything that is wrong with a response makes it say nothing."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ocsp as second_opinion
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.errors import Refused, Undecided
from provider.notation.certificates import Certificate
from provider.notation.ocsp import (
    MAX_ANSWERS,
    MAX_RESPONDER_CERTIFICATES,
    MAX_RESPONSE_BYTES,
    CertStatus,
    OcspFinding,
    OcspQuery,
    OcspResponse,
    judge,
)
from provider.notation.signed_status import CLOCK_SKEW, MAX_EXTENSIONS
from tests.simulators.revocation_data import (
    INVALIDITY,
    NOW,
    SHA256_OID,
    TOMORROW,
    YESTERDAY,
    Entity,
    der,
    extension,
    generalized,
    integer,
    ocsp_response,
    single_response,
)

ROOT = Entity.root()
OTHER = Entity.root("Other")
LEAF = ROOT.issue("leaf")
URL = "http://ocsp.test"
RESPONDER = ROOT.issue("responder", purposes=[ExtendedKeyUsageOID.OCSP_SIGNING], no_check=True)


def judged(
    response: bytes,
    *,
    certificate: Certificate = LEAF.certificate,
    issuer: Certificate = ROOT.certificate,
    at: datetime = NOW,
    signing_time: datetime | None = None,
) -> OcspFinding:
    return judge(OcspResponse.parse(response), certificate, issuer, at=at, signing_time=signing_time)


def refused(response: bytes, **options: Any) -> str:
    """The reason why a response says nothing."""
    with pytest.raises(Refused) as caught:
        judged(response, **options)
    assert caught.value.code == "REVOCATION_UNKNOWN"
    return caught.value.detail


class TestQuery:
    def test_the_request_is_what_another_implementation_builds(self) -> None:
        query = OcspQuery.build(URL, LEAF.certificate, ROOT.certificate)
        theirs = (
            second_opinion.OCSPRequestBuilder()
            .add_certificate(
                x509.load_der_x509_certificate(LEAF.certificate.der),
                x509.load_der_x509_certificate(ROOT.certificate.der),
                hashes.SHA1(),
            )
            .build()
        )
        ours = second_opinion.load_der_ocsp_request(query.request_der)
        assert (ours.serial_number, ours.issuer_name_hash, ours.issuer_key_hash) == (
            theirs.serial_number,
            theirs.issuer_name_hash,
            theirs.issuer_key_hash,
        )
        assert not list(ours.extensions)  # no nonce: the responder may answer from its own cache

    @pytest.mark.parametrize("url", ["http://ocsp.test", "http://ocsp.test/", "http://ocsp.test/a/b"])
    def test_a_short_request_goes_by_get_with_everything_escaped(self, url: str) -> None:
        query = OcspQuery.build(url, LEAF.certificate, ROOT.certificate)
        assert query.get_url is not None
        assert query.get_url.startswith(url.rstrip("/") + "/")
        escaped = query.get_url.removeprefix(url.rstrip("/") + "/")
        assert not set(escaped) & set("+/=")
        assert base64.b64decode(unquote(escaped), validate=True) == query.request_der

    @pytest.mark.parametrize(
        ("octets", "is_get"),
        [(b"\0" * 186, True), (b"\0" * 189, True), (b"\0" * 190, False), (b"\xff" * 60, True), (b"\xff" * 189, False)],
    )
    def test_a_request_goes_by_get_only_below_255_characters_before_and_after_escaping(
        self, octets: bytes, is_get: bool
    ) -> None:
        # 189 octets are 252 characters of base64; 190 are 256. Slashes take three characters each when escaped.
        assert (OcspQuery(URL, octets).get_url is not None) == is_get

    @pytest.mark.parametrize("url", ["http://ocsp.test/?a=b", "http://ocsp.test/#a"])
    def test_a_responder_whose_address_cannot_take_a_path_is_posted_to(self, url: str) -> None:
        assert OcspQuery.build(url, LEAF.certificate, ROOT.certificate).get_url is None


class TestGoodResponses:
    @pytest.mark.parametrize("says", ["good", "revoked", "unknown"])
    @pytest.mark.parametrize("named_by", ["key", "name"])
    def test_the_issuer_says_what_it_says(self, says: str, named_by: str) -> None:
        response = ROOT.ocsp(LEAF.certificate, says=says, named_by=named_by)
        finding = judged(response)
        assert finding.status is CertStatus(says)
        assert finding.signer == ROOT.certificate
        assert finding.next_update == TOMORROW
        read_back = second_opinion.load_der_ocsp_response(response)
        assert read_back.certificate_status.name == says.upper()

    def test_a_certificate_may_be_named_with_sha_256(self) -> None:
        assert judged(ROOT.ocsp(LEAF.certificate, hash_oid=SHA256_OID)).status is CertStatus.GOOD

    @pytest.mark.parametrize("style", ["", "pss"])
    def test_rsa_signatures_of_both_kinds_count(self, style: str, rsa_root: Entity) -> None:
        leaf = rsa_root.issue("leaf")
        response = rsa_root.ocsp(leaf.certificate, style=style)
        finding = judged(response, certificate=leaf.certificate, issuer=rsa_root.certificate)
        assert finding.status is CertStatus.GOOD

    def test_an_appointed_responder_may_sign(self) -> None:
        response = RESPONDER.ocsp(LEAF.certificate, ROOT.certificate, certificates=[RESPONDER.certificate])
        assert judged(response).signer == RESPONDER.certificate

    def test_the_right_responder_is_found_among_several_certificates(self) -> None:
        sent: list[bytes | Certificate] = [
            b"\x30\x03\x02\x01\x01",
            OTHER.certificate,
            ROOT.certificate,
            RESPONDER.certificate,
        ]
        response = RESPONDER.ocsp(LEAF.certificate, ROOT.certificate, certificates=sent)
        assert judged(response).signer == RESPONDER.certificate

    def test_an_answer_about_another_certificate_beside_ours_does_no_harm(self) -> None:
        other = single_response(OTHER.certificate, OTHER.certificate, says="revoked")
        ours = single_response(LEAF.certificate, ROOT.certificate)
        assert judged(ROOT.ocsp(LEAF.certificate, singles=[other, ours])).status is CertStatus.GOOD

    @pytest.mark.parametrize("order", [1, -1])
    def test_of_two_answers_about_the_certificate_the_worse_counts(self, order: int) -> None:
        singles = [single_response(LEAF.certificate, ROOT.certificate, says=says) for says in ("good", "revoked")]
        assert judged(ROOT.ocsp(LEAF.certificate, singles=singles[::order])).status is CertStatus.REVOKED

    def test_a_response_may_name_its_version_and_the_reason_of_a_revocation(self) -> None:
        revoked_info = der(0xA1, generalized(YESTERDAY), der(0xA0, integer(1, 0x0A)))
        single = single_response(LEAF.certificate, ROOT.certificate, says="revoked").replace(
            der(0xA1, generalized(YESTERDAY)), revoked_info
        )
        single = der(0x30, single[2:] if single[1] < 0x80 else single[3:])
        response = ROOT.ocsp(LEAF.certificate, singles=[single], version=der(0xA0, integer(0)))
        assert judged(response).status is CertStatus.REVOKED

    def test_extensions_that_are_not_critical_are_passed_over(self) -> None:
        odd = extension("1.2.3.4", der(0x05))
        assert judged(ROOT.ocsp(LEAF.certificate, extensions=[odd], single_extensions=[odd])).status is CertStatus.GOOD

    def test_a_second_judgement_of_the_same_response_is_the_same(self) -> None:
        response = OcspResponse.parse(ROOT.ocsp(LEAF.certificate))
        findings = {judge(response, LEAF.certificate, ROOT.certificate, at=NOW, signing_time=None) for _ in range(3)}
        assert len(findings) == 1
        assert response.weight > len(response.signed.octets)


class TestTime:
    @pytest.mark.parametrize("moment", [NOW, NOW - timedelta(days=3)])
    def test_n46_a_response_counts_until_its_next_update_and_not_longer(self, moment: datetime) -> None:
        response = ROOT.ocsp(LEAF.certificate, this_update=moment - timedelta(days=1), next_update=moment)
        assert judged(response, at=moment).status is CertStatus.GOOD
        assert "has expired" in refused(response, at=moment + timedelta(seconds=1))

    def test_n46_a_response_that_never_ends_counts_as_ended(self) -> None:
        assert "until when" in refused(ROOT.ocsp(LEAF.certificate, next_update=None))

    def test_n54_a_responder_whose_clock_is_a_little_fast_is_believed_and_one_from_the_future_is_not(self) -> None:
        assert judged(ROOT.ocsp(LEAF.certificate, this_update=NOW + CLOCK_SKEW)).status is CertStatus.GOOD
        late = ROOT.ocsp(LEAF.certificate, this_update=NOW + CLOCK_SKEW + timedelta(seconds=1))
        assert "future" in refused(late)

    def test_a_key_that_became_invalid_after_the_signature_was_made_does_not_undo_it(self) -> None:
        invalid_from = extension(INVALIDITY, generalized(NOW - timedelta(hours=1)))
        response = ROOT.ocsp(LEAF.certificate, says="revoked", single_extensions=[invalid_from])
        assert judged(response, signing_time=NOW - timedelta(hours=2)).status is CertStatus.GOOD
        assert judged(response, signing_time=NOW - timedelta(hours=1)).status is CertStatus.REVOKED
        assert judged(response, signing_time=None).status is CertStatus.REVOKED

    def test_without_an_invalidity_date_revoked_is_revoked_whenever_the_signature_was_made(self) -> None:
        response = ROOT.ocsp(LEAF.certificate, says="revoked", revoked_at=NOW)
        assert judged(response, signing_time=NOW - timedelta(days=100)).status is CertStatus.REVOKED

    def test_an_invalidity_date_that_cannot_be_read_proves_nothing(self) -> None:
        odd = extension(INVALIDITY, der(0x05))
        response = ROOT.ocsp(LEAF.certificate, says="revoked", single_extensions=[odd])
        assert "cannot be read" in refused(response, signing_time=NOW)


class TestWhoMaySign:
    def test_n46_a_stranger_who_claims_the_issuers_name_is_not_believed(self) -> None:
        for named_by in ("key", "name"):
            response = OTHER.ocsp(LEAF.certificate, ROOT.certificate, names=ROOT.certificate, named_by=named_by)
            assert "not signed by" in refused(response)

    def test_n46_a_stranger_who_names_himself_is_not_believed(self) -> None:
        assert "neither by" in refused(OTHER.ocsp(LEAF.certificate, ROOT.certificate))
        sent = [OTHER.certificate]
        assert "not appointed" in refused(OTHER.ocsp(LEAF.certificate, ROOT.certificate, certificates=sent))

    def test_n46_a_responder_of_another_authority_is_not_believed(self) -> None:
        theirs = OTHER.issue("responder", purposes=[ExtendedKeyUsageOID.OCSP_SIGNING], no_check=True)
        response = theirs.ocsp(LEAF.certificate, ROOT.certificate, certificates=[theirs.certificate])
        assert "another authority" in refused(response)

    def test_n46_a_responder_with_the_issuers_name_and_another_key_above_it_is_not_believed(self) -> None:
        imposter = Entity.root("Root")
        theirs = imposter.issue("responder", purposes=[ExtendedKeyUsageOID.OCSP_SIGNING], no_check=True)
        response = theirs.ocsp(LEAF.certificate, ROOT.certificate, certificates=[theirs.certificate])
        assert "cannot be trusted" in refused(response)

    def test_n46_the_signer_of_images_cannot_vouch_for_himself(self) -> None:
        response = LEAF.ocsp(LEAF.certificate, ROOT.certificate, certificates=[LEAF.certificate])
        assert "not appointed" in refused(response)

    def test_n46_not_even_with_the_purpose_of_a_responder(self) -> None:
        leaf = ROOT.issue("leaf", purposes=[ExtendedKeyUsageOID.OCSP_SIGNING], no_check=True)
        response = leaf.ocsp(leaf.certificate, ROOT.certificate, certificates=[leaf.certificate])
        assert "vouches for itself" in refused(response, certificate=leaf.certificate)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"purposes": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, "not appointed"),
            ({"purposes": [ExtendedKeyUsageOID.CODE_SIGNING]}, "not appointed"),
            ({"purposes": []}, "not appointed"),
            ({"usages": ["key_encipherment"]}, "does not allow signatures"),
            ({"not_after": NOW - timedelta(hours=1)}, "has expired"),
            ({"not_before": NOW + timedelta(hours=1)}, "not valid yet"),
            ({"critical_extensions": {"1.2.3.4": der(0x05)}}, "critical extension 1.2.3.4"),
        ],
    )
    def test_n46_a_responder_that_breaks_a_rule_is_not_believed(self, options: dict[str, Any], reason: str) -> None:
        options = {"purposes": [ExtendedKeyUsageOID.OCSP_SIGNING], **options}
        responder = ROOT.issue("responder", **options)
        response = responder.ocsp(LEAF.certificate, ROOT.certificate, certificates=[responder.certificate])
        assert reason in refused(response)

    def test_a_responder_without_key_usage_may_sign(self) -> None:
        responder = ROOT.issue("responder", purposes=[ExtendedKeyUsageOID.OCSP_SIGNING], usages=())
        response = responder.ocsp(LEAF.certificate, ROOT.certificate, certificates=[responder.certificate])
        assert judged(response).signer == responder.certificate

    def test_a_signature_with_sha_1_does_not_count(self) -> None:
        assert "SHA-1" in refused(ROOT.ocsp(LEAF.certificate, style="sha1"))

    def test_an_issuer_whose_key_is_not_accepted_proves_nothing(self, weak_root: Entity) -> None:
        leaf = weak_root.issue("leaf")
        response = weak_root.ocsp(leaf.certificate)
        assert "key cannot be used" in refused(response, certificate=leaf.certificate, issuer=weak_root.certificate)

    def test_an_altered_response_does_not_count(self) -> None:
        response = ROOT.ocsp(LEAF.certificate, says="revoked", revoked_at=YESTERDAY)
        altered = response.replace(generalized(YESTERDAY), generalized(YESTERDAY - timedelta(days=1)), 1)
        assert "not signed by" in refused(altered)

    def test_many_keys_are_tried_without_remembering_them_all(self) -> None:
        response = OcspResponse.parse(ROOT.ocsp(LEAF.certificate))
        for number in range(20):
            with pytest.raises(Refused):
                response.signed.check_signed_by(Entity.root(f"Root {number}").certificate)
        response.signed.check_signed_by(ROOT.certificate)


class TestWhatIsSaid:
    def test_n46_a_response_about_another_serial_number_says_nothing(self) -> None:
        assert "does not speak of" in refused(ROOT.ocsp(LEAF.certificate, serial=LEAF.certificate.serial + 1))

    @pytest.mark.parametrize(
        "other", [OTHER, Entity.root("Root"), Entity.root("Other", key=ROOT.key)], ids=["both", "key", "name"]
    )
    def test_n46_a_response_about_the_same_serial_number_of_another_issuer_says_nothing(self, other: Entity) -> None:
        single = single_response(LEAF.certificate, other.certificate)
        assert "does not speak of" in refused(ROOT.ocsp(LEAF.certificate, singles=[single]))

    def test_a_response_that_speaks_of_nobody_says_nothing(self) -> None:
        assert "does not speak of" in refused(ROOT.ocsp(LEAF.certificate, singles=[]))

    def test_a_critical_extension_makes_a_response_unusable(self) -> None:
        odd = extension("1.2.3.4", der(0x05), critical=True)
        assert "1.2.3.4" in refused(ROOT.ocsp(LEAF.certificate, extensions=[odd]))
        assert "1.2.3.4" in refused(ROOT.ocsp(LEAF.certificate, single_extensions=[odd]))

    def test_even_a_critical_invalidity_date_makes_it_unusable(self) -> None:
        critical = extension(INVALIDITY, generalized(NOW), critical=True)
        response = ROOT.ocsp(LEAF.certificate, says="revoked", single_extensions=[critical])
        assert "critical" in refused(response, signing_time=YESTERDAY)

    @pytest.mark.parametrize("status", [1, 4, 5, 6])
    def test_n46_an_unsigned_error_of_a_responder_says_nothing(self, status: int) -> None:
        assert "did not answer" in refused_parse(ocsp_response(status, "1.2.3", b""))

    @pytest.mark.parametrize("status", [2, 3])
    def test_a_responder_that_asks_for_patience_is_no_judgement(self, status: int) -> None:
        with pytest.raises(Undecided, match="cannot answer now"):
            OcspResponse.parse(ocsp_response(status, "1.2.3", b""))


def refused_parse(octets: bytes) -> str:
    with pytest.raises(Refused) as caught:
        OcspResponse.parse(octets)
    assert caught.value.code == "REVOCATION_UNKNOWN"
    return caught.value.detail


class TestMalformedResponses:
    def test_a_response_over_the_limit_is_not_read(self) -> None:
        assert "too large" in refused_parse(b"\0" * (MAX_RESPONSE_BYTES + 1))

    def test_a_successful_response_without_content_is_malformed(self) -> None:
        assert "cannot be read" in refused_parse(ocsp_response(0, "1.2.3", b""))

    def test_another_kind_of_response_is_not_supported(self) -> None:
        assert "not supported" in refused_parse(ROOT.ocsp(LEAF.certificate, response_type="1.2.3.4"))

    @pytest.mark.parametrize(
        "options",
        [
            {"version": der(0xA0, integer(1))},
            {"says": "odd"},
            {"hash_oid": "1.2.840.113549.2.5"},
            {"single_extensions": [extension("1.2.3", b"")] * 2},
            {"extensions": [extension(f"1.2.3.{number}", b"") for number in range(MAX_EXTENSIONS + 1)]},
            {"certificates": [b"\x30\0"] * (MAX_RESPONDER_CERTIFICATES + 1)},
            {"singles": [single_response(LEAF.certificate, ROOT.certificate)] * (MAX_ANSWERS + 1)},
        ],
    )
    def test_a_response_that_breaks_its_grammar_or_a_bound_is_malformed(self, options: dict[str, Any]) -> None:
        assert "cannot be read" in refused_parse(ROOT.ocsp(LEAF.certificate, **options))

    @given(st.binary(max_size=300))
    def test_n70_any_bytes_are_refused_and_nothing_else_happens(self, octets: bytes) -> None:
        with pytest.raises((Refused, Undecided)):
            OcspResponse.parse(octets)

    @settings(max_examples=300)
    @given(st.data())
    def test_n70_no_change_of_an_octet_makes_a_good_response_of_a_revocation(self, data: st.DataObject) -> None:
        octets = bytearray(REVOKED)
        position = data.draw(st.integers(0, len(octets) - 1))
        octets[position] ^= data.draw(st.integers(1, 255))
        try:
            finding = judged(bytes(octets))
        except (Refused, Undecided):
            return
        assert finding.status is CertStatus.REVOKED

    @settings(max_examples=100)
    @given(st.integers(0, 1000))
    def test_n70_a_truncated_response_is_refused(self, length: int) -> None:
        with pytest.raises((Refused, Undecided)):
            OcspResponse.parse(REVOKED[: min(length, len(REVOKED) - 1)])


REVOKED = ROOT.ocsp(LEAF.certificate, says="revoked")


@pytest.fixture(scope="module")
def rsa_root() -> Entity:
    return Entity.root("RSA root", key=rsa.generate_private_key(public_exponent=65537, key_size=2048))


@pytest.fixture(scope="module")
def weak_root() -> Entity:
    """An authority with a key below every bound: it can be read, and nothing it signs counts."""
    return Entity.root("weak root", key=ec.generate_private_key(ec.SECP256K1()))
