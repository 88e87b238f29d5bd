"""The custom resources of a cluster: what decides on images follows them.

The API server is a simulator on loopback; the client, the assembly and the executor are the real ones. The last test is
`countersign serve --cluster` as a process of its own.
"""

from __future__ import annotations

import asyncio
import copy
import json
import textwrap
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs

from provider.configuration.cluster import connect
from provider.configuration.resources import GROUP, KINDS
from provider.demo import pki
from provider.errors import ConfigurationError, UsageError
from tests.integration.replica import (
    ABSENT,
    BAD_LEVEL,
    IMAGE,
    QUICK,
    UNWATCHED,
    bare,
    events,
    replica,
    stranger,
    watched,
)
from tests.integration.test_admission import MANIFESTS, push_signature
from tests.integration.test_cli import Serving, free_ports, start
from tests.integration.test_tls import until
from tests.simulators.gatekeeper import PKI, Gatekeeper
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.listener import Fault, body, hang, status
from tests.simulators.registry import RegistrySimulator
from tests.unit.configuration.objects import Object, one, tenant

# -- what decides follows the cluster ---------------------------------------------------------------------------------


async def test_what_is_applied_decides_at_once_and_what_is_kept_of_before_is_never_served(
    server: KubernetesSimulator,
) -> None:
    """The verdict on an image is kept for ten seconds. Another root, and the next answer is by that root."""
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        assert await running.ask() == "admitted"
        assert running.executor.remembered(IMAGE) is not None
        for applied, code in ((stranger(), "UNTRUSTED_ROOT"), (bare(one("KeyManagementProvider")), "admitted")):
            before = len(running.sets)
            server.apply(applied)
            await until(lambda before=before: len(running.sets) > before)
            assert running.executor.remembered(IMAGE) is None
            assert await running.ask() == code


async def test_a_deleted_key_provider_denies_at_once(server: KubernetesSimulator) -> None:
    """And the Verifier's status says what it lacks. A new one admits again."""
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        assert await running.ask() == "admitted"
        server.delete("keymanagementproviders", "ratify-notation-inline-cert-0")
        await until(lambda: not running.sets[-1].key_providers)
        assert await running.ask() == "RESOURCE_UNUSABLE"
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is False)
        told = server.status("verifiers", "verifier-notation")
        assert told["error"].startswith("spec.parameters.verificationCertStores.ca.certs[0]: there is no KeyManagement")
        server.apply(bare(one("KeyManagementProvider")))
        await until(lambda: bool(running.sets[-1].key_providers))
        assert await running.ask() == "admitted"
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is True)
        assert "error" not in server.status("verifiers", "verifier-notation")


@pytest.mark.parametrize(
    ("plural", "name", "code"),
    [
        ("stores", "store-oras", "NOT_READY"),
        ("verifiers", "verifier-notation", "NOT_READY"),
        ("policies", "ratify-policy", "NOT_READY"),
    ],
)
async def test_whatever_is_deleted_decides_no_more(
    server: KubernetesSimulator, plural: str, name: str, code: str
) -> None:
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        assert await running.ask() == "admitted"
        server.delete(plural, name)
        await until(lambda: not any(name in label for label in running.labels()))
        assert await running.ask() == code


async def test_n65_a_broken_update_keeps_the_old_one_and_its_status_says_why(server: KubernetesSimulator) -> None:
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        server.apply(bare(one("Verifier", BAD_LEVEL)))
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is False)
        assert await running.ask() == "admitted"
        assert len(running.sets) == 1, "and nothing was emptied for it"
        told = server.status("verifiers", "verifier-notation")
        assert told["observedGeneration"] == 2
        assert "trustPolicies[0].signatureVerification.level" in told["error"]
        assert told["brieferror"].startswith("level: ")
        assert len(told["brieferror"]) <= 100
        assert any("signatureVerification.level" in report for report in running.reports)
        before = len(running.reports)
        server.apply(bare(one("Verifier")))
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is True)
        assert len(running.reports) == before


async def test_after_a_start_a_broken_object_denies_and_a_good_one_admits(server: KubernetesSimulator) -> None:
    """What was good before the start is not known; the newest version is what there is."""
    server.apply(bare(one("KeyManagementProvider", ("@ROOT@", "@TRUNCATED@"))))
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        assert await running.ask() == "RESOURCE_UNUSABLE"
        server.apply(bare(one("KeyManagementProvider")))
        await until(lambda: not running.unusable())
        assert await running.ask() == "admitted"


async def test_a_tenants_resources_decide_for_its_namespace(server: KubernetesSimulator) -> None:
    """Each component by itself, and never the cluster's in the place of a broken one of the tenant's."""
    permissive = tenant(one("Verifier", ("[ratify-notation-inline-cert-0]", "[team-a/own]")))
    own = tenant(stranger() | {"metadata": {"name": "own"}})
    server.apply(bare(permissive), own)
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        assert await running.ask() == "admitted"
        assert await running.ask(f"[team-a]{IMAGE}") == "UNTRUSTED_ROOT"
        assert await running.ask(f"[team-b]{IMAGE}") == "admitted"
        server.delete("namespacedkeymanagementproviders", "own", "team-a")
        await until(lambda: len(running.sets[-1].key_providers) == 1)
        assert await running.ask(f"[team-a]{IMAGE}") == "RESOURCE_UNUSABLE"
        server.delete("namespacedverifiers", "verifier-notation", "team-a")
        await until(lambda: len(running.sets[-1].verifiers) == 1)
        assert await running.ask(f"[team-a]{IMAGE}") == "admitted"
        server.apply(bare(tenant(one("Verifier", BAD_LEVEL))))
        await until(lambda: bool(running.unusable()))
        assert await running.ask(f"[team-a]{IMAGE}") == "RESOURCE_UNUSABLE"
        assert await running.ask() == "admitted"


async def test_a_tenant_gets_at_nothing_that_is_the_providers_own(server: KubernetesSimulator) -> None:
    """A file of the pod, its Docker credentials, an address inside the cluster: each denies and is told."""
    layout_store = tenant(server.object("stores", "store-oras"))
    docker = tenant(one("Store", ("cacheEnabled: true", "authProvider: {name: dockerConfig}")), "team-b")
    inside = tenant(
        one("Verifier", ("    trustPolicyDoc:", "    revocation: {allowPrivateAddresses: true}\n    trustPolicyDoc:"))
    )
    for value in (docker, inside):
        value["metadata"] = {key: value["metadata"][key] for key in ("name", "namespace")}
    layout_store["metadata"] = {"name": "files", "namespace": "team-c"}
    server.apply(layout_store, docker, inside)
    async with replica(server) as running:
        await until(lambda: len(running.sets) > 0 and len(running.unusable()) == 3)
        for namespace in ("team-a", "team-b", "team-c"):
            assert await running.ask(f"[{namespace}]{IMAGE}") == "RESOURCE_UNUSABLE"
        assert await running.ask() == "admitted"
        await until(lambda: "error" in server.status("namespacedstores", "files", "team-c"))
        assert "a file of the provider's own" in server.status("namespacedstores", "files", "team-c")["error"]


async def test_nothing_is_given_out_before_every_kind_was_listed(server: KubernetesSimulator) -> None:
    """A tenant's stricter Verifier may be what is still missing."""
    server.spoil("list", "namespacedverifiers", hang())
    async with replica(server) as running:
        await until(lambda: server.watches == len(KINDS) - 1)
        await asyncio.sleep(0.05)
        assert running.sets == []
        assert await running.ask() == "NOT_READY"


async def test_labels_and_status_change_nothing(server: KubernetesSimulator) -> None:
    """Every write of a status comes back as an event; none may empty a cache."""
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        await until(lambda: server.status("stores", "store-oras").get("issuccess") is True)
        labelled = copy.deepcopy(server.object("stores", "store-oras"))
        labelled["metadata"]["labels"] = {"a": "b"}
        server.apply(labelled)
        server.apply(stranger())
        await until(lambda: len(running.sets) > 1)
        assert len(running.sets) == 2


async def test_objects_that_come_together_are_taken_together(server: KubernetesSimulator) -> None:
    async with replica(server, settings=replace(QUICK, settle=0.05, settle_at_most=1.0)) as running:
        await until(lambda: bool(running.sets))
        for number in range(20):
            spare = bare(one("KeyManagementProvider"))
            spare["metadata"]["name"] = f"spare-{number}"
            server.apply(spare)
        await until(lambda: len(running.sets[-1].key_providers) == 21)
        assert len(running.sets) <= 3


async def test_changes_without_an_end_are_taken_all_the_same(server: KubernetesSimulator) -> None:
    """A controller that writes an object again and again keeps nobody's change out."""
    settings = replace(QUICK, settle=0.02, settle_at_most=0.1)
    async with replica(server, settings=settings) as running:
        await until(lambda: bool(running.sets))
        server.apply(stranger())

        async def write() -> None:
            for number in range(10_000):
                server.apply(bare(one("Store", ("ttl: 10", f"ttl: {number}"))))
                await asyncio.sleep(0.005)

        writing = asyncio.create_task(write())
        try:
            await until(lambda: len(running.sets) > 2)
        finally:
            writing.cancel()


async def test_nothing_is_left_running_at_the_end(server: KubernetesSimulator) -> None:
    before = asyncio.all_tasks()
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        await watched(server)
    await until(lambda: not server.watches)
    assert {task for task in asyncio.all_tasks() - before if "provider" in repr(task.get_coro())} == set()


# -- kinds that are not installed -------------------------------------------------------------------------------------


async def test_a_kind_that_is_not_installed_has_no_objects_until_it_is(server: KubernetesSimulator) -> None:
    """Somebody keeps Ratify's older definitions, without those of namespaces: the rest decides."""
    server.missing = {"namespacedverifiers", "certificatestores"}
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: bool(running.sets))
            assert await running.ask(f"[team-a]{IMAGE}") == "admitted"
            server.missing = set()
            server.apply(bare(tenant(one("Verifier", BAD_LEVEL))))
            await until(lambda: bool(running.unusable()))
            assert await running.ask(f"[team-a]{IMAGE}") == "RESOURCE_UNUSABLE"
    assert {kind for kind, _ in events(logs, ABSENT)} == {"NamespacedVerifier", "CertificateStore"}


async def test_before_any_definition_is_installed_nothing_decides(server: KubernetesSimulator) -> None:
    server.missing = {entry.plural for entry in KINDS.values()}
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: any("lacks a Store and a Verifier and a Policy" in line for line in running.reports))
            assert len(events(logs, ABSENT)) == len(KINDS)
            assert await running.ask() == "NOT_READY"
            server.missing = set()
            await until(lambda: bool(running.sets))
            assert await running.ask() == "admitted"


async def test_with_its_definition_all_objects_of_a_kind_are_gone(server: KubernetesSimulator) -> None:
    """Deleted while the provider could not look: what was trusted before must not be trusted for ever."""
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        await watched(server)
        server.missing = {"keymanagementproviders"}
        server.end_watches({"type": "ERROR", "object": {"metadata": {}, "code": 410}})
        await until(lambda: not running.sets[-1].key_providers)
        assert await running.ask() == "RESOURCE_UNUSABLE"


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/apis", status(404)),
        ("/apis", status(403)),
        ("/apis", body(b"{}")),
        ("/apis", body(b'{"kind": "APIGroupList", "groups": 5}')),
        (f"/apis/{GROUP}/v1beta1", status(404)),
        (f"/apis/{GROUP}/v1beta1", body(b'{"kind": "APIResourceList"}')),
    ],
    ids=range(6),
)
async def test_only_the_api_servers_own_word_makes_a_kind_absent(
    server: KubernetesSimulator, path: str, fault: Fault
) -> None:
    """A proxy that answers 404 for a moment would delete whatever is trusted, or a tenant's stricter Verifier."""
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: bool(running.sets))
            await watched(server)
            server.missing = {"keymanagementproviders"}
            server.fault(path, fault)
            server.end_watches({"type": "ERROR", "object": {"metadata": {}, "code": 410}})
            await until(lambda: bool(events(logs, UNWATCHED)))
            assert await running.ask() == "admitted"
    assert events(logs, ABSENT) == []


async def test_a_404_for_what_is_served_deletes_nothing(server: KubernetesSimulator) -> None:
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: bool(running.sets))
            await watched(server)
            server.spoil("list", "keymanagementproviders", status(404), times=2)
            server.end_watches({"type": "ERROR", "object": {"metadata": {}, "code": 410}})
            await until(lambda: bool(events(logs, UNWATCHED)))
            assert await running.ask() == "admitted"
            await watched(server)
    assert len(running.sets) == 1


# -- what the assembly refuses ----------------------------------------------------------------------------------------


async def test_what_needs_a_file_that_is_not_there_is_tried_again(server: KubernetesSimulator, tmp_path: Path) -> None:
    """The old version decides until then, and the status says which file is missing."""
    folders = one(
        "Verifier",
        (
            "    verificationCertStores:\n      ca:\n        certs: [ratify-notation-inline-cert-0]\n",
            f"    verificationCerts: [{tmp_path}/certs]\n",
        ),
    )
    async with replica(server) as running:
        await until(lambda: bool(running.sets))
        server.apply(bare(folders))
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is False)
        assert f"{tmp_path}/certs" in server.status("verifiers", "verifier-notation")["error"]
        assert await running.ask() == "admitted"
        assert len(running.sets) == 1
        (tmp_path / "certs").mkdir()
        (tmp_path / "certs" / "root.pem").write_text(one("KeyManagementProvider")["spec"]["parameters"]["value"])
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is True)
        assert await running.ask() == "admitted"
        assert len(running.sets) == 2
        assert len(running.reports) == len(set(running.reports)), "each fault once, however often it is tried"


