"""Artifact (Trusted) Signing without Azure: the service's roots inline, its three-day certificates long expired.

What such a signature rests on is its time-stamp. Registry and service are simulators; the rest is what `serve` runs.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509

from provider.assembly import Assembler
from provider.configuration.manifests import load
from provider.demo import pki, signing
from provider.executor import Executor, ExecutorSettings
from provider.oci import Descriptor
from provider.reports import Verdict
from tests.simulators.azure.artifact_signing import LIFETIME, PROFILE, SUBJECT, ArtifactSigning
from tests.simulators.registry import RegistrySimulator
from tests.simulators.timestamp_authority import TimestampAuthority

NOW = datetime.now(UTC)
SIGNED_AT = NOW - timedelta(days=40)
SERVICE = ArtifactSigning(NOW)
SIGNER = SERVICE.certify(SIGNED_AT)
COSE = "application/cose"
IDENTITY = "x509.subject: C=US, ST=WA, O=Contoso"


def documents(roots: bytes, stamps: bytes | None, *, identity: str = IDENTITY, verify: str = "always") -> str:
    """Manifests as the chart renders them for Trusted Signing; without `stamps`, without the tsa store."""
    group = "config.ratify.deislabs.io/v1beta1"
    stores: dict[str, Any] = {"ca": {"cert-0": ["signing"]}, **({"tsa": {"cert-1": ["stamps"]}} if stamps else {})}
    statement = {
        "name": "trusted-signing",
        "registryScopes": ["*"],
        "signatureVerification": {"level": "strict", "verifyTimestamp": verify},
        "trustStores": ["ca:cert-0", *(["tsa:cert-1"] if stamps else [])],
        "trustedIdentities": [identity],
    }

    def made(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec}

    def keys(name: str, pem: bytes) -> dict[str, Any]:
        parameters = {"contentType": "certificate", "value": pem.decode()}
        return made("KeyManagementProvider", name, {"type": "inline", "parameters": parameters})

    kind = "application/vnd.cncf.notary.signature"
    policy = {"type": "config-policy", "parameters": {"artifactVerificationPolicies": {kind: "any"}}}
    verifier = {
        "name": "notation",
        "artifactTypes": kind,
        "parameters": {
            "verificationCertStores": stores,
            "trustPolicyDoc": {"version": "1.0", "trustPolicies": [statement]},
        },
    }
    every = [
        made("Store", "store-oras", {"name": "oras", "parameters": {"useHttp": True}}),
        keys("signing", roots),
        *([keys("stamps", stamps)] if stamps else []),
        made("Verifier", "verifier-notation", verifier),
        made("Policy", "ratify-policy", policy),
    ]
    return "\n---\n".join(map(json.dumps, every))


@dataclass
class System:
    registry: RegistrySimulator
    executor: Executor
    assembler: Assembler
    folder: Path

    async def configure(self, **changes: Any) -> list[str]:
        """Use manifests of the service; their warnings."""
        given = {
            "roots": pki.pem(SERVICE.root.certificate),
            "stamps": pki.pem(SERVICE.timestamps.signer.root),
        } | changes
        (self.folder / "all.yaml").write_text(documents(**given))
        resources = load(self.folder)
        await self.assembler.apply(resources)
        return list(map(str, resources.warnings))

    async def verdict(self, signer: pki.CertifiedKey = SIGNER, at: datetime = SIGNED_AT, **how: Any) -> Verdict:
        """What is said of an image that was signed this way."""
        number = len(self.registry.lines)
        image = self.registry.push_image("app", tag=f"v{number}", content=b"%d" % number)
        self.attach(image, SERVICE.sign(image, signer, at, **how), signer)
        return (await self.executor.verify(f"{self.registry.host}/app:v{number}")).verdict

    def attach(self, image: Descriptor, envelope: bytes, signer: pki.CertifiedKey) -> None:
        self.registry.push_blob("app", envelope, COSE)
        manifest = signing.signature_manifest(image, envelope, COSE, signer.chain, created=NOW)
        self.registry.push_manifest("app", manifest)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    executor = Executor(ExecutorSettings(result_ttl_seconds=0))
    assembler = Assembler(executor.use)
    async with RegistrySimulator() as registry:
        yield System(registry, executor, assembler, tmp_path)
    await executor.aclose()
    await assembler.aclose()


async def test_a_certificate_of_three_days_long_expired_is_held_up_by_its_time_stamp(system: System) -> None:
    assert await system.configure() == []
    assert SIGNER.certificate.not_valid_after_utc < NOW - timedelta(days=30)
    verdict = await system.verdict()
    assert (verdict.is_success, verdict.code) == (True, "")
    facts = verdict.reports[0].extensions
    assert facts["timestamp"] == SIGNED_AT.replace(microsecond=0).isoformat()
    assert "CN=release" in facts["SN"]


async def test_what_the_simulated_service_signs_is_what_the_service_signs(system: System) -> None:
    """RSA-3072 and PS384 in COSE; three days; code signing beside key usages of its own."""
    assert SIGNER.certificate.not_valid_after_utc - SIGNER.certificate.not_valid_before_utc == LIFETIME
    usages = SIGNER.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert len(list(usages)) == 1 + len(PROFILE)
    assert getattr(SIGNER.key, "key_size", 0) == 3072
    image = system.registry.push_image("app", tag="v1")
    envelope = cbor2.loads(SERVICE.sign(image, SIGNER, SIGNED_AT))
    assert cbor2.loads(envelope.value[0])[1] == -38


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"without_timestamp": True}, "TIMESTAMP_MISSING"),
        ({"stamped": SIGNED_AT + LIFETIME}, "TIMESTAMP_OUTSIDE_VALIDITY"),
        ({"stamped": SIGNED_AT - LIFETIME}, "TIMESTAMP_OUTSIDE_VALIDITY"),
        ({"timestamps": TimestampAuthority.set_up()}, "TIMESTAMP_UNTRUSTED"),
        ({"message": b"another signature"}, "TIMESTAMP_INVALID"),
    ],
    ids=["none", "after the end", "before the beginning", "of a stranger", "of another signature"],
)
async def test_without_a_good_time_stamp_an_expired_certificate_signs_nothing(
    system: System, how: dict[str, Any], code: str
) -> None:
    """Whoever gets hold of an old key cannot date his signature back."""
    await system.configure()
    verdict = await system.verdict(**how)
    assert (verdict.is_success, verdict.code) == (False, code)


async def test_a_policy_without_a_tsa_store_is_warned_of_and_refuses_after_three_days(system: System) -> None:
    """The slip of the article's second command: a second ca store where the tsa store belongs."""
    (warning,) = await system.configure(stamps=None)
    assert "lists no tsa trust store" in warning
    assert "for 72 hours" in warning
    fresh = SERVICE.certify(NOW - timedelta(hours=1))
    assert (await system.verdict(fresh, NOW - timedelta(hours=1))).is_success
    assert (await system.verdict()).code == "CERTIFICATE_EXPIRED"


