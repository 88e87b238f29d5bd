"""Whether rendered objects are what the API server takes, and whether they hang together.

No package that the tests are pinned to has the Kubernetes schemas, so the shapes that the chart uses are written down
here: a key that is not among them is a slip of a template. Where `kubernetes_validate` is installed
(test_objects.py), its schemas are asked too.

What does not belong here: our own custom resources, which provider.configuration reads.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509

from tests.chart.rendering import Rendered

# kind -> (API version, whether it is in a namespace)
KINDS: Final[Mapping[str, tuple[str, bool]]] = {
    "Assign": ("mutations.gatekeeper.sh/v1", False),
    "ClusterRole": ("rbac.authorization.k8s.io/v1", False),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io/v1", False),
    "ConfigMap": ("v1", True),
    "Deployment": ("apps/v1", True),
    "HorizontalPodAutoscaler": ("autoscaling/v2", True),
    "Job": ("batch/v1", True),
    "KeyManagementProvider": ("config.ratify.deislabs.io/v1beta1", False),
    "NetworkPolicy": ("networking.k8s.io/v1", True),
    "PodDisruptionBudget": ("policy/v1", True),
    "PrometheusRule": ("monitoring.coreos.com/v1", True),
    "Policy": ("config.ratify.deislabs.io/v1beta1", False),
    "Provider": ("externaldata.gatekeeper.sh/v1beta1", False),
    "Role": ("rbac.authorization.k8s.io/v1", True),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", True),
    "Secret": ("v1", True),
    "Service": ("v1", True),
    "ServiceAccount": ("v1", True),
    "ServiceMonitor": ("monitoring.coreos.com/v1", True),
    "Store": ("config.ratify.deislabs.io/v1beta1", False),
    "Verifier": ("config.ratify.deislabs.io/v1beta1", False),
}

_TOP: Final = {
    "ConfigMap": {"data"},
    "Secret": {"data", "type"},
    "ServiceAccount": {"automountServiceAccountToken"},
    "ClusterRole": {"rules"},
    "Role": {"rules"},
    "ClusterRoleBinding": {"roleRef", "subjects"},
    "RoleBinding": {"roleRef", "subjects"},
}
_SPEC: Final = {
    "Assign": {"applyTo", "match", "location", "parameters"},
    "Deployment": {"replicas", "strategy", "selector", "template"},
    "HorizontalPodAutoscaler": {"scaleTargetRef", "minReplicas", "maxReplicas", "metrics", "behavior"},
    "Job": {"backoffLimit", "activeDeadlineSeconds", "template"},
    "KeyManagementProvider": {"type", "refreshInterval", "parameters"},
    "NetworkPolicy": {"podSelector", "policyTypes", "ingress", "egress"},
    "PodDisruptionBudget": {"maxUnavailable", "minAvailable", "selector"},
    "PrometheusRule": {"groups"},
    "Policy": {"type", "parameters"},
    "Provider": {"url", "timeout", "caBundle"},
    "Service": {"type", "ports", "selector"},
    "ServiceMonitor": {"selector", "namespaceSelector", "endpoints"},
    "Store": {"name", "parameters"},
    "Verifier": {"name", "artifactTypes", "parameters"},
}
_POD: Final = {
    *(
        "affinity",
        "automountServiceAccountToken",
        "containers",
        "enableServiceLinks",
        "imagePullSecrets",
        "nodeSelector",
        "priorityClassName",
    ),
    *("restartPolicy", "securityContext", "serviceAccountName", "terminationGracePeriodSeconds", "tolerations"),
    *("topologySpreadConstraints", "volumes"),
}
_CONTAINER: Final = {
    *("args", "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports", "readinessProbe", "resources"),
    *("securityContext", "startupProbe", "volumeMounts"),
}
_PROBE: Final = {
    *("failureThreshold", "httpGet", "initialDelaySeconds", "periodSeconds", "successThreshold", "timeoutSeconds"),
    "terminationGracePeriodSeconds",
}
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_KEY: Final = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_LOCATION: Final = re.compile(r"spec(\.[A-Za-z]+)*\.(containers|initContainers|ephemeralContainers)\[name:\*\]\.image")


def faults(rendered: Rendered) -> list[str]:
    """Everything that is wrong with a rendering, in words; empty when nothing is."""
    return [
        f"{one['kind']}/{one['metadata']['name']}: {fault}" for one in rendered for fault in _object(one, rendered)
    ] + list(_twice(rendered))


def _twice(rendered: Rendered) -> Iterator[str]:
    seen = set()
    for one in rendered:
        identity = (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        if identity in seen:
            yield f"{identity} is rendered twice"
        seen.add(identity)


def _object(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    kind, metadata = one["kind"], one["metadata"]
    if kind not in KINDS:
        yield "is of a kind that nobody expects"
        return
    version, namespaced = KINDS[kind]
    if one["apiVersion"] != version:
        yield f"has apiVersion {one['apiVersion']}"
    yield from _keys(one, {"apiVersion", "kind", "metadata", *_TOP.get(kind, {"spec"})}, "")
    yield from _keys(one.get("spec", {}), _SPEC.get(kind, set()), "spec")
    yield from _keys(metadata, {"name", "namespace", "labels", "annotations"}, "metadata")
    if not _NAME.fullmatch(metadata["name"]):
        yield "has a name that Kubernetes refuses"
    if ("namespace" in metadata) != namespaced:
        yield "has no namespace" if namespaced else "has a namespace"
    yield from _texts(metadata.get("annotations", {}), "metadata.annotations")
    yield from _labels(metadata.get("labels", {}), "metadata.labels")
    yield from _nulls(one, "")
    check = _CHECKS.get(kind)
    if check is not None:
        yield from check(one, rendered)


def _keys(node: Mapping[str, Any], known: set[str], path: str) -> Iterator[str]:
    for key in node:
        if key not in known:
            yield f"{path}.{key} is not a known key"


def _texts(node: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, text in node.items():
        if not isinstance(text, str):
            yield f"{path}[{key}] is {text!r}, no text"


def _labels(node: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, text in node.items():
        if not _LABEL_KEY.fullmatch(key) or not isinstance(text, str) or not _LABEL_VALUE.fullmatch(text):
            yield f"{path}[{key}] is {text!r}, no label"


def _nulls(node: Any, path: str) -> Iterator[str]:
    """A null is a value that a template meant to write and had not."""
    if node is None:
        yield f"{path} is null"
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _nulls(child, f"{path}.{key}")


def _workload(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    template = one["spec"]["template"]
    pod = template["spec"]
    namespace = one["metadata"]["namespace"]
    yield from _keys(pod, _POD, "pod")
    yield from _labels(template["metadata"]["labels"], "pod labels")
    yield from _texts(template["metadata"].get("annotations", {}), "pod annotations")
    if one["kind"] == "Deployment" and not _matches(one["spec"]["selector"]["matchLabels"], template):
        yield "selects other pods than its own"
    volumes = [volume["name"] for volume in pod["volumes"]]
    if len(volumes) != len(set(volumes)):
        yield "has two volumes of one name"
    mounted = set()
    for container in pod["containers"]:
        yield from _keys(container, _CONTAINER, "container")
        yield from _container(container)
        mounted |= {mount["name"] for mount in container["volumeMounts"]}
    if mounted != set(volumes):
        yield f"mounts {sorted(mounted)} and has the volumes {sorted(volumes)}"
    for volume in pod["volumes"]:
        yield from _source(volume, namespace, rendered)
    account = pod["serviceAccountName"]
    if rendered.find("ServiceAccount", account, namespace) is None and account == "ratify-admin":
        yield f"runs as {account}, which is not rendered"


def _container(container: dict[str, Any]) -> Iterator[str]:
    for arguments in (container["args"], [entry["name"] for entry in container.get("env", [])]):
        for text in arguments:
            if not isinstance(text, str) or not text:
                yield f"has the argument or variable {text!r}"
    ports = {port["name"] for port in container.get("ports", [])}
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    if len(paths) != len(set(paths)):
        yield "mounts two volumes at one place"
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(name)
        if probe is not None:
            yield from _keys(probe, _PROBE, name)
            if probe["httpGet"]["port"] not in ports:
                yield f"{name} asks a port that is not there"


def _source(volume: dict[str, Any], namespace: str, rendered: Rendered) -> Iterator[str]:
    """A Secret or ConfigMap that is the release's own must be rendered."""
    for field, kind, name in (("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name")):
        if field in volume:
            wanted = volume[field][name]
            if wanted.startswith("ratify") and rendered.find(kind, wanted, namespace) is None:
                yield f"mounts {kind}/{wanted}, which is not rendered"


