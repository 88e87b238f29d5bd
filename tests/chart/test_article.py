"""The article's installations, its commands run by a shell as they are printed, less its slips.

The golden files hold what was rendered and read by a person; what changes with each version (chart label, image tag)
is left out of them. After a change that is meant: `COUNTERSIGN_WRITE_GOLDEN=1 pytest tests/chart/test_article.py`, and
read the difference.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.chart import rendering
from tests.chart.rendering import CERTIFICATES, CHART, Rendered, at
from tests.chart.structure import faults
from tests.interop import peers

GOLDEN: Final = Path(__file__).parent / "golden"

# `helm install ratify ratify/ratify OPTION...` becomes `helm template ratify charts/countersign OPTION...`.
PRELUDE: Final = """\
set -eu
helm() { "$HELM" template "$2" "$CHART" "${@:4}"; }
"""
VARIABLES: Final = {
    "RATIFY_NAMESPACE": "gatekeeper-system",
    "RATIFY_SA_NAME": "ratify-admin",
    "CHART_VER": "1.15.0",
    "REPO_URI": "contoso.azurecr.io/shop/cart",
    "SUBJECT": r"C=US\,ST=WA\,O=Contoso\,CN=release",  # in --set, helm separates at commas without a backslash
    "IDENTITY_CLIENT_ID": "11111111-2222-3333-4444-555555555555",
    "AKV_TENANT_ID": "66666666-7777-8888-9999-000000000000",
    "AKV_NAME": "contoso-vault",
    "CERT_NAME": "contoso-signing",
    "ROOT_CERT_FILE": str(CERTIFICATES / "signer-root.pem"),
    "TSA_ROOT_CERT_FILE": str(CERTIFICATES / "timestamp-root.pem"),
}

_HEAD: Final = """\
helm install ratify ratify/ratify --atomic --namespace $RATIFY_NAMESPACE --create-namespace --version $CHART_VER \
--set provider.enableMutation=false --set featureFlags.RATIFY_CERT_ROTATION=true \
--set azureWorkloadIdentity.clientId=$IDENTITY_CLIENT_ID \
--set oras.authProviders.azureWorkloadIdentityEnabled=true """
_VAULT: Final = """\
--set azurekeyvault.enabled=true \
--set azurekeyvault.vaultURI="https://$AKV_NAME.vault.azure.net" \
--set azurekeyvault.certificates[0].name="$CERT_NAME" \
--set azurekeyvault.tenantId="$AKV_TENANT_ID" \
--set notation.trustPolicies[0].registryScopes[0]="$REPO_URI" \
--set notation.trustPolicies[0].trustStores[0]="ca:azurekeyvault" \
--set notation.trustPolicies[0].trustedIdentities[0]="x509.subject: $SUBJECT" """
_FILE: Final = """\
--set-file notationCerts[0]="$ROOT_CERT_FILE" \
--set notation.trustPolicies[0].registryScopes[0]="$REPO_URI" \
--set notation.trustPolicies[0].trustStores[0]="ca:notationCerts[0]" \
--set notation.trustPolicies[0].trustedIdentities[0]="x509.subject: $SUBJECT" """

INSTALLATIONS: Final = {
    "key-vault": _HEAD + _VAULT,
    # The table of the article; its command repeats ca:azurekeyvault instead.
    "key-vault-and-timestamps": _HEAD
    + _VAULT
    + '--set-file notationCerts[0]="$TSA_ROOT_CERT_FILE" '
    + '--set notation.trustPolicies[0].trustStores[1]="tsa:notationCerts[0]"',
    "trusted-signing": _HEAD
    + _FILE
    + '--set-file notationCerts[1]="$TSA_ROOT_CERT_FILE" '
    + '--set notation.trustPolicies[0].trustStores[1]="tsa:notationCerts[1]"',
    "no-key-vault": _HEAD + _FILE,
}


def install(command: str) -> Rendered:
    done = subprocess.run(
        ["bash", "-c", PRELUDE + command],
        env={**VARIABLES, "HELM": str(peers.find("helm")), "CHART": str(CHART), "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=peers.CALL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return rendering.parse(done.stdout.decode())


@pytest.fixture(scope="module", params=INSTALLATIONS)
def installation(request: pytest.FixtureRequest) -> tuple[str, Rendered]:
    return request.param, install(INSTALLATIONS[request.param])


def lasting(one: dict[str, Any]) -> dict[str, Any]:
    """An object without what each version changes."""
    for label in ("helm.sh/chart", "app.kubernetes.io/version"):
        one["metadata"]["labels"].pop(label)
    if one["kind"] == "Deployment":
        (container,) = one["spec"]["template"]["spec"]["containers"]
        container["image"] = container["image"].partition(":")[0]
    return one


class _Readable(yaml.SafeDumper):
    """Texts of several lines as such."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def test_what_the_article_installs_is_what_was_reviewed(installation: tuple[str, Rendered]) -> None:
    name, rendered = installation
    objects = [lasting(one) for one in rendering.parse(rendered.text)]
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("COUNTERSIGN_WRITE_GOLDEN"):
        path.write_text(yaml.dump_all(objects, Dumper=_Readable, sort_keys=False, width=120))
    assert objects == list(yaml.safe_load_all(path.read_text()))


