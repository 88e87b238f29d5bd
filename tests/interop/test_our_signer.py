"""The other direction: what Countersign's own demo makes is good for the real tools.

The demo's signer, time-stamper and registry are what many tests stand on. Were they wrong in the same way as the
verifier, those tests would pass all the same; here somebody else judges them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from provider.demo import signing, timestamping
from provider.demo.pki import CertifiedKey
from provider.demo.registry import EmbeddedRegistry
from provider.demo.signing import EnvelopeFormat, SignOptions
from provider.oci import Descriptor, Digest
from tests.interop import authorities, peers
from tests.interop.authorities import Authority, Identity, TimestampAuthority
from tests.interop.conftest import Judge
from tests.interop.notation import FORMATS, Notation, Trust, assert_refused, assert_verified
from tests.interop.registries import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    NOTATION_SIGNATURE,
    Registry,
    Repository,
    descriptor,
    digest_of,
    encode,
)

Timestamp = Callable[[bytes], bytes]


def certified(identity: Identity) -> CertifiedKey:
    """A key and chain that openssl made, for our signer."""
    key = load_pem_private_key(identity.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    leaf, *issuers = x509.load_pem_x509_certificates(identity.chain.read_bytes())
    return CertifiedKey(leaf, key, tuple(issuers))


def in_format(envelope: str, **more: Any) -> SignOptions:
    """Options of our signer for `jws` or `cose`."""
    return SignOptions(format=EnvelopeFormat(FORMATS[envelope]), **more)


def sign(
    repository: Repository,
    digest: str,
    identity: Identity,
    options: SignOptions,
    *,
    legacy: bool = False,
) -> None:
    """Sign an image with our signer and attach the signature, by the manifest's subject and by the tag schema."""
    now = datetime.now(UTC)
    body = repository.manifest(digest)
    target = Descriptor(IMAGE_MANIFEST, Digest.of(body), len(body))
    key = certified(identity)
    made = signing.sign(target, key, now, options)
    manifest = signing.signature_manifest(target, made, options.format.value, key.chain, created=now, legacy=legacy)
    for blob in (signing.EMPTY_CONFIG, made):
        repository.push_blob(blob)
    repository.push_manifest(manifest, IMAGE_MANIFEST)
    entry = descriptor(manifest, IMAGE_MANIFEST, artifactType=NOTATION_SIGNATURE)
    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [entry]}
    repository.push_manifest(encode(index), IMAGE_INDEX, digest.replace(":", "-"))


@pytest.mark.parametrize("key_type", authorities.KEY_TYPES)
def test_our_signature_verifies_with_every_key_type(
    app: Repository, pki: Authority, trust: Trust, key_type: str, envelope: str, judge: Judge
) -> None:
    digest = app.push_image(f"ours {key_type}")
    sign(app, digest, pki.once(key_type), in_format(envelope))
    assert_verified(judge.verify(app.at(digest), trust))


@pytest.mark.parametrize("legacy", [False, True], ids=["OCI 1.1 manifest", "manifest of notation up to 1.3"])
def test_our_signature_verifies_in_any_registry_and_both_forms_of_its_manifest(
    registry: Registry, repository: Repository, signer: Identity, trust: Trust, legacy: bool, judge: Judge
) -> None:
    if not (legacy or registry.lists_artifact_types):
        pytest.skip(f"{registry.kind} lists the config's media type where OCI 1.1 wants the manifest's artifactType")
    digest = repository.push_image("ours")
    sign(repository, digest, signer, in_format("jws"), legacy=legacy)
    assert_verified(judge.verify(repository.at(digest), trust))


def test_our_signature_with_metadata_and_an_expiry_to_come_verifies(
    app: Repository, signer: Identity, trust: Trust, envelope: str, judge: Judge
) -> None:
    digest = app.push_image("lasting")
    expiry = datetime.now(UTC) + timedelta(days=1)
    sign(app, digest, signer, in_format(envelope, expiry=expiry, annotations={"build": "42"}))
    assert_verified(judge.verify(app.at(digest), trust))


@pytest.fixture(scope="module")
def expired(one_registry: Registry, signer: Identity) -> dict[str, str]:
    """Images whose signatures have expired, by envelope format. Expiry has to lie after the signing time."""
    repository = one_registry.repository("interop/expired")
    digests = {envelope: repository.push_image(f"expired {envelope}") for envelope in FORMATS}
    expiry = datetime.now(UTC) + timedelta(seconds=3)
    for envelope, digest in digests.items():
        sign(repository, digest, signer, in_format(envelope, expiry=expiry))
    peers.wait_until(expiry.timestamp() + 1)
    return {envelope: repository.at(digest) for envelope, digest in digests.items()}


def test_n51_an_expired_signature_is_refused_unless_the_policy_only_logs_expiry(
    expired: dict[str, str], trust: Trust, envelope: str, judge: Judge
) -> None:
    assert_refused(judge.verify(expired[envelope], trust), "SIGNATURE_EXPIRED")
    assert_verified(judge.verify(expired[envelope], trust.but(level="permissive")))


