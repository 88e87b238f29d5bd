"""What is trusted, said with the custom resources of Ratify's own end-to-end tests, and changed with kubectl.

What does not belong here: every rule of the trust policy (tests/unit/notation, tests/interop).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.e2e.chart import RELEASE
from tests.e2e.cluster import NAMESPACE, Cluster, Json, bytes_of
from tests.e2e.countersign import PROVIDER, PROVIDERS, Countersign
from tests.e2e.images import GROUP, Shop, resource
from tests.e2e.outside import make_serving_files
from tests.e2e.pods import assert_admitted, assert_denied, run
from tests.e2e.processes import wait_for
from tests.e2e.rig import Rig
from tests.interop import authorities, peers

KEYS = "ratify-notation-inline-cert-0"  # what the chart makes of notationCerts[0]
LIFE_SECONDS = 12  # of a certificate that is to expire: long enough to sign with it and have that seen
Change = Callable[[Json], None]


def with_verifier(provider: Countersign, change: Change, *more: Json) -> list[Json]:
    """The chart's resources with another Verifier, and more resources."""
    changed = copy.deepcopy(provider.baseline)
    (verifier,) = (each for each in changed if each["kind"] == "Verifier")
    change(verifier["spec"]["parameters"])
    return [*changed, *more]


def statement_of(parameters: Json) -> Any:
    """The one statement of a Verifier's trust policy."""
    return parameters["trustPolicyDoc"]["trustPolicies"][0]


