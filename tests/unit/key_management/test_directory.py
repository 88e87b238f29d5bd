"""Trust stores that are folders of certificate files."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from provider.errors import ConfigurationError, Undecided
from provider.key_management import directory
from provider.key_management.directory import DirectoryKeyManagementProvider, read_trust_store
from provider.notation.certificates import Certificate
from tests.simulators.signer import LEAF_NAME, Signer, certificate

LEAF, ROOT = Signer.make().chain
OTHER_ROOT = Signer.make().chain[1]
_KEY = ec.generate_private_key(ec.SECP256R1())
SELF_SIGNED_LEAF = certificate(_KEY, name=LEAF_NAME, issuer=LEAF_NAME, issuer_key=_KEY)

UPSTREAM = Path(__file__).parents[4] / "shared" / "vectors" / "upstream"
CASES = (
    [case for case in json.loads((UPSTREAM / "cases.json").read_text()) if case["kind"] == "truststore"]
    if UPSTREAM.exists()
    else []
)


def pem(*ders: bytes) -> bytes:
    return "".join(map(ssl.DER_cert_to_PEM_cert, ders)).encode()


def faults_of(path: Path, *, timestamping: bool = False) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read_trust_store(path, timestamping=timestamping)
    assert caught.value.code == "CERTIFICATE_INVALID"
    return [str(fault).replace(str(path), "store") for fault in caught.value.faults] or [caught.value.detail]


def test_a_folder_of_certificates_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """PEM bundles and DER, a certificate after the other."""
    (tmp_path / "b.CRT").write_bytes(pem(ROOT, SELF_SIGNED_LEAF))
    (tmp_path / "a.cer").write_bytes(OTHER_ROOT)
    (tmp_path / "c.der").write_bytes(ROOT)
    found = [one.der for one in read_trust_store(tmp_path, timestamping=False)]
    assert found == [OTHER_ROOT, ROOT, SELF_SIGNED_LEAF, ROOT]


def test_one_file_is_a_trust_store_too(tmp_path: Path) -> None:
    """By any name, since the operator named it."""
    (tmp_path / "bundle").write_bytes(pem(ROOT))
    assert read_trust_store(tmp_path / "bundle", timestamping=True) == (Certificate.parse(ROOT),)


def test_everything_wrong_with_a_folder_is_told_at_once(tmp_path: Path) -> None:
    """N43: and none of what is right is used."""
    (tmp_path / "good.pem").write_bytes(pem(ROOT))
    (tmp_path / "folder").mkdir()
    (tmp_path / "leaf.pem").write_bytes(pem(ROOT, LEAF))
    (tmp_path / "link.pem").symlink_to("good.pem")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "truncated.pem").write_bytes(pem(ROOT)[:200])
    (tmp_path / "empty.pem").touch()
    (tmp_path / ".hidden").touch()
    os.mkfifo(tmp_path / "pipe.pem")
    issued = (
        'the certificate "CN=signer,O=Contoso,ST=WA,C=US" cannot be a trust anchor (expected an authority '
        '(basicConstraints cA) or a self-signed certificate, found a certificate issued by "CN=root,O=Contoso,C=US")'
    )
    assert faults_of(tmp_path) == [
        "store .hidden: is no certificate file by its name (.cer, .crt, .der, .pem)",
        "store folder: is a folder: a trust store has files only",
        "store link.pem: is a symbolic link: put the file itself there",
        "store notes.txt: is no certificate file by its name (.cer, .crt, .der, .pem)",
        "store empty.pem: there is neither a PEM block nor DER (expected -----BEGIN CERTIFICATE----- or DER)",
        f"store leaf.pem: {issued}",
        "store pipe.pem: cannot be read: not a regular file",
        "store truncated.pem: block 1: truncated, its end line is missing",
    ]


def test_an_empty_folder_trusts_nobody_and_says_so(tmp_path: Path) -> None:
    assert faults_of(tmp_path) == ["store: holds no certificate file"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "none") == ["store none: cannot be read: No such file or directory"]


def test_a_link_to_a_folder_or_file_is_refused(tmp_path: Path) -> None:
    """As in notation: a link can be turned to somewhere else by who may not write the store."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "root.pem").write_bytes(pem(ROOT))
    (tmp_path / "link").symlink_to("store")
    (tmp_path / "root.pem").symlink_to("store/root.pem")
    for name in ("link", "root.pem"):
        assert faults_of(tmp_path / name) == ["store: is a symbolic link: name the folder or file itself"]


