"""The throw-away PKI: what it issues is what the product's own rules accept, and its answers parse as what they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from provider.demo import pki
from provider.demo.pki import CertifiedKey
from provider.notation.certificates import Certificate, check_code_signing_chain, check_timestamping_chain

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def _issue(name: str, extensions: pki.Extensions, issuer: CertifiedKey | None) -> CertifiedKey:
    return pki.issue({"O": "X", "CN": name}, extensions, issuer=issuer, not_before=NOW - DAY, not_after=NOW + DAY)


@pytest.fixture(scope="module")
def root() -> CertifiedKey:
    return _issue("root", pki.authority(), None)


def _chain(key: CertifiedKey) -> tuple[Certificate, ...]:
    return tuple(Certificate.parse(pki.der(certificate)) for certificate in key.chain)


def test_a_code_signer_and_a_time_stamper_keep_the_certificate_rules(root: CertifiedKey) -> None:
    issuing = _issue("issuing", pki.authority(path_length=0), root)
    check_code_signing_chain(_chain(_issue("signer", pki.code_signing(), issuing)))
    check_timestamping_chain(_chain(_issue("stamper", pki.timestamping(), issuing)))


def test_a_chain_runs_from_the_leaf_to_the_root_and_the_served_one_leaves_the_root_out(root: CertifiedKey) -> None:
    leaf = _issue("leaf", pki.tls_server(["localhost", "127.0.0.1"]), root)
    assert leaf.chain == (leaf.certificate, root.certificate)
    assert leaf.root == root.certificate
    assert x509.load_pem_x509_certificates(leaf.chain_pem()) == [leaf.certificate]
    assert x509.load_pem_x509_certificates(root.chain_pem()) == [root.certificate]


def test_private_keys_do_not_show_in_what_is_printed(root: CertifiedKey) -> None:
    assert "PRIVATE" in root.key_pem().decode()
    assert "key=" not in repr(root)


def test_a_server_is_named_by_dns_names_and_addresses(root: CertifiedKey) -> None:
    leaf = _issue("leaf", pki.tls_server(["localhost", "127.0.0.1"]), root)
    names = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_a_caller_may_bring_key_and_serial_number(root: CertifiedKey) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    leaf = pki.issue({"CN": "x"}, (), issuer=root, not_before=NOW, not_after=NOW + DAY, key=key, serial=7)
    assert leaf.key is key
    assert leaf.certificate.serial_number == 7
    assert not list(leaf.certificate.extensions)


def test_a_subject_reads_as_trust_policies_write_it() -> None:
    subject = {"C": "US", "ST": "WA", "O": "Example Corp", "CN": "Release"}
    made = pki.issue(subject, (), issuer=None, not_before=NOW, not_after=NOW + DAY)
    assert pki.subject_of(made.certificate) == "C=US, ST=WA, O=Example Corp, CN=Release"


def test_revocation_urls_stand_where_verifiers_look(root: CertifiedKey) -> None:
    leaf = _issue("leaf", pki.code_signing(ocsp_url="http://o.test/", crl_url="http://c.test/x.crl"), root).certificate
    access = leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert [entry.access_method for entry in access] == [AuthorityInformationAccessOID.OCSP]
    point = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [name.value for name in point[0].full_name or ()] == ["http://c.test/x.crl"]


def test_a_revocation_list_names_the_revoked_and_is_signed_by_its_issuer(root: CertifiedKey) -> None:
    data = pki.revocation_list(root, {7: NOW - DAY}, this_update=NOW, next_update=NOW + DAY, number=3)
    crl = x509.load_der_x509_crl(data)
    assert crl.is_signature_valid(root.key.public_key())
    assert crl.get_revoked_certificate_by_serial_number(8) is None
    entry = crl.get_revoked_certificate_by_serial_number(7)
    assert entry is not None
    assert entry.revocation_date_utc == NOW - DAY
    assert crl.extensions.get_extension_for_oid(ExtensionOID.CRL_NUMBER).value == x509.CRLNumber(3)


def _ask(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA1
    from cryptography.hazmat.primitives.serialization import Encoding

    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, SHA1()).build()
    return request.public_bytes(Encoding.DER)


def test_ocsp_says_good_revoked_or_that_it_does_not_know(root: CertifiedKey) -> None:
    good, bad, other = (_issue(name, pki.code_signing(), root).certificate for name in ("good", "bad", "other"))

    def answer(request: bytes) -> ocsp.OCSPResponse:
        data = pki.ocsp_answer(
            root,
            request,
            known=[good, bad],
            revoked={bad.serial_number: NOW - DAY},
            this_update=NOW,
            next_update=NOW + DAY,
        )
        return ocsp.load_der_ocsp_response(data)

    assert answer(_ask(good, root.certificate)).certificate_status is ocsp.OCSPCertStatus.GOOD
    revoked = answer(_ask(bad, root.certificate))
    assert revoked.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert revoked.revocation_time_utc == NOW - DAY
    assert answer(_ask(other, root.certificate)).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED
    assert answer(b"nonsense").response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST
