"""The Notation verifier between store and core: manifests, trust stores and reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest

from provider.demo import pki, signing
from provider.demo.timestamping import issue_token
from provider.errors import Undecided
from provider.interfaces import KeyMaterial
from provider.notation.certificates import Certificate
from provider.notation.revocation import Inquiry
from provider.notation.trust_policy import StoreType, TrustPolicyDocument
from provider.oci import (
    MEDIA_TYPE_ARTIFACT_MANIFEST,
    MEDIA_TYPE_EMPTY,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
    Reference,
    Subject,
)
from provider.reports import VerifierReport
from provider.verifiers.notation import ARTIFACT_TYPE, NotationVerifier
from tests.simulators.revocation_data import Network

NOW = datetime(2026, 1, 10, tzinfo=UTC)
DAY = timedelta(days=1)
TARGET = Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(b"image"), 5)
REFERENCE = Reference.parse("reg.example.com/team/app:v1")
SUBJECT = Subject(REFERENCE, TARGET.digest, TARGET)
CRL = "http://crl.test/c.crl"


@cache
def root() -> pki.CertifiedKey:
    name = {"C": "US", "ST": "WA", "O": "Contoso", "CN": "root"}
    return pki.issue(name, pki.authority(), issuer=None, not_before=NOW - DAY, not_after=NOW + 900 * DAY)


@cache
def leaf(crl_url: str | None = None) -> pki.CertifiedKey:
    name = {"C": "US", "ST": "WA", "O": "Contoso", "CN": "release"}
    extensions = pki.code_signing(crl_url=crl_url)
    return pki.issue(name, extensions, issuer=root(), not_before=NOW - DAY, not_after=NOW + DAY)


@cache
def stranger() -> pki.CertifiedKey:
    return pki.issue({"CN": "other"}, pki.authority(), issuer=None, not_before=NOW - DAY, not_after=NOW + 900 * DAY)


@dataclass
class MemoryStore:
    """Objects by digest."""

    objects: dict[Digest, bytes] = field(default_factory=dict)
    name: str = "memory"

    def put(self, data: bytes, media_type: str = MEDIA_TYPE_MANIFEST) -> Descriptor:
        descriptor = Descriptor(media_type, Digest.of(data), len(data), ARTIFACT_TYPE)
        self.objects[descriptor.digest] = data
        return descriptor

    async def resolve(self, reference: Reference) -> Subject:
        return SUBJECT

    async def list_referrers(self, subject: Subject, artifact_type: str | None) -> AsyncIterator[Descriptor]:
        return
        yield

    async def fetch_manifest(self, subject: Subject, descriptor: Descriptor) -> bytes:
        return self._fetch(descriptor)

    async def fetch_blob(self, subject: Subject, descriptor: Descriptor, max_bytes: int) -> bytes:
        return self._fetch(descriptor)

    def _fetch(self, descriptor: Descriptor) -> bytes:
        if descriptor.digest not in self.objects:
            raise Undecided("REGISTRY_UNAVAILABLE", "down")
        return self.objects[descriptor.digest]


@dataclass
class KeySource:
    """A key management provider with what it is given."""

    certificates: tuple[Certificate, ...] | None
    name: str = "keys"
    missing: tuple[str, ...] = ()

    def material(self) -> KeyMaterial:
        if self.certificates is None:
            raise Undecided("KEYS_UNAVAILABLE", "not loaded")
        return KeyMaterial(self.certificates, missing=self.missing)

    async def refresh(self) -> None:
        """Nothing to load."""


class Driver:
    """Drives inquiries on a scripted network."""

    def __init__(self, network: Network | None = None) -> None:
        self.network = network or Network()

    async def run(self, inquiry: Inquiry[Any]) -> Any:
        return self.network.drive(inquiry)


def read(*keys: pki.CertifiedKey) -> tuple[Certificate, ...]:
    return tuple(Certificate.parse(pki.der(key.certificate)) for key in keys)


def document(**changes: Any) -> TrustPolicyDocument:
    statement: dict[str, Any] = {
        "name": "p",
        "registryScopes": ["reg.example.com/team/app"],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:s"],
        "trustedIdentities": ["*"],
        **changes,
    }
    return TrustPolicyDocument.from_object({"version": "1.0", "trustPolicies": [statement]})


def verifier(
    keys: KeySource | None = None,
    network: Network | None = None,
    policy: TrustPolicyDocument | None = None,
    **options: Any,
) -> NotationVerifier:
    source = keys or KeySource(read(root()))
    return NotationVerifier(
        name="verifier-notation",
        document=policy or document(),
        trust_stores={(StoreType.CA, "s"): (source,), (StoreType.TSA, "s"): (source,)},
        revocation=Driver(network),
        **options,
    )


def attach(
    store: MemoryStore, signer: pki.CertifiedKey | None = None, *, legacy: bool = False, **changes: Any
) -> Descriptor:
    """Push a signature whose manifest is changed as told."""
    envelope = signing.sign(TARGET, signer or leaf(), NOW)
    store.put(envelope, "application/jose+json")
    manifest = json.loads(
        signing.signature_manifest(TARGET, envelope, "application/jose+json", leaf().chain, created=NOW, legacy=legacy)
    )
    manifest.update(changes)
    data = json.dumps({key: value for key, value in manifest.items() if value is not None}).encode()
    return store.put(data, manifest["mediaType"])


async def report(
    made: NotationVerifier | None = None,
    signer: pki.CertifiedKey | None = None,
    asked: Subject = SUBJECT,
    **changes: Any,
) -> VerifierReport:
    store = MemoryStore()
    return await (made or verifier()).verify(store, asked, attach(store, signer, **changes), NOW)


async def test_a_good_signature_is_reported_with_ratifys_facts_and_ours() -> None:
    made = await report()
    assert made.is_success
    assert (made.name, made.type, made.message) == (
        "verifier-notation",
        "notation",
        "Notation signature verification success",
    )
    assert made.artifact_type == ARTIFACT_TYPE
    facts = dict(made.extensions)
    checks = facts.pop("checks")
    assert facts == {
        "Issuer": "CN=root,O=Contoso,ST=WA,C=US",
        "SN": "CN=release,O=Contoso,ST=WA,C=US",
        "notAfter": "2026-01-11T00:00:00+00:00",
        "trustPolicy": "p",
    }
    assert {check["result"] for check in checks} == {"success"}


@pytest.mark.parametrize("legacy", [False, True])
async def test_both_forms_of_the_manifest_are_taken(legacy: bool) -> None:
    assert (await report(legacy=legacy)).is_success


async def test_the_withdrawn_artifact_manifest_is_taken() -> None:
    store = MemoryStore()
    envelope = store.put(signing.sign(TARGET, leaf(), NOW), "application/jose+json")
    manifest: Mapping[str, Any] = {
        "mediaType": MEDIA_TYPE_ARTIFACT_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "blobs": [signing.descriptor_json(envelope)],
        "subject": signing.descriptor_json(TARGET),
    }
    artifact = store.put(json.dumps(manifest).encode(), MEDIA_TYPE_ARTIFACT_MANIFEST)
    assert (await verifier().verify(store, SUBJECT, artifact, NOW)).is_success


OTHER = signing.descriptor_json(Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(b"other"), 5))
EMPTY = {"mediaType": MEDIA_TYPE_EMPTY, "digest": str(Digest.of(b"{}")), "size": 2}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"subject": None}, "refers to another image"),
        ({"subject": OTHER}, "refers to another image"),
        ({"artifactType": "application/other"}, "not of a form"),
        ({"artifactType": None}, "not of a form"),
        ({"config": {**EMPTY, "mediaType": "application/other"}}, "not of a form"),
        ({"layers": []}, "has one layer"),
        ({"layers": [EMPTY, EMPTY]}, "has one layer"),
        ({"mediaType": "application/vnd.oci.image.index.v1+json"}, "malformed"),
    ],
)
async def test_n29_n30_what_is_no_signature_manifest_of_the_image_is_refused(changes: dict[str, Any], why: str) -> None:
    made = await report(**changes)
    assert (made.is_success, made.code) == (False, "MANIFEST_INVALID")
    assert why in made.error_reason
    assert made.reference_digest is not None


async def test_n28_for_an_image_asked_for_by_digest_the_digest_still_binds() -> None:
    by_digest = Subject(REFERENCE.at_digest(TARGET.digest), TARGET.digest)
    assert (await report(asked=by_digest)).is_success
    moved = Subject(REFERENCE.at_digest(Digest.of(b"other")), Digest.of(b"other"))
    assert (await report(asked=moved)).code == "MANIFEST_INVALID"


async def test_a_refused_signature_says_which_check_failed_and_what_to_do() -> None:
    made = await report(verifier(policy=document(trustedIdentities=["x509.subject: C=US, ST=WA, O=Fabrikam"])))
    assert (made.is_success, made.code, made.undecided) == (False, "UNTRUSTED_IDENTITY", False)
    assert made.message == "Failed to validate the Notation signature"
    assert made.remediation
    assert made.extensions["checks"][-1] == {
        "type": "authenticity",
        "action": "enforce",
        "result": "failure",
        "code": "UNTRUSTED_IDENTITY",
        "reason": made.error_reason,
    }


async def test_n43_a_leaf_in_a_trust_store_anchors_nothing() -> None:
    made = await report(verifier(KeySource(read(leaf()))))
    assert made.code == "TRUST_STORE_EMPTY"
    assert (await report(verifier(KeySource(read(leaf(), root()))))).is_success


async def test_n53_keys_that_are_not_loaded_leave_the_signature_undecided() -> None:
    with pytest.raises(Undecided) as caught:
        await report(verifier(KeySource(None)))
    assert caught.value.code == "KEYS_UNAVAILABLE"


async def test_a_stranger_is_not_known_to_be_one_while_a_key_source_lacks_something() -> None:
    """He may be the one whose certificate could not be had. A signer who is there counts all the same."""
    lacking = KeySource(read(stranger()), missing=("certificate b: the vault does not answer",))
    with pytest.raises(Undecided, match="but keys lacks certificate b: the vault does not answer") as caught:
        await report(verifier(lacking))
    assert caught.value.code == "KEYS_UNAVAILABLE"
    with pytest.raises(Undecided):
        await report(verifier(KeySource((), missing=("certificate b",))))
    assert (await report(verifier(KeySource(read(root()), missing=("certificate b",))))).is_success
    assert (await report(verifier(KeySource(read(stranger()))))).code == "UNTRUSTED_ROOT"


async def test_what_is_missing_excuses_nothing_that_it_could_not_mend() -> None:
    """An identity that is not trusted stays so, whatever certificates there may be besides."""
    lacking = KeySource(read(root()), missing=("certificate b",))
    statement = document(trustedIdentities=["x509.subject: C=US, ST=WA, O=Nobody"])
    made = await report(verifier(lacking, policy=statement))
    assert (made.code, made.undecided) == ("UNTRUSTED_IDENTITY", False)


async def test_a_registry_out_of_reach_leaves_the_signature_undecided() -> None:
    absent = Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(b"gone"), 4, ARTIFACT_TYPE)
    with pytest.raises(Undecided):
        await verifier().verify(MemoryStore(), SUBJECT, absent, NOW)


async def test_n46_a_responder_out_of_reach_leaves_the_signature_undecided() -> None:
    with pytest.raises(Undecided) as caught:
        await report(verifier(network=Network()), leaf(CRL))
    assert caught.value.code == "REVOCATION_UNAVAILABLE"
    assert (await report(verifier(network=Network({CRL: b"junk"})), leaf(CRL))).code == "REVOCATION_UNKNOWN"


async def test_a_verified_time_stamp_is_among_the_facts() -> None:
    authority = pki.issue({"CN": "tsa"}, pki.timestamping(), issuer=root(), not_before=NOW - DAY, not_after=NOW + DAY)

    def stamp(signature: bytes) -> bytes:
        return issue_token(
            message_imprint=hashlib.sha256(signature).digest(),
            hash_algorithm="sha256",
            signer_key=authority.key,
            signer_certificate=authority.certificate,
            certificates=authority.chain,
            gen_time=NOW,
        )

    store = MemoryStore()
    envelope = signing.sign(TARGET, leaf(), NOW, signing.SignOptions(timestamp=stamp))
    store.put(envelope, "application/jose+json")
    chain = leaf().chain
    manifest = signing.signature_manifest(TARGET, envelope, "application/jose+json", chain, created=NOW)
    made = await verifier(policy=document(trustStores=["ca:s", "tsa:s"])).verify(
        store, SUBJECT, store.put(manifest), NOW + 100 * DAY
    )
    assert made.is_success
    assert made.extensions["timestamp"] == NOW.isoformat()


async def test_an_envelope_that_cannot_be_opened_shows_no_signer() -> None:
    store = MemoryStore()
    store.put(b"junk", "application/jose+json")
    manifest = signing.signature_manifest(TARGET, b"junk", "application/jose+json", (), created=NOW)
    made = await verifier().verify(store, SUBJECT, store.put(manifest), NOW)
    assert made.code == "ENVELOPE_MALFORMED"
    assert "SN" not in made.extensions


async def test_demanded_user_metadata_is_passed_on() -> None:
    assert (await report(verifier(user_metadata={"stage": "prod"}))).code == "METADATA_MISMATCH"


def test_preflight_waives_refuses_or_says_nothing() -> None:
    assert verifier().preflight(REFERENCE) is None
    other = verifier().preflight(Reference.parse("reg.example.com/team/other"))
    assert other is not None
    assert (other.is_success, other.code, other.artifact_type) == (False, "NO_TRUST_POLICY", ARTIFACT_TYPE)
    skip = document(signatureVerification={"level": "skip"}, trustStores=[], trustedIdentities=[])
    waived = verifier(policy=skip).preflight(REFERENCE)
    assert waived is not None
    assert waived.is_success
    assert waived.extensions == {"trustPolicy": "p"}


async def test_without_a_statement_even_a_good_signature_is_refused() -> None:
    elsewhere = Subject(Reference.parse("reg.example.com/elsewhere"), TARGET.digest, TARGET)
    assert (await report(asked=elsewhere)).code == "NO_TRUST_POLICY"


def test_trust_anchors_are_told_with_where_they_come_from_and_without_leaves() -> None:
    anchor = read(root())[0]
    signer = read(leaf())[0]
    stores = {
        (StoreType.CA, "company"): (KeySource((anchor, signer), "keys"), KeySource(None, "down")),
        (StoreType.TSA, "clocks"): (KeySource((), "none"),),
    }
    verifier = NotationVerifier(name="v", document=document(), trust_stores=stores, revocation=Driver(Network()))
    assert list(verifier.trust_anchors()) == [("keys", "ca:company", anchor)]