def _matches(selector: Mapping[str, str], template: dict[str, Any]) -> bool:
    return bool(selector) and selector.items() <= template["metadata"]["labels"].items()


def _pods(rendered: Rendered) -> dict[str, Any]:
    (deployment,) = rendered.of_kind("Deployment")
    return dict(deployment["spec"]["template"])


def _service(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    if not _matches(one["spec"]["selector"], _pods(rendered)):
        yield "selects nothing"
    ports = {port["name"] for port in rendered.container["ports"]}
    for port in one["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"leads to the port {port['targetPort']}, which is not there"


def _selecting(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    selector = one["spec"].get("selector") or one["spec"]["podSelector"]
    if not _matches(selector["matchLabels"], _pods(rendered)):
        yield "selects nothing"


def _service_monitor(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    (service,) = rendered.of_kind("Service")
    if not one["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items():
        yield "selects no Service"
    ports = {port["name"] for port in service["spec"]["ports"]}
    for endpoint in one["spec"]["endpoints"]:
        if endpoint["port"] not in ports:
            yield f"reads the port {endpoint['port']}, which the Service has not"


def _binding(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    role = one["roleRef"]
    if rendered.find(role["kind"], role["name"], one["metadata"].get("namespace")) is None:
        yield f"binds {role['kind']}/{role['name']}, which is not rendered"
    for subject in one["subjects"]:
        if subject["kind"] != "ServiceAccount" or not subject["namespace"]:
            yield f"has the subject {subject}"


def _rules(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    for rule in one["rules"]:
        yield from _keys(rule, {"apiGroups", "resources", "resourceNames", "verbs"}, "rule")
        if "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]):
            yield "gives everything"


def _provider(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    """What Gatekeeper's own webhook refuses, and what its calls would fail by."""
    spec = one["spec"]
    url = urlsplit(spec["url"])
    (service,) = rendered.of_kind("Service")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}"
    if (url.scheme, url.hostname) != ("https", host):
        yield f"leads to {spec['url']}, not to https://{host}"
    if url.port not in {port["port"] for port in service["spec"]["ports"]}:
        yield "leads to a port that the Service has not"
    if not isinstance(spec["timeout"], int) or spec["timeout"] < 1:
        yield f"has the timeout {spec['timeout']!r}"
    x509.load_pem_x509_certificate(base64.b64decode(spec["caBundle"], validate=True))


def _assign(one: dict[str, Any], rendered: Rendered) -> Iterator[str]:
    spec = one["spec"]
    if not _LOCATION.fullmatch(spec["location"]):
        yield f"mutates {spec['location']}"
    data = spec["parameters"]["assign"]["externalData"]
    if rendered.find("Provider", data["provider"]) is None:
        yield f"asks the Provider {data['provider']}, which is not rendered"
    applied = {(group, kind) for entry in spec["applyTo"] for group in entry["groups"] for kind in entry["kinds"]}
    matched = {(g, kind) for entry in spec["match"]["kinds"] for g in entry["apiGroups"] for kind in entry["kinds"]}
    if applied != matched:
        yield f"applies to {applied} and matches {matched}"


_CHECKS: Final = {
    "Assign": _assign,
    "ClusterRole": _rules,
    "ClusterRoleBinding": _binding,
    "Deployment": _workload,
    "Job": _workload,
    "NetworkPolicy": _selecting,
    "PodDisruptionBudget": _selecting,
    "Provider": _provider,
    "Role": _rules,
    "RoleBinding": _binding,
    "Service": _service,
    "ServiceMonitor": _service_monitor,
}
