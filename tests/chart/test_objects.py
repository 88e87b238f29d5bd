"""What holds for everything that the chart renders: no hooks but those of the Job, least rights, a hardened pod."""

from __future__ import annotations

import base64
import inspect
import re
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml
from cryptography import x509

from provider.cli.rotation_options import rotation_flags
from provider.cli.serve import serve
from provider.errors import ConfigurationError
from tests.chart.rendering import (
    CHART,
    COSIGN_KEY,
    EVERYTHING,
    GIVEN,
    IDENTITY,
    MINIMAL,
    ROOT,
    ROTATED,
    TIMESTAMP_ROOT,
    VAULT,
    Rendered,
    notes,
    template,
)
from tests.chart.structure import faults


@pytest.fixture(scope="module")
def everything() -> Rendered:
    return template(EVERYTHING)


@pytest.fixture(scope="module")
def minimal() -> Rendered:
    return template(MINIMAL)


def test_everything_hangs_together(everything: Rendered) -> None:
    assert faults(everything) == []


def test_rendering_depends_on_the_values_alone(everything: Rendered) -> None:
    """Nothing random and nothing looked up: Argo CD, Flux and `helm template` see what `helm install` does."""
    assert template(EVERYTHING).text == everything.text
    for path in (CHART / "templates").iterdir():
        code = re.sub(r"\{\{-? */\*.*?\*/ *-?\}\}", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"\b(lookup|genCA|genSelfSignedCert|randAlpha\w*|now)\b", code), path.name


def test_there_are_no_hooks(everything: Rendered) -> None:
    """Ratify's are made again with each upgrade, a time without verifiers, and stay behind after `helm delete`."""
    assert "helm.sh/hook" not in everything.text


def test_only_the_job_that_upgrades_definitions_is_a_hook_and_leaves_nothing() -> None:
    rendered = template(EVERYTHING, {"upgradeCRDs": {"enabled": True}})
    assert [fault for fault in faults(rendered) if "crds" not in fault] == []
    hooks = {
        (one["kind"], one["metadata"]["name"]): one["metadata"]["annotations"]
        for one in rendered
        if "helm.sh/hook" in one["metadata"].get("annotations", {})
    }
    assert set(hooks) == {
        ("ConfigMap", "ratify-admin-upgrade-crds"),
        ("ServiceAccount", "ratify-admin-upgrade-crds"),
        ("ClusterRole", "ratify-admin-upgrade-crds"),
        ("ClusterRoleBinding", "ratify-admin-upgrade-crds"),
        ("Job", "ratify-update-crds-hook"),
    }
    for (kind, _), found in hooks.items():
        assert found == {
            "helm.sh/hook": "pre-install,pre-upgrade",
            "helm.sh/hook-weight": "2" if kind == "Job" else "1",
            "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
        }


def test_the_job_brings_every_definition_of_the_chart_and_may_touch_no_other() -> None:
    files = sorted((CHART / "crds").glob("*.yaml"))
    rendered = template(MINIMAL, {"upgradeCRDs": {"enabled": True}})
    data = rendered.get("ConfigMap", "ratify-admin-upgrade-crds")["data"]
    assert {name: yaml.safe_load(text) for name, text in data.items()} == {
        path.name: yaml.safe_load(path.read_text()) for path in files
    }
    kinds = [
        *("certificatestores", "keymanagementproviders", "namespacedkeymanagementproviders", "namespacedpolicies"),
        *("namespacedstores", "namespacedverifiers", "policies", "stores", "verifiers"),
    ]
    names = [f"{kind}.config.ratify.deislabs.io" for kind in kinds]
    role = rendered.get("ClusterRole", "ratify-admin-upgrade-crds")
    assert sorted(role["rules"][0]["resourceNames"]) == names


# -- the pod -----------------------------------------------------------------------------------------------------------


def test_the_pod_may_nothing_that_it_does_not_need(everything: Rendered) -> None:
    (deployment,) = everything.of_kind("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    context = everything.container["securityContext"]
    assert context == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= {"secret", "configMap", "emptyDir"}
    for mount in everything.container["volumeMounts"]:
        assert mount.get("readOnly", False) or mount["name"] in ("tls", "tmp")
    (account,) = everything.of_kind("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is True  # the custom resources are watched


def test_a_certificate_of_the_providers_own_is_written_to_memory_and_a_given_one_is_mounted(minimal: Rendered) -> None:
    volumes = {}
    for name, rendered in (("own", minimal), ("given", template(GIVEN))):
        (deployment,) = rendered.of_kind("Deployment")
        volumes[name] = next(one for one in deployment["spec"]["template"]["spec"]["volumes"] if one["name"] == "tls")
    assert volumes["own"]["emptyDir"]["medium"] == "Memory"
    assert volumes["given"]["secret"]["secretName"] == "ratify-tls"


def test_pods_start_without_gatekeepers_secret_unless_it_is_required(minimal: Rendered) -> None:
    (deployment,) = minimal.of_kind("Deployment")
    volumes = {volume["name"]: volume for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["client-ca-cert"]["secret"]["secretName"] == "gatekeeper-webhook-server-cert"
    assert volumes["client-ca-cert"]["secret"]["optional"] is True
    assert [item["key"] for item in volumes["client-ca-cert"]["secret"]["items"]] == ["ca.crt"]  # never its key


def test_callers_are_demanded_nothing_when_that_is_switched_off() -> None:
    rendered = template(MINIMAL, {"provider": {"clientAuth": {"gatekeeperSecret": ""}}})
    assert not [argument for argument in rendered.args if "client-ca" in argument]
    assert "gatekeeper-webhook-server-cert" not in rendered.text


def test_several_pods_are_not_evicted_at_once_and_one_can_be() -> None:
    assert template(MINIMAL).of_kind("PodDisruptionBudget") == []
    (budget,) = template(MINIMAL, {"replicaCount": 3}).of_kind("PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert template(MINIMAL, {"autoscaling": {"enabled": True}}).of_kind("PodDisruptionBudget")


def test_an_autoscaler_and_the_chart_do_not_fight_over_the_number_of_pods() -> None:
    (deployment,) = template(MINIMAL, {"autoscaling": {"enabled": True}}).of_kind("Deployment")
    assert "replicas" not in deployment["spec"]


# -- rights ------------------------------------------------------------------------------------------------------------


def rights(rendered: Rendered) -> dict[str, set[tuple[str, str]]]:
    """What the provider may do: resource -> pairs of verb and name, "*" for any name."""
    found: dict[str, set[tuple[str, str]]] = {}
    for role in (*rendered.of_kind("ClusterRole"), *rendered.of_kind("Role")):
        for rule in role["rules"]:
            for resource in rule["resources"]:
                names = rule.get("resourceNames", ["*"])
                found.setdefault(resource, set()).update((verb, name) for verb in rule["verbs"] for name in names)
    return found


def test_a_given_certificate_takes_no_right_but_to_read_our_resources_and_write_their_status() -> None:
    found = rights(template(GIVEN))
    assert {resource.partition("/")[0] for resource in found} == {
        *("certificatestores", "keymanagementproviders", "namespacedkeymanagementproviders", "namespacedpolicies"),
        *("namespacedstores", "namespacedverifiers", "policies", "stores", "verifiers"),
    }
    for resource, pairs in found.items():
        verbs = {verb for verb, _ in pairs}
        assert verbs == ({"patch"} if resource.endswith("/status") else {"list", "watch"})


def test_rotation_reaches_one_secret_and_our_own_providers(minimal: Rendered) -> None:
    found = rights(minimal)
    assert {name for _, name in found["secrets"]} == {"ratify-tls"}
    assert {verb for verb, _ in found["secrets"]} == {"get", "update", "watch"}
    assert {name for _, name in found["providers"]} == {"ratify-provider", "ratify-mutation-provider"}
    (role,) = minimal.of_kind("Role")
    assert role["metadata"]["namespace"] == "gatekeeper-system"


def test_pull_secrets_are_read_only_where_values_say_so() -> None:
    values: dict[str, Any] = {
        "oras": {
            "authProviders": {
                "k8secretsEnabled": True,
                "k8secrets": [
                    {"secretName": "a", "namespace": "team"},
                    {"secretName": "b", "namespace": "team"},
                    {"secretName": "c"},
                    {"secretName": "d", "namespace": "all"},
                ],
            }
        },
        "rbac": {"pullSecretNamespaces": ["all"]},
    }
    roles = {
        one["metadata"]["namespace"]: one["rules"]
        for one in template(GIVEN, values).of_kind("Role")
        if one["metadata"]["name"] == "ratify-pull-secrets"
    }
    assert roles["team"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "b"], "verbs": ["get"]}
    ]
    whole = [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]},
    ]
    assert roles["gatekeeper-system"] == roles["all"] == whole
    assert set(roles) == {"team", "gatekeeper-system", "all"}


def test_pods_are_listed_only_where_values_say_so() -> None:
    warm = {"provider": {"prewarm": {"images": ["registry.example.com/app:v1"], "snapshot": True}}}
    assert "pods" not in rights(template(GIVEN, warm))
    assert rights(template(GIVEN, {"provider": {"prewarm": {"pods": True}}}))["pods"] == {("list", "*")}


def test_the_options_of_a_warm_start_are_those_that_serve_takes() -> None:
    values = {"prewarm": {"images": ["a.example/b:v1"], "pods": True, "snapshot": True, "waitSeconds": 20}}
    rendered = template(MINIMAL, {"provider": values})
    _, *arguments = rendered.args
    found = serve.make_context("serve", arguments).params
    assert (found["prewarm_pods"], found["prewarm_wait_seconds"]) == (True, 20.0)
    mounts = [mount["mountPath"] for mount in rendered.container["volumeMounts"]]
    assert str(found["prewarm_file"].parent) in mounts
    assert str(found["prewarm_snapshot"].parent) in mounts
    assert not [argument for argument in template(MINIMAL).args if "prewarm" in argument]


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_command_line_is_one_that_serve_takes(everything: Rendered) -> None:
    command, *arguments = everything.args
    assert command == "serve"
    context = serve.make_context("serve", arguments)
    flags = rotation_flags(**{name: context.params[name] for name in inspect.signature(rotation_flags).parameters})
    assert flags is not None
    settings = flags.settings("gatekeeper-system")
    assert settings.names[0] == "ratify.gatekeeper-system"
    providers = {one["metadata"]["name"]: one["spec"] for one in everything.of_kind("Provider")}
    assert set(settings.providers) == set(settings.restore) == set(providers)
    for name, spec in settings.restore.items():
        assert (spec.url, spec.timeout) == (providers[name]["url"], providers[name]["timeout"])
        assert urlsplit(spec.url).hostname in settings.names
    assert everything.find("Secret", settings.secret) is not None
    assert context.params["verify_deadline"] == pytest.approx(providers["ratify-provider"]["timeout"] - 0.2)
    assert context.params["mutate_deadline"] == pytest.approx(providers["ratify-mutation-provider"]["timeout"] - 0.2)
    assert context.params["result_ttl"] == 10.0
    assert context.params["trace_headers"] == ("x-trace",)


@pytest.mark.parametrize("values", [MINIMAL, GIVEN], ids=["minimal", "given"])
def test_the_command_line_of_less_is_one_that_serve_takes(values: dict[str, Any]) -> None:
    _, *arguments = template(values).args
    assert serve.make_context("serve", arguments).params["rotate_certs"] is (values is not GIVEN)


def test_without_metrics_no_port_is_open() -> None:
    rendered = template(MINIMAL, {"instrumentation": {"metricsEnabled": False}})
    _, *arguments = rendered.args
    assert "--no-metrics" in arguments
    assert not [argument for argument in arguments if "metrics-port" in argument]
    assert [port["name"] for port in rendered.container["ports"]] == ["https", "healthz"]
    serve.make_context("serve", arguments)


@pytest.mark.parametrize(("ttl", "seconds"), [("10s", "10"), ("500ms", "0.5"), ("1h30m", "5400"), ("1.5m", "90")])
def test_a_duration_of_go_becomes_seconds(ttl: str, seconds: str) -> None:
    rendered = template(MINIMAL, {"provider": {"cache": {"ttl": ttl}}})
    assert f"--result-ttl={seconds}" in rendered.args