async def test_a_refusal_that_blames_nobody_is_told_once_and_tried_again(server: KubernetesSimulator) -> None:
    refusals = iter([ConfigurationError("CONFIG_INVALID", "no memory")] * 3)
    async with replica(server, refuse=lambda _: next(refusals, None)) as running:
        await until(lambda: bool(running.sets))
        assert len(running.reports) == 1
        assert "no memory" in running.reports[0]


# -- the command ------------------------------------------------------------------------------------------------------


def test_without_a_way_to_a_cluster_the_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UsageError, match="no way to a Kubernetes API server"):
        connect()
    for text in ("", "[]", "clusters: 5", "\t", "current-context: x\nclusters: []\ncontexts: []\nusers: []"):
        (tmp_path / "config").write_text(text)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        with pytest.raises(UsageError, match="no way to a Kubernetes API server"):
            connect()


async def test_the_namespace_is_that_of_the_context_or_as_told(
    monkeypatch: pytest.MonkeyPatch, server: KubernetesSimulator, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config", namespace="security")))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for given, expected in ((None, "security"), ("other", "other")):
        client = connect(given)
        assert client.namespace == expected
        await client.close()


NOW = datetime.now(UTC)
DAY = timedelta(days=1)
NAME = {"C": "US", "ST": "WA", "O": "Contoso", "CN": "release"}
ROOT, OTHER = (
    pki.issue({**NAME, "CN": name}, pki.authority(), issuer=None, not_before=NOW - DAY, not_after=NOW + 99 * DAY)
    for name in ("root", "other")
)
RELEASE = pki.issue(NAME, pki.code_signing(), issuer=ROOT, not_before=NOW - DAY, not_after=NOW + DAY)


def manifests(root: pki.CertifiedKey, *kinds: str) -> list[Object]:
    """The objects of test_admission.py, with this root."""
    text = MANIFESTS.format(pem=textwrap.indent(pki.pem(root.certificate).decode(), " " * 6))
    return [value for value in yaml.safe_load_all(text) if value["kind"] in kinds]


def wait_status(server: KubernetesSimulator, plural: str, name: str, *, good: bool) -> Callable[[], bool]:
    return lambda: server.status(plural, name).get("issuccess") is good


async def test_serve_follows_the_cluster_from_denied_to_admitted_to_denied(
    server: KubernetesSimulator, tmp_path: Path
) -> None:
    """A process of its own, Gatekeeper's own questions, and kubectl's own changes; nothing is started anew."""
    server.apply(*manifests(OTHER, "Store", "Verifier", "KeyManagementProvider", "Policy"))
    certificates, ports = PKI(), free_ports(3)
    certificates.write_serving_files(tmp_path)
    certificates.write_client_ca(tmp_path / "ca.crt")
    async with RegistrySimulator() as registry:
        image = registry.push_image("app", tag="v1")
        push_signature(registry, "app", image, RELEASE)
        key = f"{registry.host}/app:v1"
        process = await start(
            *("serve", "--cluster", "--cert-dir", str(tmp_path), "--client-ca-file", str(tmp_path / "ca.crt")),
            *("--host", "127.0.0.1", "--port", str(ports[0]), "--health-port", str(ports[1])),
            *("--metrics-port", str(ports[2])),
            KUBECONFIG=str(server.kubeconfig(tmp_path / "kubeconfig")),
            NO_PROXY="*",
        )
        serving = Serving(process, (ports[0], ports[1], ports[2]), certificates, tmp_path)
        try:
            await serving.until_ready()
            async with Gatekeeper(ports[0], certificates.client_context()) as gatekeeper:

                async def code() -> str:
                    reply = await gatekeeper.ask(key)
                    item = reply.items.get(key, {}).get("value")
                    return reply.system_error.partition(":")[0] if item is None else item.get("code", "admitted")

                async def becomes(expected: str) -> None:
                    async with asyncio.timeout(20):
                        while await code() != expected:  # noqa: ASYNC110 - looking on from outside
                            await asyncio.sleep(0.02)

                assert await code() == "UNTRUSTED_ROOT"
                server.apply(*manifests(ROOT, "KeyManagementProvider"))
                await becomes("admitted")
                server.delete("keymanagementproviders", "root")
                await becomes("RESOURCE_UNUSABLE")
                assert "KeyManagementProvider root" in (await gatekeeper.ask(key)).system_error
                await until(wait_status(server, "verifiers", "verifier-notation", good=False))
                await until(wait_status(server, "stores", "store-oras", good=True))
                assert await serving.get("/readyz") == (200, "ready\n")
            process.terminate()
            _, log = await process.communicate()
            assert process.returncode == 0
            assert b"Traceback" not in log
            told = [json.loads(line) for line in log.decode().splitlines()]
            assert {"configuration in use", "stopping"} <= {line["msg"] for line in told}
            assert not [line for line in told if "unexpectedly" in line["msg"]]
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