def test_a_path_that_no_file_system_takes_is_told(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert faults_of(path) == [f"{path} cannot be read: File name too long"]


def test_a_path_through_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert faults_of(tmp_path / "file" / "store") == ["store store: cannot be read: Not a directory"]


def test_too_many_and_too_large_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(b"#" * (directory.MAX_FILE_BYTES + 1))
    assert faults_of(tmp_path) == [f"store a.pem: cannot be read: more than {directory.MAX_FILE_BYTES} bytes"]
    for number in range(directory.MAX_FILES):
        (tmp_path / f"{number}.pem").touch()
    assert faults_of(tmp_path) == [f"store: holds more than {directory.MAX_FILES} files"]


def test_time_stamp_authorities_need_a_self_signed_authority(tmp_path: Path) -> None:
    (tmp_path / "self.pem").write_bytes(pem(SELF_SIGNED_LEAF))
    assert read_trust_store(tmp_path, timestamping=False)
    assert "cannot be a trust anchor for time-stamps" in faults_of(tmp_path, timestamping=True)[0]


def make_volume(folder: Path, generation: str, content: bytes) -> None:
    """A ConfigMap or Secret volume as kubelet lays it out, or its next generation."""
    (folder / generation).mkdir()
    (folder / generation / "root.pem").write_bytes(content)
    (folder / "..data_tmp").symlink_to(generation)
    (folder / "..data_tmp").rename(folder / "..data")
    if not (folder / "root.pem").exists():
        (folder / "root.pem").symlink_to("..data/root.pem")


def test_a_volume_of_kubernetes_is_read_although_it_is_made_of_links(tmp_path: Path) -> None:
    make_volume(tmp_path, "..2026_01_02", pem(ROOT))
    assert [one.der for one in read_trust_store(tmp_path, timestamping=False)] == [ROOT]
    assert [one.der for one in read_trust_store(tmp_path / "root.pem", timestamping=False)] == [ROOT]


@pytest.mark.parametrize("target", ["/etc", "../elsewhere", "a/b"])
def test_a_link_that_kubernetes_would_not_make_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "..data").symlink_to(target)
    assert faults_of(tmp_path) == ["store ..data: is a symbolic link: put the file itself there"]


async def test_certificates_are_there_after_the_first_refresh(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(pem(ROOT, ROOT))
    provider = DirectoryKeyManagementProvider("certs", tmp_path, timestamping=False)
    with pytest.raises(Undecided) as caught:
        provider.material()
    assert caught.value.code == "KEYS_UNAVAILABLE"
    await provider.refresh()
    assert [one.der for one in provider.material().certificates] == [ROOT]


async def test_a_refresh_follows_a_rotation_and_keeps_the_last_good_certificates(tmp_path: Path) -> None:
    """A half-finished rotation refuses nothing that was trusted, and trusts nothing new."""
    make_volume(tmp_path, "..1", pem(ROOT))
    provider = DirectoryKeyManagementProvider("certs", tmp_path, timestamping=False)
    await provider.refresh()
    make_volume(tmp_path, "..2", pem(OTHER_ROOT)[:100])
    with pytest.raises(ConfigurationError):
        await provider.refresh()
    assert [one.der for one in provider.material().certificates] == [ROOT]
    make_volume(tmp_path, "..3", pem(OTHER_ROOT))
    await provider.refresh()
    assert [one.der for one in provider.material().certificates] == [OTHER_ROOT]


@pytest.mark.skipif(not CASES, reason="the upstream vectors are not here")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_folders_are_read_as_notation_reads_them(case: dict[str, str]) -> None:
    path = UPSTREAM / case["trustRoot"] / "truststore" / "x509" / case["storeType"] / case["store"]
    if case["expected"] == "error":
        assert faults_of(path, timestamping=case["storeType"] == "tsa")
    else:
        found = read_trust_store(path, timestamping=case["storeType"] == "tsa")
        assert f"loads {len(found)} certificates" == case["expected"]


@pytest.mark.skipif(not CASES, reason="the upstream vectors are not here")
@pytest.mark.parametrize(
    "store",
    [
        *("ca/trust-store-with-leaf-certs-in-single-file", "ca/trust-store-with-leaf-certs"),
        *("ca/trust-store-with-invalid-certs", "trust-store-with-cert-symlinks", "trust-store-with-directories/.."),
    ],
)
def test_folders_that_notations_own_tests_refuse_are_refused(store: str) -> None:
    assert faults_of(UPSTREAM / "notation-go/verifier/testdata/truststore/x509" / store)