@pytest.mark.parametrize(
    ("level", "ours"), [("trace", "debug"), ("WARN", "warning"), ("panic", "error"), ("info", "info")]
)
def test_a_level_of_ratifys_logger_becomes_the_nearest_of_ours(level: str, ours: str) -> None:
    assert f"--log-level={ours}" in template(MINIMAL, {"logger": {"level": level}}).args


# -- policy ------------------------------------------------------------------------------------------------------------

NOTATION: Final = "application/vnd.cncf.notary.signature"
COSIGN: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"


@pytest.mark.parametrize(
    ("values", "required"),
    [
        ({"notationCerts": [ROOT]}, {NOTATION: "any"}),
        ({"notationCerts": [ROOT], "cosignKeys": [COSIGN_KEY]}, {NOTATION: "any"}),
        ({"cosignKeys": [COSIGN_KEY]}, {COSIGN: "any"}),
        ({}, {NOTATION: "any"}),
        ({"notation": {"enabled": False}}, {}),
    ],
    ids=["notation", "both", "cosign alone", "nothing yet", "everything one's own"],
)
def test_what_is_verified_is_required(values: dict[str, Any], required: dict[str, str]) -> None:
    """Ratify requires no type: an SBOM alone, verified, admits an unsigned image (ratify#138)."""
    rules = template(ROTATED, values).get("Policy", "ratify-policy")["spec"]["parameters"]
    assert rules == {"artifactVerificationPolicies": {**required, "default": "any"}}


def test_cosign_is_not_asked_for_without_anything_to_verify_it_with(minimal: Rendered) -> None:
    """In Ratify it is, and denies images with a cosign signature beside a good one of Notation."""
    assert minimal.find("Verifier", "verifier-cosign") is None
    assert "cosignEnabled" not in minimal.get("Store", "store-oras")["spec"]["parameters"]


# -- the placeholder ---------------------------------------------------------------------------------------------------


def test_a_provider_that_rotates_starts_with_a_ca_that_nobody_can_sign_for(minimal: Rendered) -> None:
    bundles = {one["spec"]["caBundle"] for one in minimal.of_kind("Provider")}
    assert len(bundles) == 1
    certificate = x509.load_pem_x509_certificate(base64.b64decode(bundles.pop(), validate=True))
    assert certificate.subject.rfc4514_string() == "CN=placeholder that trusts nobody,O=Countersign"
    assert certificate.not_valid_after_utc.year == 2000  # so that the rotation drops it at once
    assert minimal.get("Secret", "ratify-tls").keys() == {
        "apiVersion",
        "kind",
        "metadata",
        "type",
    }  # the provider fills it


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_plain_installation_is_told_nothing_to_worry_about() -> None:
    told = notes(MINIMAL)
    assert "WARNING" not in told
    assert "Note:" not in told
    assert "ratify-provider and ratify-mutation-provider" in told
    assert "validatingWebhookTimeoutSeconds over 4 and mutatingWebhookTimeoutSeconds over 1" in told


@pytest.mark.parametrize(
    ("timeout", "warned"),
    [
        ({"validationTimeoutSeconds": 4, "mutationTimeoutSeconds": 1}, []),
        ({"validationTimeoutSeconds": 5}, ["validation"]),
        ({"mutationTimeoutSeconds": 2}, ["mutation"]),
        ({"validationTimeoutSeconds": 5, "mutationTimeoutSeconds": 2}, ["validation", "mutation"]),
    ],
)
def test_a_timeout_that_outlasts_gatekeepers_webhooks_is_warned_of(timeout: dict[str, int], warned: list[str]) -> None:
    """With Ratify's 5 and 2 s, the webhooks' own timeouts, a provider that hangs lets unsigned images in."""
    told = notes(MINIMAL, {"provider": {"timeout": timeout}})
    for name in ("validation", "mutation"):
        assert (f"WARNING: provider.timeout.{name}TimeoutSeconds is " in told) is (name in warned)


def test_a_mutation_that_is_off_is_not_warned_of() -> None:
    values = {"provider": {"enableMutation": False, "timeout": {"mutationTimeoutSeconds": 2}}}
    told = notes(MINIMAL, values)
    assert "WARNING" not in told
    assert "mutatingWebhookTimeoutSeconds" not in told


def test_an_installation_without_certificates_is_told_that_everything_is_refused() -> None:
    told = notes(ROTATED)
    assert "WARNING: No certificate was given" in told
    assert "every image is refused until there is a Verifier" in told


def test_a_gatekeeper_in_another_namespace_is_told_how_to_demand_its_certificate() -> None:
    told = notes(MINIMAL, namespace="countersign")
    assert "WARNING: Callers need no certificate" in told
    assert "kubectl get secret gatekeeper-webhook-server-cert -n gatekeeper-system" in told


def test_callers_without_certificates_are_told() -> None:
    assert "whoever reaches the Service" in notes(MINIMAL, {"provider": {"clientAuth": {"gatekeeperSecret": ""}}})


def test_a_certificate_that_no_policy_uses_is_told() -> None:
    values = {
        "notationCerts": [ROOT, TIMESTAMP_ROOT],
        "notation": {
            "trustPolicies": [
                {"registryScopes": ["*"], "trustedIdentities": ["*"], "trustStores": ["ca:notationCerts[0]"]}
            ]
        },
    }
    told = notes(ROTATED, values)
    assert "WARNING: notationCerts[1] is used by no trust policy" in told
    assert "notationCerts[0] is used by no" not in told
    assert "tsa:notationCerts[1]" in told


def test_ratifys_misspelt_level_is_told_to_have_no_effect() -> None:
    policy = {"registryScopes": ["*"], "trustedIdentities": ["*"], "verificatonLevel": "audit"}
    assert "verificatonLevel has no effect" in notes(MINIMAL, {"notation": {"trustPolicies": [policy]}})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {**IDENTITY, "azurekeyvault": VAULT},
        {"cosignKeys": [COSIGN_KEY]},
        {"vulnerabilityreport": {"enabled": True}},
        {"sbom": {"enabled": True}},
        {"dockerConfig": "{}"},
        {**IDENTITY, "oras": {"authProviders": {"azureWorkloadIdentityEnabled": True}}},
        {"oras": {"authProviders": {"azureManagedIdentityEnabled": True}}},
        {"oras": {"authProviders": {"k8secretsEnabled": True}}},
        {"oras": {"authProviders": {"awsEcrBasicEnabled": True}}},
        {"oras": {"authProviders": {"googleWorkloadIdentityEnabled": True}}},
        {"oras": {"authProviders": {"alibabacloudAcrBasicEnabled": True}}},
    ],
    ids=lambda values: (
        next(reversed(values), "nothing") if "oras" not in values else next(iter(values["oras"]["authProviders"]))
    ),
)
def test_what_this_version_refuses_is_told_and_nothing_else(values: dict[str, Any]) -> None:
    """When a type arrives in provider/configuration, its line in _notes.tpl goes."""
    try:
        template(MINIMAL, values).resources()
        refused = False
    except ConfigurationError as error:
        refused = any("is not supported by this version" in fault.message for fault in error.faults)
    assert ("This version does not support yet" in notes(MINIMAL, values)) == refused


def test_the_clean_up_of_the_article_is_told() -> None:
    assert "kubectl delete crd stores.config.ratify.deislabs.io verifiers.config.ratify.deislabs.io" in notes(MINIMAL)


# -- Kubernetes' own schemas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [MINIMAL, GIVEN, EVERYTHING], ids=["minimal", "given", "everything"])
def test_the_schemas_of_kubernetes_take_every_object(values: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate here: pip install it")
    for one in template(values, {"upgradeCRDs": {"enabled": True}}):
        if not one["apiVersion"].endswith(
            (".gatekeeper.sh/v1", ".gatekeeper.sh/v1beta1", "deislabs.io/v1beta1", ".coreos.com/v1")
        ):
            validate.validate(one, validate.latest_version(), strict=True)
