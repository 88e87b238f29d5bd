"""The warning about short-lived certificates without time-stamps: when it comes, and when it had better not."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from provider.configuration.manifests import load
from provider.demo import pki
from tests.unit.configuration.samples import GOOD, good, read

NOW = datetime(2026, 11, 1, tzinfo=UTC)
VERIFIER = GOOD["Verifier"]
PATH = "Verifier/verifier-notation spec.parameters.trustPolicyDoc.trustPolicies[0].trustStores"
TSA_STORE = VERIFIER.replace('trustStores: ["ca:certs"]', 'trustStores: ["ca:certs", "tsa:stamps"]').replace(
    "      ca:\n", "      tsa:\n        stamps: [stamps]\n      ca:\n"
)


def provider(
    common_name: str, days: float = 9000, *, extensions: Any = None, name: str = "ratify-notation-inline-cert-0"
) -> str:
    made = pki.issue(
        {"C": "US", "O": "Microsoft Corporation", "CN": common_name},
        pki.authority() if extensions is None else extensions,
        issuer=None,
        not_before=NOW,
        not_after=NOW + timedelta(days=days),
    )
    return (
        "apiVersion: config.ratify.deislabs.io/v1beta1\nkind: KeyManagementProvider\n"
        f"metadata: {{name: {name}}}\nspec:\n  type: inline\n  parameters:\n    contentType: certificate\n"
        f"    value: {json.dumps(pki.pem(made.certificate).decode())}\n"
    )


def warnings(keys: str, *more: str, verifier: str = VERIFIER) -> list[str]:
    found = map(str, read(*good(KeyManagementProvider=keys, Verifier=verifier), *more).warnings)
    return [one for one in found if "no tsa trust store" in one]


PUBLIC = "Microsoft Identity Verification Root Certificate Authority 2020"
AUTHORITIES = [
    PUBLIC,
    "Microsoft Enterprise Identity Verification Root CA 2020",
    "Microsoft ID Verified CS EOC CA 02",
    "Microsoft ID Verified Code Signing PCA 2021",
    "Microsoft Enterprise ID Verified Policy AOC CA 01",
]


@pytest.mark.parametrize("authority", AUTHORITIES)
def test_an_authority_of_artifact_signing_without_a_tsa_store_is_told(authority: str) -> None:
    """It verifies for three days, and then nothing does."""
    (warning,) = warnings(provider(authority))
    assert PATH in warning
    assert f'signers under "CN={authority},O=Microsoft Corporation,C=US" have certificates for 72 hours' in warning
    assert "tsa trust store, and sign with time-stamps" in warning


def test_a_tsa_store_is_all_it_takes() -> None:
    assert warnings(provider(PUBLIC), provider(PUBLIC, name="stamps"), verifier=TSA_STORE) == []


@pytest.mark.parametrize(("days", "lifetime"), [(1, "24 hours"), (7, "168 hours"), (0.02, "1 hour")])
def test_a_self_signed_certificate_of_a_week_is_told(days: float, lifetime: str) -> None:
    (warning,) = warnings(provider("release", days, extensions=pki.code_signing()))
    assert f"have certificates for {lifetime}:" in warning


def test_longer_ones_and_other_authorities_are_not() -> None:
    """How long their signers are certified nobody can know; a guess would be read once and then no more."""
    assert warnings(provider("release", 8, extensions=pki.code_signing())) == []
    assert warnings(provider("root", 3)) == []
    assert warnings(provider("Not Microsoft ID Verified CA")) == []
    assert warnings(provider("Microsoft Root Certificate Authority 2011")) == []


@pytest.mark.parametrize(
    "level", ["level: audit", "level: permissive", "level: strict, override: {authenticTimestamp: log}"]
)
def test_a_policy_that_only_logs_the_time_is_not_told(level: str) -> None:
    """Expired certificates pass there anyhow."""
    lines = "".join(f"            {line}\n" for line in level.split(", "))
    softer = VERIFIER.replace("            level: strict\n", lines)
    assert softer != VERIFIER
    assert warnings(provider(PUBLIC), verifier=softer) == []


def test_signing_authorities_tell_the_time_themselves() -> None:
    """Signatures of the scheme notary.x509.signingAuthority carry no time-stamp and need none."""
    other = VERIFIER.replace("      ca:\n", "      signingAuthority:\n").replace("ca:certs", "signingAuthority:certs")
    assert warnings(provider(PUBLIC), verifier=other) == []


def test_each_statement_is_told_for_itself() -> None:
    two = VERIFIER.replace(
        "        - name: default\n",
        "        - name: other\n          registryScopes: [registry.example.com/a]\n"
        "          signatureVerification:\n            level: strict\n          trustStores: ['ca:certs']\n"
        "          trustedIdentities: ['*']\n        - name: default\n",
    )
    assert ["[0]" in one for one in warnings(provider(PUBLIC), verifier=two)] == [True, False]


def test_check_config_prints_it_and_stays_content(tmp_path: Path) -> None:
    for number, text in enumerate(good(KeyManagementProvider=provider(PUBLIC))):
        (tmp_path / f"{number}.yaml").write_text(text)
    assert load(tmp_path).warnings
    command = [sys.executable, "-m", "provider", "check-config", "--config", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "have certificates for 72 hours" in " ".join((done.stdout + done.stderr).split())