def test_a_verifier_that_is_deleted_lets_nobody_in_until_it_is_back(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    assert_admitted(run(denying, "with", shop.signed()), "with")
    denying.delete(f"verifiers.{GROUP.partition('/')[0]}", "verifier-notation")
    wait_for("nobody to be admitted", lambda: not run(denying, "without", shop.signed()).ok)
    image = shop.signed()
    assert_denied(run(denying, "still-without", image), image)
    provider.write(provider.baseline)
    wait_for("the Verifier to be used again", lambda: run(denying, "again", shop.signed()).ok)


def test_a_leaf_certificate_is_no_trust_anchor_and_its_root_is(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    leaf = shop.signer.certificate.read_text()
    value = {"type": "inline", "parameters": {"contentType": "certificate", "value": leaf}}
    kept = [each for each in provider.baseline if each["kind"] != "KeyManagementProvider"]
    provider.write([*kept, resource("KeyManagementProvider", KEYS, value)])
    wait_for("the leaf to be taken for what it is", lambda: not run(denying, "leaf", shop.signed()).ok)
    image = shop.signed()
    assert_denied(run(denying, "still-leaf", image), image)
    provider.write(provider.baseline)
    wait_for("the root to be used again", lambda: run(denying, "root", shop.signed()).ok)


def test_a_certificate_store_of_old_still_holds_certificates_and_its_successor_goes_before_it(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    """A CertificateStore in the provider's namespace; then a KeyManagementProvider of the same name with other keys."""
    parameters = {"value": shop.stranger.root.read_text()}
    store = resource("CertificateStore", "keys", {"provider": "inline", "parameters": parameters}, NAMESPACE)

    def change(parameters: Json) -> None:
        parameters["verificationCertStores"] = {"ca": {"certs": ["keys"]}}
        statement_of(parameters).update(trustStores=["ca:certs"], trustedIdentities=["*"])

    provider.use(with_verifier(provider, change, store))
    assert_admitted(run(denying, "strangers", shop.untrusted()), "strangers")
    company = shop.signed()
    assert_denied(run(denying, "companys", company), company, code="UNTRUSTED_ROOT")
    successor = shop.key_resource("KeyManagementProvider", "keys", shop.signer)
    provider.use(with_verifier(provider, change, store, successor))
    assert_admitted(run(denying, "companys-now", shop.signed()), "companys-now")
    stranger = shop.untrusted()
    assert_denied(run(denying, "strangers-no-more", stranger), stranger, code="UNTRUSTED_ROOT")


def test_a_time_stamp_outlives_the_certificate_if_its_authority_is_trusted(
    denying: Cluster, shop: Shop, provider: Countersign, tmp_path: Path
) -> None:
    root = authorities.root_authority(tmp_path, "tsa-root").issue("tsa", "time_stamping")
    company = shop.signer.issuer
    assert company is not None
    with authorities.timestamp_authority(root) as tsa:
        end = (datetime.now(UTC) + timedelta(seconds=LIFE_SECONDS)).replace(microsecond=0)
        brief = company.issue(f"brief-{end:%H%M%S}", not_after=end)
        stamped, bare = shop.image(), shop.image()
        shop.sign(stamped, brief, timestamp=tsa)
        shop.sign(bare, brief)
    keys = shop.key_resource("KeyManagementProvider", "tsa", root)

    def without(parameters: Json) -> None:
        statement_of(parameters)["trustedIdentities"] = ["*"]

    def change(parameters: Json) -> None:
        without(parameters)
        parameters["verificationCertStores"].setdefault("tsa", {})["stamps"] = ["tsa"]
        statement_of(parameters)["trustStores"].append("tsa:stamps")

    peers.wait_until(end.timestamp() + 1)
    provider.use(with_verifier(provider, without, keys))
    assert_denied(run(denying, "no-tsa", stamped), stamped)
    provider.use(with_verifier(provider, change, keys))
    (again,) = shop.tags(stamped, 1)
    assert_admitted(run(denying, "stamped", again), "stamped")
    assert_denied(run(denying, "bare", bare), bare)


def test_a_revoked_certificate_is_refused_and_admitted_where_revocation_is_only_logged(
    denying: Cluster, shop: Shop, provider: Countersign, tmp_path: Path
) -> None:
    authority = authorities.root_authority(tmp_path, "revoking")

    def crl(method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        return 200, "application/pkix-crl", authority.crl()

    with authorities.http_service(crl) as url:
        extensions = f"crlDistributionPoints = URI:{url}/crl"
        good, bad = (authority.issue(name, extensions=extensions) for name in ("good", "revoked"))
        authority.revoke(bad)
        keys = shop.key_resource("KeyManagementProvider", "revoking", good)

        def strict(parameters: Json) -> None:
            parameters["verificationCertStores"] = {"ca": {"certs": ["revoking"]}}
            parameters["revocation"] = {"allowPrivateAddresses": True, "allowedHosts": ["127.0.0.1"]}
            statement_of(parameters).update(trustStores=["ca:certs"], trustedIdentities=["*"])

        def audit(parameters: Json) -> None:
            strict(parameters)
            statement_of(parameters)["signatureVerification"] = {"level": "audit"}

        image, revoked = shop.image(good), shop.image(bad)
        provider.use(with_verifier(provider, strict, keys))
        assert_admitted(run(denying, "good", image), "good")
        assert_denied(run(denying, "revoked", revoked), revoked, code="CERTIFICATE_REVOKED")
        provider.use(with_verifier(provider, audit, keys))
        (again,) = shop.tags(revoked, 1)
        assert_admitted(run(denying, "revoked", again), "revoked")


@pytest.fixture
def given(rig: Rig, provider: Countersign, tmp_path: Path) -> Any:
    """The release upgraded to a serving certificate in its values, which nobody rotates any more."""
    make_serving_files(tmp_path, f"{RELEASE}.{NAMESPACE}")
    files = (("crt", "tls.crt"), ("key", "tls.key"), ("cabundle", "tls-ca.crt"))
    values = (f"provider.tls.{key}=@{tmp_path / file}" for key, file in files)
    provider.change("featureFlags.RATIFY_CERT_ROTATION=false", *values)
    yield
    provider.change()


def test_a_serving_certificate_that_is_given_is_used_as_it_is(given: None, denying: Cluster, shop: Shop) -> None:
    """Pods of before, which renewed the certificate themselves, do not write over it while they are replaced."""
    known = denying.get(PROVIDERS, PROVIDER)
    assert known
    (authority,) = x509.load_pem_x509_certificates(bytes_of(known["spec"]["caBundle"]))
    assert authority.subject.rfc4514_string() == "CN=countersign-ca"
    assert_admitted(run(denying, "signed", shop.signed()), "signed")
    bad = shop.unsigned()
    assert_denied(run(denying, "unsigned", bad), bad, code="UNSIGNED")