def test_our_signature_of_a_signing_authority_verifies_with_that_type_of_store_only(
    app: Repository, signer: Identity, envelope: str, judge: Judge
) -> None:
    digest = app.push_image("authority")
    sign(app, digest, signer, in_format(envelope, scheme=signing.SCHEME_SIGNING_AUTHORITY))
    assert_verified(judge.verify(app.at(digest), Trust(signing_authority=[signer.root])))
    assert_refused(judge.verify(app.at(digest), Trust(ca=[signer.root])), "UNTRUSTED_ROOT", "TRUST_STORE_EMPTY")


def test_an_openssl_time_stamp_on_our_signature_verifies(
    app: Repository,
    signer: Identity,
    tsa: TimestampAuthority,
    trust: Trust,
    envelope: str,
    judge: Judge,
    tmp_path: Path,
) -> None:
    def stamp(signature: bytes) -> bytes:
        openssl = peers.find("openssl")
        query = peers.must([openssl, "ts", "-query", "-data", "/dev/stdin", "-sha256", "-cert"], stdin=signature)
        (tmp_path / "reply.tsr").write_bytes(authorities.timestamp_reply(tsa.identity, query))
        return peers.must([openssl, "ts", "-reply", "-in", tmp_path / "reply.tsr", "-token_out"])

    digest = app.push_image("stamped by openssl")
    sign(app, digest, signer, in_format(envelope, timestamp=stamp))
    assert_verified(judge.verify(app.at(digest), trust.but(tsa=[tsa.root])))


@pytest.fixture
def our_tsa(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A key that our time-stamper signs with."""
    root = authorities.root_authority(tmp_path_factory.mktemp("our-tsa"), "our-tsa-root")
    return root.issue("our-tsa", "time_stamping")


def our_stamp(identity: Identity) -> Timestamp:
    """Our time-stamper as the signer calls it."""
    key = certified(identity)

    def stamp(signature: bytes) -> bytes:
        return timestamping.issue_token(
            message_imprint=hashlib.sha256(signature).digest(),
            hash_algorithm="sha256",
            signer_key=key.key,
            signer_certificate=key.certificate,
            certificates=[key.certificate],
            gen_time=datetime.now(UTC).replace(microsecond=0),
            accuracy_seconds=1,
            serial=int.from_bytes(os.urandom(8)),
        )

    return stamp


def test_our_time_stamp_on_our_signature_verifies(
    app: Repository, signer: Identity, our_tsa: Identity, trust: Trust, envelope: str, judge: Judge
) -> None:
    digest = app.push_image("stamped by us")
    sign(app, digest, signer, in_format(envelope, timestamp=our_stamp(our_tsa)))
    assert_verified(judge.verify(app.at(digest), trust.but(tsa=[our_tsa.root])))


def test_openssl_accepts_our_time_stamp_and_only_for_what_it_stamps(our_tsa: Identity, tmp_path: Path) -> None:
    openssl = peers.find("openssl")
    (tmp_path / "data").write_bytes(b"what is stamped")
    (tmp_path / "token").write_bytes(our_stamp(our_tsa)(b"what is stamped"))
    check: peers.Command = [openssl, "ts", "-verify", "-in", tmp_path / "token", "-token_in", "-CAfile", our_tsa.root]
    peers.must([*check, "-data", tmp_path / "data"])
    (tmp_path / "data").write_bytes(b"something else")
    assert peers.run([*check, "-data", tmp_path / "data"]).returncode != 0


@pytest.fixture
def embedded() -> Iterator[EmbeddedRegistry]:
    """The demo's registry, on a loop of its own, so that blocking peers can talk to it."""
    ready, done = threading.Event(), threading.Event()
    running: list[EmbeddedRegistry] = []

    async def serve() -> None:
        async with EmbeddedRegistry() as registry:
            running.append(registry)
            ready.set()
            await asyncio.to_thread(done.wait)

    with contextlib.ExitStack() as stack:
        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        stack.callback(thread.join)
        stack.callback(done.set)
        assert ready.wait(peers.START_SECONDS)
        yield running[0]


def test_notation_signs_and_verifies_in_our_registry(
    embedded: EmbeddedRegistry, notation: Notation, signer: Identity, trust: Trust, envelope: str
) -> None:
    repository = Repository(embedded.host, "interop/embedded")
    digest = repository.push_image("in our registry", "v1")
    notation.sign(repository.at(digest), signer, "--force-referrers-tag=false", envelope=envelope)
    assert repository.tag_schema(digest) == [], "notation did not find our referrers API"
    assert len(repository.signatures(digest)) == 1
    assert_verified(notation.verify(repository.at("v1"), trust))


def test_oras_copies_to_and_from_our_registry_with_referrers(
    embedded: EmbeddedRegistry, notation: Notation, signer: Identity, trust: Trust, tmp_path: Path
) -> None:
    repository = Repository(embedded.host, "interop/embedded")
    digest = repository.push_image("copied", "v1")
    notation.sign(repository.at(digest), signer, "--force-referrers-tag=false")
    copy: peers.Command = [peers.find("oras"), "copy", "--recursive"]
    layout = tmp_path / "layout"
    peers.must([*copy, "--from-plain-http", "--to-oci-layout", repository.at("v1"), f"{layout}:v1"])
    other = Repository(embedded.host, "interop/copy")
    peers.must([*copy, "--from-oci-layout", "--to-plain-http", f"{layout}:v1", other.at("v1")])
    assert digest_of(other.manifest("v1")) == digest
    assert_verified(notation.verify(other.at("v1"), trust))
