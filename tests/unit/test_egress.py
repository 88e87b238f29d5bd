"""Egress without sockets: classes of addresses, host lists, proxies of the environment, TLS contexts."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from provider.egress import (
    LOOPBACK_ALLOWED,
    NEVER_ALLOWED,
    PRIVATE_ALLOWED,
    PUBLIC_ONLY,
    AddressClass,
    EgressRefusedError,
    EgressRules,
    Proxy,
    ProxySettings,
    classify,
    is_listed,
    is_loopback_literal,
    load_client_certificate,
    rules_for,
    tls_context,
)
from provider.errors import ConfigurationError

C = AddressClass


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("93.184.216.34", C.PUBLIC),
        ("2606:4700::1111", C.PUBLIC),
        ("10.0.0.1", C.PRIVATE),
        ("172.31.255.255", C.PRIVATE),
        ("172.32.0.0", C.PUBLIC),
        ("192.168.0.1", C.PRIVATE),
        ("100.64.0.1", C.PRIVATE),
        ("240.0.0.1", C.PRIVATE),
        ("fd00::1", C.PRIVATE),
        ("fec0::1", C.PRIVATE),
        ("127.0.0.1", C.LOOPBACK),
        ("127.255.255.254", C.LOOPBACK),
        ("::1", C.LOOPBACK),
        ("224.0.0.1", C.MULTICAST),
        ("ff02::1", C.MULTICAST),
        ("0.0.0.0", C.UNSPECIFIED),
        ("0.1.2.3", C.UNSPECIFIED),
        ("::", C.UNSPECIFIED),
        ("255.255.255.255", C.UNSPECIFIED),
        ("169.254.169.254", C.LINK_LOCAL),
        ("fe80::1", C.LINK_LOCAL),
        ("fe80::1%eth0", C.LINK_LOCAL),
        ("febf:ffff::1", C.LINK_LOCAL),
        ("168.63.129.16", C.METADATA),
        ("fd00:ec2::254", C.METADATA),
        ("100.100.100.200", C.METADATA),
        ("192.0.0.192", C.METADATA),
        # the same, hidden in IPv6
        ("::ffff:93.184.216.34", C.PUBLIC),
        ("::ffff:10.0.0.1", C.PRIVATE),
        ("::ffff:169.254.169.254", C.LINK_LOCAL),
        ("::ffff:0:127.0.0.1", C.LOOPBACK),
        ("::127.0.0.1", C.LOOPBACK),
        ("64:ff9b::5db8:d822", C.PUBLIC),
        ("64:ff9b::a9fe:a9fe", C.LINK_LOCAL),
        ("64:ff9b:1::5db8:d822", C.PRIVATE),
        ("64:ff9b:1::a9fe:a9fe", C.LINK_LOCAL),
        ("2002:5db8:d822::1", C.PUBLIC),
        ("2002:7f00:1::", C.LOOPBACK),
        ("2002:a9fe:a9fe::1", C.LINK_LOCAL),
        ("2001:0:5db8:d822:0:0:f5ff:fffe", C.PRIVATE),  # Teredo client 10.0.0.1
        ("2001:0:7f00:1:0:0:a247:27dd", C.LOOPBACK),  # Teredo server 127.0.0.1
    ],
)
def test_n03_addresses_are_what_they_lead_to(address: str, kind: AddressClass) -> None:
    assert classify(address) is kind


@given(st.ip_addresses())
def test_every_address_has_one_class_and_hiding_it_never_betters_it(address: object) -> None:
    text = str(address)
    kind = classify(text)
    if ":" not in text:
        assert classify(f"::ffff:{text}") >= kind


@given(st.text(max_size=40))
def test_text_that_is_no_address_is_never_connected_to(text: str) -> None:
    try:
        classify(text)
    except ValueError:
        with pytest.raises(EgressRefusedError):
            LOOPBACK_ALLOWED.check_address(text)


@pytest.mark.parametrize("kind", sorted(NEVER_ALLOWED))
def test_no_rules_can_allow_metadata_link_local_multicast_or_unspecified_addresses(kind: AddressClass) -> None:
    with pytest.raises(ValueError, match="cannot be allowed"):
        EgressRules(frozenset({C.PUBLIC, kind}))


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("registry.example.test", (PUBLIC_ONLY, PRIVATE_ALLOWED, LOOPBACK_ALLOWED)),
        ("93.184.216.34", (PUBLIC_ONLY, PRIVATE_ALLOWED, LOOPBACK_ALLOWED)),
        ("10.0.0.1", (PRIVATE_ALLOWED, LOOPBACK_ALLOWED)),
        ("LocalHost.", (LOOPBACK_ALLOWED,)),
        ("a.localhost", (LOOPBACK_ALLOWED,)),
        ("[::1]", (LOOPBACK_ALLOWED,)),
        ("169.254.1.1", ()),
        ("fe80::1%1", ()),
    ],
)
def test_hosts_are_judged_as_far_as_their_text_tells(host: str, allowed: tuple[EgressRules, ...]) -> None:
    for rules in (PUBLIC_ONLY, PRIVATE_ALLOWED, LOOPBACK_ALLOWED):
        if rules in allowed:
            rules.check_host(host)
        else:
            with pytest.raises(EgressRefusedError):
                rules.check_host(host)


@pytest.mark.parametrize(
    ("url", "listed", "expected"),
    [
        ("https://auth.example.test/token", {"auth.example.test"}, True),
        ("https://AUTH.example.test./token", {"Auth.Example.test"}, True),
        ("https://auth.example.test:8443/token", {"auth.example.test"}, True),
        ("https://auth.example.test:8443/token", {"auth.example.test:8443"}, True),
        ("https://auth.example.test/token", {"auth.example.test:8443"}, False),
        ("https://auth.example.test/token", {"auth.example.test:443"}, True),
        ("https://auth.example.test.evil.org/token", {"auth.example.test"}, False),
        ("https://evilauth.example.test/token", {"auth.example.test"}, False),
        ("https://[::1]:8443/token", {"[::1]"}, True),
        ("https://[::1]:8443/token", {"[::1]:8443"}, True),
        ("/token", {"auth.example.test"}, False),
        ("https://auth.example.test/token", set(), False),
    ],
)
def test_n01_a_list_of_hosts_is_compared_by_whole_names(url: str, listed: set[str], expected: bool) -> None:
    assert is_listed(URL(url), listed) is expected


def test_foreign_urls_may_be_internal_only_when_listed() -> None:
    url = URL("http://10.0.0.1/crl")
    assert rules_for(url, {"10.0.0.1"}) == LOOPBACK_ALLOWED
    assert rules_for(url, {"10.0.0.2"}) == PUBLIC_ONLY


def test_loopback_is_what_says_so() -> None:
    assert [host for host in ("localhost", "127.8.8.8", "[::1]", "x.localhost") if not is_loopback_literal(host)] == []
    assert not is_loopback_literal("localhost.example.test")


class TestProxies:
    ENVIRONMENT = {  # noqa: RUF012 - never changed
        "HTTP_PROXY": "http://user:secret%40word@proxy.example.test:3128",
        "https_proxy": "proxy2.example.test:3128",
        "HTTPS_PROXY": "http://ignored.example.test",
        "NO_PROXY": "direct.example.test,.only-below.example.test 10.0.0.0/8,192.168.1.1, "
        "ported.example.test:5000 *.star.test",
    }

    def test_each_scheme_has_its_proxy(self) -> None:
        settings = ProxySettings.from_environment(self.ENVIRONMENT)
        plain, secure = settings.for_url(URL("http://a.test/")), settings.for_url(URL("https://a.test/"))
        assert plain is not None
        assert str(plain.url) == "http://proxy.example.test:3128"
        assert plain.headers["Proxy-Authorization"] == "Basic dXNlcjpzZWNyZXRAd29yZA=="
        assert secure is not None
        assert str(secure.url) == "http://proxy2.example.test:3128"

    @pytest.mark.parametrize(
        ("url", "proxied"),
        [
            ("https://direct.example.test/", False),
            ("https://sub.DIRECT.example.test/", False),
            ("https://notdirect.example.test/", True),
            ("https://only-below.example.test/", True),
            ("https://x.only-below.example.test/", False),
            ("https://10.9.8.7/", False),
            ("https://11.9.8.7/", True),
            ("https://192.168.1.1/", False),
            ("https://ported.example.test:5000/", False),
            ("https://ported.example.test/", True),
            ("https://a.star.test/", False),
            ("https://localhost/", False),
            ("https://127.0.0.1:5000/", False),
            ("https://[::1]/", False),
            ("/relative", True),
        ],
    )
    def test_no_proxy_says_what_is_reached_directly(self, url: str, proxied: bool) -> None:
        settings = ProxySettings.from_environment(self.ENVIRONMENT)
        assert (settings.for_url(URL(url)) is not None) is (proxied and "//" in url)

    def test_a_star_turns_proxies_off(self) -> None:
        settings = ProxySettings.from_environment({"ALL_PROXY": "http://p.test", "NO_PROXY": "*"})
        assert settings.for_url(URL("http://a.test")) is None
        settings = ProxySettings.from_environment({"ALL_PROXY": "http://p.test"})
        assert settings.for_url(URL("http://a.test")) is not None

    @pytest.mark.parametrize("text", ["socks5://user:secret@p.test", "http://", "http://[", "http://p.test:x"])
    def test_n11_a_proxy_that_cannot_be_used_is_a_fault_that_keeps_its_secret(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="CONFIG_INVALID") as caught:
            ProxySettings.from_environment({"HTTP_PROXY": text})
        assert "secret" not in str(caught.value)

    def test_n11_the_password_is_not_in_the_repr(self) -> None:
        settings = ProxySettings.from_environment(self.ENVIRONMENT)
        assert "dXNlcjpz" not in repr(settings)
        assert "secret" not in repr(settings)
        assert Proxy.parse("p.test").headers == {}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class TestTlsContexts:
    def test_certificates_names_and_tls_1_2_are_always_demanded(self) -> None:
        context = tls_context()
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2

    def test_a_bundle_takes_the_place_of_the_systems_roots(self, authority: trustme.CA, tmp_path: Path) -> None:
        pem = authority.cert_pem.bytes()
        (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
        assert tls_context(ca_pem=pem).cert_store_stats()["x509"] == 1
        assert tls_context(ca_pem=pem, ca_file=tmp_path / "ca.pem").cert_store_stats()["x509"] == 2
        both = tls_context(ca_pem=pem, system_roots=True).cert_store_stats()["x509"]
        assert both == tls_context().cert_store_stats()["x509"] + 1

    @pytest.mark.parametrize(
        "spoil", [lambda pem: pem[:-30], lambda pem: pem + pem[:200], lambda _: b"nonsense", lambda _: b"\xff\xfe"]
    )
    def test_a_bundle_that_is_cut_or_no_pem_is_a_fault(self, authority: trustme.CA, spoil: object) -> None:
        with pytest.raises(ConfigurationError, match="CERTIFICATE_INVALID"):
            tls_context(ca_pem=spoil(authority.cert_pem.bytes()))  # type: ignore[operator]

    def test_files_that_are_missing_wrong_or_do_not_match_are_faults(
        self, authority: trustme.CA, tmp_path: Path
    ) -> None:
        one, other = (authority.issue_cert("a@example.test") for _ in range(2))
        one.cert_chain_pems[0].write_to_path(tmp_path / "one.pem")
        other.private_key_pem.write_to_path(tmp_path / "other.key")
        one.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
        missing = tmp_path / "missing.pem"
        tls_context(client_certificate=tmp_path / "both.pem")
        for arguments in (
            {"ca_file": missing},
            {"client_certificate": missing},
            {"client_certificate": tmp_path / "one.pem", "client_key": tmp_path / "other.key"},
            {"client_certificate": tmp_path / "one.pem"},
            {"client_key": tmp_path / "other.key"},
        ):
            with pytest.raises(ConfigurationError, match="CERTIFICATE_INVALID"):
                tls_context(**arguments)  # type: ignore[arg-type]

    def test_an_encrypted_key_is_a_fault_and_no_question_on_the_terminal(
        self, authority: trustme.CA, tmp_path: Path
    ) -> None:
        from cryptography.hazmat.primitives import serialization

        client = authority.issue_cert("a@example.test")
        key = serialization.load_pem_private_key(client.private_key_pem.bytes(), None)
        encrypted = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
        (tmp_path / "client.key").write_bytes(encrypted)
        client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
        with pytest.raises(ConfigurationError, match="CERTIFICATE_INVALID"):
            load_client_certificate(tls_context(), tmp_path / "client.pem", tmp_path / "client.key")
