"""The transport's pure parts: secrets in representations, renewal of client certificates."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from provider.errors import ConfigurationError
from provider.stores.profile import OrasStoreSettings, RegistryProfile
from provider.stores.transport import (
    FILE_CHECK_SECONDS,
    Request,
    Response,
    Transport,
    _ProfileTls,
)
from tests.simulators.stores import Clock


def test_n11_requests_and_answers_show_no_secrets() -> None:
    request = Request("GET", URL("https://a.test/?sig=secret"), "it", {"Authorization": "secret"}, 1, {"x": "secret"})
    response = Response(200, CIMultiDictProxy(CIMultiDict({"X": "secret"})), b"secret")
    assert "secret" not in repr(request) + repr(response) + repr(request.with_header("Y", "secret"))


def test_a_profile_whose_tls_files_cannot_be_used_is_a_fault_when_the_store_is_made(tmp_path: Path) -> None:
    profile = RegistryProfile("reg.example.test", ca_file=tmp_path / "missing.pem")
    with pytest.raises(ConfigurationError, match="CERTIFICATE_INVALID"):
        Transport(OrasStoreSettings(profiles=(profile,)))


def test_a_renewed_client_certificate_is_taken_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"

    def renew() -> bytes:
        client = authority.issue_cert("countersign@example.test")
        client.cert_chain_pems[0].write_to_path(certificate)
        client.private_key_pem.write_to_path(key)
        return ssl.PEM_cert_to_DER_cert(client.cert_chain_pems[0].bytes().decode())

    def shown() -> bytes:
        """What a server is shown, over a connection in memory."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("reg.example.test").configure_cert(server)
        authority.configure_trust(server)
        server.verify_mode = ssl.CERT_REQUIRED
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            own.context.wrap_bio(to_client, to_server, server_hostname="reg.example.test"),
            server.wrap_bio(to_server, to_client, server_side=True),
        ]
        for end in ends * 3:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        presented = ends[1].getpeercert(binary_form=True)
        assert presented is not None
        return presented

    first = renew()
    clock = Clock()
    profile = RegistryProfile(
        "reg.example.test",
        ca_bundle=authority.cert_pem.bytes(),
        client_certificate=certificate,
        client_key=key,
    )
    own = _ProfileTls(profile, clock)
    assert shown() == first
    second = renew()
    own.refresh()
    assert shown() == first, "the files are looked at now and then, not at every request"
    clock.now += FILE_CHECK_SECONDS
    own.refresh()
    assert shown() == second
    context, foreign = own.context, own.foreign
    clock.now += FILE_CHECK_SECONDS
    own.refresh()
    assert own.context is context, "new contexts cost every connection, and are made for a change alone"
    assert own.foreign is foreign
    os.truncate(certificate, 100)
    clock.now += FILE_CHECK_SECONDS
    own.refresh()
    assert shown() == second
    third = renew()
    clock.now += FILE_CHECK_SECONDS
    own.refresh()
    assert shown() == third
    certificate.unlink()
    clock.now += FILE_CHECK_SECONDS
    own.refresh()
    clock.now += FILE_CHECK_SECONDS
    own.refresh()
    assert shown() == third