async def test_time_stamps_may_be_asked_for_after_the_end_only(system: System) -> None:
    await system.configure(verify="afterCertExpiry")
    fresh = SERVICE.certify(NOW - timedelta(hours=1))
    assert (await system.verdict(fresh, NOW - timedelta(hours=1), without_timestamp=True)).is_success
    assert (await system.verdict()).is_success
    assert (await system.verdict(without_timestamp=True)).code == "TIMESTAMP_MISSING"


async def test_each_day_has_another_certificate_and_one_identity(system: System) -> None:
    """The subject is what lasts; keys and certificates are the service's affair."""
    await system.configure()
    for day in (10, 20, 30):
        at = NOW - timedelta(days=day)
        assert (await system.verdict(SERVICE.certify(at), at)).is_success


@pytest.mark.parametrize(
    ("subject", "identity", "code"),
    [
        (SUBJECT, "x509.subject: C=US, ST=WA, O=Contoso, CN=release", ""),
        (SUBJECT, "x509.subject: C=US, ST=WA, O=Contoso, CN=other", "UNTRUSTED_IDENTITY"),
        ({**SUBJECT, "O": "Contoso Ltd"}, IDENTITY, "UNTRUSTED_IDENTITY"),
        ({"C": "DE", "ST": "WA", "O": "Contoso"}, IDENTITY, "UNTRUSTED_IDENTITY"),
    ],
)
async def test_other_customers_of_the_service_are_under_the_same_root_and_not_trusted(
    system: System, subject: dict[str, str], identity: str, code: str
) -> None:
    await system.configure(identity=identity)
    verdict = await system.verdict(SERVICE.certify(SIGNED_AT, subject))
    assert (verdict.is_success, verdict.code) == (not code, code)


async def test_n43_a_service_of_the_same_names_is_a_stranger(system: System) -> None:
    """With the same subject and authorities of the same names, under another key."""
    await system.configure()
    false = ArtifactSigning(NOW)
    assert (await system.verdict(false.certify(SIGNED_AT))).code == "UNTRUSTED_ROOT"


async def test_one_bundle_may_hold_both_roots(system: System) -> None:
    """The public root of the service is that of its time-stamps too."""
    both = pki.pem(SERVICE.root.certificate) + pki.pem(SERVICE.timestamps.signer.root)
    await system.configure(roots=both, stamps=both)
    assert (await system.verdict()).is_success


async def test_an_unsigned_image_stays_unsigned(system: System) -> None:
    await system.configure()
    system.registry.push_image("app", tag="bare", content=b"bare")
    verdict = (await system.executor.verify(f"{system.registry.host}/app:bare")).verdict
    assert (verdict.is_success, verdict.code) == (False, "UNSIGNED")
