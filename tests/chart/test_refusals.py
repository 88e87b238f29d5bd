"""What helm refuses to install: references that lead nowhere, things half given, slips of the pen.

Each message says which value it is about and what to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.chart.rendering import (
    COSIGN_KEY,
    IDENTITY,
    MINIMAL,
    ROOT,
    ROTATED,
    TIMESTAMP_ROOT,
    VAULT,
    Refusal,
    lint,
    template,
)

NOT_ROTATED: Final = {"featureFlags": {"RATIFY_CERT_ROTATION": False}}
KEY: Final = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"


def trusting(*trust_stores: str, **policy: Any) -> dict[str, Any]:
    """Values with one statement."""
    statement = {"registryScopes": ["r.io/a"], "trustedIdentities": ["*"], "trustStores": list(trust_stores), **policy}
    return {"notation": {"trustPolicies": [statement]}}


def tls(**values: Any) -> dict[str, Any]:
    """Values of a given certificate."""
    return {**NOT_ROTATED, "provider": {"tls": values}}


# title -> (values over the least that installs, what the message says)
FAULTS: Final[Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]]] = {
    "an unknown trust store": (
        trusting("ca:unknownCert"),
        (
            "notation.trustPolicies[0].trustStores[0]",
            "Unknown trust store reference: unknownCert",
            "notationCerts[<index>]",
        ),
    ),
    "an unknown kind of trust store": (
        trusting("CA:notationCerts[0]"),
        (
            "notation.trustPolicies[0].trustStores[0]: Unknown certificate type: CA",
            "Write ca:, tsa: or signingAuthority:",
        ),
    ),
    "a trust store without its kind": (trusting("ca"), ("Unknown certificate type: ca",)),
    "a certificate that was not given": (
        trusting("ca:notationCerts[0]", "tsa:notationCerts[1]"),
        (
            "trustStores[1] refers to notationCerts[1], which is out of range (1 given",
            "--set-file 'notationCerts[1]=FILE'",
        ),
    ),
    "two numbers": (trusting("ca:notationCerts[0][1]"), ("Unknown trust store reference: notationCerts[0][1]",)),
    "a key vault that is not enabled": (
        trusting("ca:AzureKeyVault"),
        ("refers to azurekeyvault, which is not enabled", "azurekeyvault.enabled=true"),
    ),
    "a key vault without certificates": (
        {
            **IDENTITY,
            "azurekeyvault": {**VAULT, "certificates": [], "keys": [{"name": "k"}]},
            **trusting("ca:azurekeyvault"),
        },
        ("refers to azurekeyvault, which names no certificate", "azurekeyvault.certificates[0].name"),
    ),
    "a key vault without a vault": (
        {**IDENTITY, "azurekeyvault": {**VAULT, "vaultURI": None}},
        ("azurekeyvault.vaultURI", "https://<name>.vault.azure.net"),
    ),
    "a key vault without a tenant": (
        {**IDENTITY, "azurekeyvault": {**VAULT, "tenantId": ""}},
        ("set azurekeyvault.tenantId", "az account show"),
    ),
    "a key vault without an identity": (
        {"azurekeyvault": VAULT},
        ("set azureWorkloadIdentity.clientId", "az identity show"),
    ),
    "a key vault that names nothing": (
        {**IDENTITY, "azurekeyvault": {**VAULT, "certificates": []}},
        ("azurekeyvault is enabled and names nothing", "azurekeyvault.certificates[0].name"),
    ),
    "a workload identity without an identity": (
        {"oras": {"authProviders": {"azureWorkloadIdentityEnabled": True}}},
        ("azureWorkloadIdentityEnabled needs an identity", "set azureWorkloadIdentity.clientId"),
    ),
    "no certificate for the provider": (
        NOT_ROTATED,
        (
            "You must provide a TLS certificate for ratify.gatekeeper-system or enable RATIFY_CERT_ROTATION",
            "featureFlags.RATIFY_CERT_ROTATION=true",
        ),
    ),
    "a certificate without its key": (
        tls(crt=ROOT, cabundle=ROOT),
        ("provider.tls.crt and provider.tls.key are a pair",),
    ),
    "a certificate without its CA": (tls(crt=ROOT, key=KEY), ("provider.tls.cabundle is empty", "--set-file")),
    "a key that is none": (tls(crt=ROOT, key=ROOT, cabundle=ROOT), ("must be PEM",)),
    "a CA that is none": (
        tls(crt=ROOT, key=KEY, cabundle="bm90aGluZw=="),
        ("provider.tls.cabundle is neither PEM nor base64",),
    ),
    "another's Secret without its CA": (tls(existingSecret="theirs"), ("provider.tls.cabundle is empty",)),
    "another's Secret beside a certificate": (
        tls(existingSecret="theirs", crt=ROOT, key=KEY, cabundle=ROOT),
        ("provider.tls.existingSecret stands beside provider.tls.crt",),
    ),
    "another's Secret beside rotation": (
        {"provider": {"tls": {"existingSecret": "theirs", "cabundle": ROOT}}},
        ("provider.tls.existingSecret stands beside featureFlags.RATIFY_CERT_ROTATION",),
    ),
    "callers demanded without a Secret": (
        {"provider": {"clientAuth": {"required": True, "gatekeeperSecret": ""}}},
        ("provider.clientAuth.gatekeeperSecret",),
    ),
    "a certificate that is none": (
        {"notationCerts": [ROOT, "root.crt"]},
        ("notationCerts[1] is no PEM certificate", "--set-file notationCerts[1]=FILE"),
    ),
    "old and new certificates": ({"notationCert": ROOT}, ("notationCert is deprecated", "notationCerts[0]")),
    "no trust policy": ({"notation": {"trustPolicies": []}}, ("notation.trustPolicies is empty",)),
    "nobody who may sign": (
        {"notation": {"trustPolicies": [{"registryScopes": ["r.io/a"]}]}},
        ("notation.trustPolicies[0].trustedIdentities is empty", "x509.subject: C=.., ST=.., O=.."),
    ),
    "two statements of one name": (
        {
            "notation": {
                "trustPolicies": [
                    {"name": "a", "registryScopes": ["r.io/a"], "trustedIdentities": ["*"]},
                    {"name": "a", "registryScopes": ["r.io/b"], "trustedIdentities": ["*"]},
                ]
            }
        },
        ('notation.trustPolicies[1].name is "a", as in notation.trustPolicies[0]',),
    ),
    "two statements for one repository": (
        {
            "notation": {
                "trustPolicies": [
                    {"registryScopes": ["r.io/a"], "trustedIdentities": ["*"]},
                    {"registryScopes": ["r.io/b", "r.io/a"], "trustedIdentities": ["*"]},
                ]
            }
        },
        ('notation.trustPolicies[1].registryScopes has "r.io/a", as notation.trustPolicies[0] has',),
    ),
    "skip with something to verify": (
        trusting("ca:notationCerts[0]", level="skip"),
        ("notation.trustPolicies[0] has level skip, which verifies nothing",),
    ),
    "skip for everything": (
        {"notation": {"trustPolicies": [{"level": "skip", "registryScopes": ["*"]}]}},
        ("level skip for every repository",),
    ),
    "a second statement without certificates": (
        {
            "notationCerts": [],
            "notation": {
                "trustPolicies": [
                    {"registryScopes": ["r.io/a"], "trustedIdentities": ["*"]},
                    {"level": "skip", "registryScopes": ["r.io/b"]},
                ]
            },
        },
        ("notation.trustPolicies[0].trustStores is empty and there is no certificate for it",),
    ),
    "cosign keys beside identities": (
        {"cosignKeys": [COSIGN_KEY], "cosign": {"keyless": {"certificateIdentity": "a", "certificateOIDCIssuer": "b"}}},
        ("cosign keys and cosign.keyless stand side by side",),
    ),
    "an identity without an issuer": (
        {"cosign": {"keyless": {"certificateIdentity": "a"}}},
        ("cosign.keyless needs who signed and who vouches",),
    ),
    "an identity twice": (
        {
            "cosign": {
                "keyless": {
                    "certificateIdentity": "a",
                    "certificateIdentityRegExp": "b",
                    "certificateOIDCIssuer": "c",
                }
            }
        },
        ("a text and a regular expression for the same thing",),
    ),
    "old and new cosign keys": (
        {"cosignKeys": [COSIGN_KEY], "cosign": {"key": COSIGN_KEY}},
        ("cosign.key is deprecated", "cosignKeys[0]"),
    ),
    "credentials given twice": (
        {"dockerConfig": "{}", "registryCredsSecret": "s"},
        ("dockerConfig stands beside registryCredsSecret",),
    ),
    "half of amazon": (
        {"oras": {"authProviders": {"awsEcrBasicEnabled": True, "awsApiOverride": {"enabled": True, "region": "r"}}}},
        ("awsApiOverride is enabled and incomplete",),
    ),
    "a Rego policy": (
        {"policy": {"useRego": True}},
        ("policy.useRego is not supported", "ConstraintTemplate"),
    ),
    "an answer after Gatekeeper has gone": (
        {"provider": {"deadline": {"verifySeconds": 5}}},
        ("provider.deadline.verifySeconds is 5, not less than Gatekeeper's time of 4 s",),
    ),
    "a monitor of metrics that nobody announces": (
        {"serviceMonitor": {"enabled": True}, "instrumentation": {"metricsEnabled": False}},
        ("serviceMonitor.enabled needs instrumentation.metricsEnabled=true",),
    ),
    "alerts on metrics that nobody announces": (
        {"prometheusRule": {"enabled": True}, "instrumentation": {"metricsEnabled": False}},
        ("prometheusRule.enabled needs instrumentation.metricsEnabled=true",),
    ),
    "an alert left out that there is not": (
        {"prometheusRule": {"enabled": True, "disabled": ["CountersignSlowly"]}},
        ("prometheusRule.disabled names CountersignSlowly, which is no alert of this chart", "CountersignSlow"),
    ),
    "an image of kubectl without a tag": (
        {"upgradeCRDs": {"enabled": True}, "image": {"crdRepository": "registry.example.com/kubectl"}},
        ("set image.crdTag",),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_the_installation_and_says_what_to_write(fault: str) -> None:
    values, texts = FAULTS[fault]
    with pytest.raises(Refusal) as refusal:
        template(MINIMAL, values)
    for text in texts:
        assert text in str(refusal.value)
    assert "nil pointer" not in str(refusal.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_lint_survives_every_fault(fault: str) -> None:
    """In `helm lint` a template goes on after `fail`; what follows must not fall over what was refused."""
    lint(MINIMAL, FAULTS[fault][0])


# values that the schema refuses -> what its message has
SLIPS: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "an unknown value": ({"replicas": 2}, "'replicas' not allowed"),
    "a value of a section": ({"azurekeyvault": {"vaultUri": "https://v"}}, "'vaultUri' not allowed"),
    "a value of a statement": (trusting("ca:notationCerts[0]", registryScope=["*"]), "'registryScope' not allowed"),
    "the other misspelling of level": (trusting(verificationLevel="audit"), "'verificationLevel' not allowed"),
    "a level that is none": (trusting(level="strickt"), "/level"),
    "an override of integrity": (trusting(override={"integrity": "log"}), "'integrity' not allowed"),
    "a skipped expiry": (trusting(override={"expiry": "skip"}), "/override/expiry"),
    "a time-stamp rule that is none": (trusting(verifyTimestamp="never"), "/verifyTimestamp"),
    "a pattern for repositories": (trusting(registryScopes=["r.io/*"]), "/registryScopes/0"),
    "a repository with a tag": (trusting(registryScopes=["r.io/a:v1"]), "/registryScopes/0"),
    "a registry alone": (trusting(registryScopes=["r.io"]), "/registryScopes/0"),
    "an identity without its prefix": (trusting(trustedIdentities=["CN=a"]), "/trustedIdentities/0"),
    "a statement of what follows a comma": ({"ST": "WA", "O": "x"}, "not allowed"),
    "a text for a switch": ({"provider": {"enableMutation": "false"}}, "/provider/enableMutation"),
    "a text for a flag": ({"featureFlags": {"RATIFY_CERT_ROTATION": "true"}}, "/RATIFY_CERT_ROTATION"),
    "a flag that is none": ({"featureFlags": {"CERT_ROTATION": True}}, "'CERT_ROTATION' not allowed"),
    "a time without its unit": ({"provider": {"cache": {"ttl": "10"}}}, "/provider/cache/ttl"),
    "a vault of another place": ({"azurekeyvault": {"vaultURI": "https://v.example.com"}}, "/azurekeyvault/vaultURI"),
    "a vault's tenant by its name": ({"azurekeyvault": {"tenantId": "contoso"}}, "/azurekeyvault/tenantId"),
    "a name that no vault has": (
        {"azurekeyvault": {"certificates": [{"name": "my_cert"}]}},
        "/azurekeyvault/certificates/0/name",
    ),
    "a version that no vault has": (
        {"azurekeyvault": {"certificates": [{"name": "c", "version": "latest"}]}},
        "/azurekeyvault/certificates/0/version",
    ),
    "an identity by its name": (
        {"azureWorkloadIdentity": {"clientId": "my-identity"}},
        "/azureWorkloadIdentity/clientId",
    ),
    "a vault over http": ({"azurekeyvault": {"vaultURI": "http://v"}}, "/azurekeyvault/vaultURI"),
    "a port that is none": ({"healthPort": 0}, "/healthPort"),
    "a format of logs that is none": ({"logger": {"formatter": "xml"}}, "/logger/formatter"),
    "a level of logs that is none": ({"logger": {"level": "loud"}}, "/logger/level"),
    "no pods": ({"replicaCount": 0}, "/replicaCount"),
    "a section taken away": ({"provider": None}, "missing property 'provider'"),
    "a rule that is none": ({"policy": {"artifactVerificationPolicies": {"default": "some"}}}, "/default"),
    "a registry with a scheme": ({"oras": {"registries": [{"host": "https://r.io"}]}}, "/oras/registries/0/host"),
    "a setting of a registry": (
        {"oras": {"registries": [{"host": "r.io", "insecure": True}]}},
        "'insecure' not allowed",
    ),
    "a digest that is none": ({"image": {"digest": "sha256:1"}}, "/image/digest"),
    "what happens to a failed mutation": ({"provider": {"mutation": {"failurePolicy": "fail"}}}, "/failurePolicy"),
    "a hidden certificate": ({"notationCerts": [{"value": TIMESTAMP_ROOT}]}, "/notationCerts/0"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_refused_by_the_schema(slip: str) -> None:
    values, text = SLIPS[slip]
    with pytest.raises(Refusal, match="specifications of the schema") as refusal:
        template(MINIMAL, values)
    assert text in str(refusal.value)


def test_two_statements_without_trust_stores_use_all_certificates_but_those_for_time_stamps() -> None:
    """Ratify renders `ca:certs` there and defines no such store."""
    rendered = template(
        ROTATED,
        {
            "notationCerts": [ROOT, TIMESTAMP_ROOT],
            "notation": {
                "trustPolicies": [
                    {"registryScopes": ["r.io/a"], "trustedIdentities": ["*"]},
                    {
                        "registryScopes": ["r.io/b"],
                        "trustedIdentities": ["*"],
                        "trustStores": ["ca:notationCerts[0]", "tsa:notationcerts1"],
                    },
                    {"registryScopes": ["r.io/c"], "trustedIdentities": ["*"], "trustStores": None},
                ]
            },
        },
    )
    parameters = rendered.get("Verifier", "verifier-notation")["spec"]["parameters"]
    first, second = "ratify-notation-inline-cert-0", "ratify-notation-inline-cert-1"
    assert parameters["verificationCertStores"] == {
        "ca": {"certs": [first], "cert-0": [first]},
        "tsa": {"cert-1": [second]},
    }
    stores = [statement["trustStores"] for statement in parameters["trustPolicyDoc"]["trustPolicies"]]
    assert stores == [["ca:certs"], ["ca:cert-0", "tsa:cert-1"], ["ca:certs"]]
    rendered.resources()


def test_a_statement_may_skip_named_repositories() -> None:
    rendered = template(MINIMAL, {"notation": {"trustPolicies": [{"level": "skip", "registryScopes": ["r.io/a"]}]}})
    parameters = rendered.get("Verifier", "verifier-notation")["spec"]["parameters"]
    assert parameters == {
        "trustPolicyDoc": {
            "version": "1.0",
            "trustPolicies": [
                {"name": "trustPolicy-0", "registryScopes": ["r.io/a"], "signatureVerification": {"level": "skip"}}
            ],
        }
    }
    rendered.resources()


@pytest.mark.parametrize("values", [(), (MINIMAL,)], ids=["the defaults", "the least that installs"])
def test_helm_lint_finds_nothing(values: tuple[Mapping[str, Any], ...]) -> None:
    assert "0 chart(s) failed" in lint(*values)