def test_what_the_article_installs_hangs_together(installation: tuple[str, Rendered]) -> None:
    assert faults(installation[1]) == []


def test_what_the_article_installs_is_a_good_configuration(installation: tuple[str, Rendered]) -> None:
    resources = installation[1].resources()
    assert len(resources.stores) == len(resources.verifiers) == len(resources.policies) == 1
    assert resources.warnings == ()


def test_what_the_article_installs_passes_the_check_that_ci_runs(installation: tuple[str, Rendered]) -> None:
    """`helm template ... | countersign check-config -`: objects that are not ours are passed over in silence."""
    done = subprocess.run(
        [sys.executable, "-m", "provider", "check-config", "-"],
        input=installation[1].text,
        cwd=CHART.parents[1],
        capture_output=True,
        text=True,
        timeout=peers.CALL_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ours = [one for one in installation[1] if one["apiVersion"].startswith("config.ratify.deislabs.io/")]
    told = [f"{one['kind']}/{one['metadata']['name']}: " for one in ours]
    *lines, last = done.stdout.splitlines()
    assert sorted(line[: line.index(": ") + 2] for line in lines) == sorted(told)
    assert last == "good"


def test_nothing_of_a_release_is_a_hook_that_helm_delete_would_leave_behind(installation: tuple[str, Rendered]) -> None:
    assert "helm.sh/hook" not in installation[1].text


def test_an_add_on_cluster_gets_no_object_of_gatekeepers_but_the_provider(installation: tuple[str, Rendered]) -> None:
    foreign = {
        (one["kind"], one["metadata"]["name"]) for one in installation[1] if "gatekeeper.sh" in one["apiVersion"]
    }
    assert foreign == {("Provider", "ratify-provider")}


def test_the_federated_credential_of_the_article_fits(installation: tuple[str, Rendered]) -> None:
    """Its subject is system:serviceaccount:gatekeeper-system:ratify-admin."""
    account = installation[1].get("ServiceAccount", VARIABLES["RATIFY_SA_NAME"])
    assert account["metadata"]["namespace"] == VARIABLES["RATIFY_NAMESPACE"]
    assert account["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    pod = at(installation[1].get("Deployment", "ratify"), "spec.template")
    assert pod["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    assert pod["spec"]["serviceAccountName"] == VARIABLES["RATIFY_SA_NAME"]


def test_a_signature_of_the_articles_identity_is_what_passes() -> None:
    rendered = install(INSTALLATIONS["trusted-signing"])
    verifier = rendered.get("Verifier", "verifier-notation")["spec"]
    assert verifier == {
        "name": "notation",
        "artifactTypes": "application/vnd.cncf.notary.signature",
        "parameters": {
            "verificationCertStores": {
                "ca": {"cert-0": ["ratify-notation-inline-cert-0"]},
                "tsa": {"cert-1": ["ratify-notation-inline-cert-1"]},
            },
            "trustPolicyDoc": {
                "version": "1.0",
                "trustPolicies": [
                    {
                        "name": "trustPolicy-0",
                        "registryScopes": ["contoso.azurecr.io/shop/cart"],
                        "signatureVerification": {"level": "strict"},
                        "trustStores": ["ca:cert-0", "tsa:cert-1"],
                        "trustedIdentities": ["x509.subject: C=US,ST=WA,O=Contoso,CN=release"],
                    }
                ],
            },
        },
    }
    assert rendered.get("Policy", "ratify-policy")["spec"] == {
        "type": "config-policy",
        "parameters": {
            "artifactVerificationPolicies": {"application/vnd.cncf.notary.signature": "any", "default": "any"}
        },
    }


VAULT_VALUES: Final = {
    **rendering.ROTATED,
    "azureWorkloadIdentity": {"clientId": VARIABLES["IDENTITY_CLIENT_ID"]},
    "azurekeyvault": {
        "enabled": True,
        "vaultURI": "https://contoso-vault.vault.azure.net",
        "tenantId": VARIABLES["AKV_TENANT_ID"],
        "certificates": [{"name": "contoso-signing"}],
    },
    "notationCerts": [rendering.TIMESTAMP_ROOT],
    "notation": {
        "trustPolicies": [
            {
                "registryScopes": ["contoso.azurecr.io/shop/cart"],
                "trustStores": ["ca:azurekeyvault", "ca:azurekeyvault"],
                "trustedIdentities": ["*"],
            }
        ]
    },
}


def test_the_articles_own_slip_installs_and_is_told() -> None:
    """`ca:azurekeyvault` for `tsa:notationCerts[0]`: time-stamps would be missed when a certificate expires."""
    told = rendering.notes(VAULT_VALUES)
    assert "WARNING: notationCerts[0] is used by no trust policy" in told
    assert "WARNING: notation.trustPolicies[0].trustStores[1] repeats ca:azurekeyvault" in told
    assert "tsa:notationCerts[0]" in told


def test_a_comma_without_backslash_is_refused_instead_of_cutting_the_identity_short() -> None:
    command = INSTALLATIONS["no-key-vault"].replace("$SUBJECT", "C=US,ST=WA,O=Contoso")
    with pytest.raises(AssertionError, match=r"additional properties '(O|ST)', '(O|ST)' not allowed"):
        install(command)
