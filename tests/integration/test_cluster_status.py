"""The status of custom resources: what it says of every kind, and that several replicas write it in peace.

The API server is a simulator on loopback; the client, the assembly and the executor are the real ones.
"""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from provider.configuration.resources import KINDS, ResourceSet
from provider.errors import Undecided
from provider.interfaces import KeyManagementProvider, KeyMaterial
from tests.integration.replica import (
    BAD_LEVEL,
    QUICK,
    bare,
    replica,
    stranger,
)
from tests.integration.test_tls import until
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.listener import Fault, endless, hang, lying_length, reset, status
from tests.unit.configuration.objects import Object, one

# -- status -----------------------------------------------------------------------------------------------------------

NAMESPACED = "team-a"


def of_kind(kind: str, *, broken: bool) -> Object:
    """A good or broken object of each kind."""
    base = kind.removeprefix("Namespaced").replace("CertificateStore", "KeyManagementProvider")
    change = {
        "Store": ("ttl: 10", "ttl: soon"),
        "Verifier": BAD_LEVEL,
        "KeyManagementProvider": ("@ROOT@", "@TRUNCATED@"),
        "Policy": ("signature: any", "signature: some"),
    }[base]
    value = one(base, *([change] if broken else []))
    value["kind"] = kind
    if kind == "CertificateStore":
        value["spec"]["provider"] = value["spec"].pop("type")
    value["metadata"] = {
        "name": value["metadata"]["name"],
        **({"namespace": NAMESPACED} if KINDS[kind].namespaced else {}),
    }
    return value


@pytest.mark.parametrize("kind", KINDS)
async def test_the_status_of_every_kind_says_what_is_good_and_what_is_wrong(kind: str) -> None:
    """With the key path, as kubectl get shows it."""
    paths = {
        "Store": "spec.parameters.ttl: must be a whole number",
        "Verifier": "spec.parameters.trustPolicyDoc.trustPolicies[0].signatureVerification.level: ",
        "KeyManagementProvider": "spec.parameters.value: block 1: truncated",
        "Policy": 'spec.parameters.artifactVerificationPolicies["application/vnd.cncf.notary.signature"]: ',
    }
    base = kind.removeprefix("Namespaced").replace("CertificateStore", "KeyManagementProvider")
    plural, namespace = KINDS[kind].plural, NAMESPACED if KINDS[kind].namespaced else ""
    async with KubernetesSimulator() as server:
        server.apply(*(of_kind(other, broken=False) for other in KINDS))
        name = of_kind(kind, broken=False)["metadata"]["name"]
        async with replica(server):
            await until(lambda: "issuccess" in server.status(plural, name, namespace))
            good = server.status(plural, name, namespace)
            assert (good["issuccess"], good["observedGeneration"]) == (True, 1)
            assert not {"error", "brieferror"} & good.keys()
            if base == "KeyManagementProvider":
                [certificate] = good["properties"]["Certificates"]
                assert certificate.keys() >= {"Name", "Version", "Enabled", "NotAfter", "SHA256"}
                assert datetime.fromisoformat(good["lastfetchedtime"]).tzinfo is not None
            server.apply(of_kind(kind, broken=True))
            await until(lambda: server.status(plural, name, namespace).get("issuccess") is False)
            bad = server.status(plural, name, namespace)
            assert bad["observedGeneration"] == 2
            assert bad["error"].startswith(paths[base])
            assert 0 < len(bad["brieferror"]) <= 100
            assert bad.get("properties") == good.get("properties"), "they tell of what is in force"


def writes(server: KubernetesSimulator) -> list[str]:
    return [verb for verb in server.verbs if verb.startswith("patch ")]


async def settled(server: KubernetesSimulator) -> None:
    """Until every object has a status and nothing is written any more."""
    await until(lambda: all("issuccess" in (value.get("status") or {}) for value in server._objects.values()))
    count = -1
    while count != len(writes(server)):
        count = len(writes(server))
        await asyncio.sleep(0.3)


async def test_two_replicas_write_each_status_and_then_nothing(server: KubernetesSimulator) -> None:
    """No fight, no loop: a write comes back as an event to both, and calls for nothing."""
    settings = replace(QUICK, status=replace(QUICK.status, jitter=0.0))
    async with replica(server, settings=settings) as first, replica(server, settings=settings) as second:
        await until(lambda: bool(first.sets and second.sets))
        await settled(server)
        started = len(writes(server))
        assert len(server._objects) <= started <= 2 * len(server._objects)
        version = server._version
        server.apply(bare(one("Verifier", BAD_LEVEL)))
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is False)
        await settled(server)
        assert len(writes(server)) <= started + 2
        assert server._version == version + 2, "one update of somebody's, one status"
        assert (await first.ask(), await second.ask()) == ("admitted", "admitted")


async def test_a_replica_that_comes_later_finds_nothing_to_write(server: KubernetesSimulator) -> None:
    async with replica(server) as first:
        await until(lambda: bool(first.sets))
        await settled(server)
    before = len(writes(server))
    async with replica(server) as second:
        await until(lambda: bool(second.sets))
        await asyncio.sleep(0.3)
    assert len(writes(server)) == before


async def test_every_write_says_which_version_it_was_decided_on_and_by_whom(server: KubernetesSimulator) -> None:
    async with replica(server):
        await settled(server)
    patches = [request for request in server.requests if request.method == "PATCH"]
    for request in patches:
        assert request.path.endswith("/status")
        assert request.headers["Content-Type"] == "application/merge-patch+json"
        assert request.query["fieldManager"] == "countersign"
        assert json.loads(request.body).keys() == {"metadata", "status"}
        assert int(json.loads(request.body)["metadata"]["resourceVersion"]) > 0


async def test_a_version_is_called_good_once_it_is_in_use(server: KubernetesSimulator) -> None:
    """A script that waits for the status and then creates pods must not be early."""
    objects = [("verifiers", "verifier-notation"), ("stores", "store-oras")]
    seen: list[dict[str, Any]] = []

    def look(_: ResourceSet) -> None:
        seen.append({plural: server.status(plural, name).get("observedGeneration") for plural, name in objects})

    async with replica(server, refuse=look) as running:
        await until(lambda: server.status("stores", "store-oras").get("issuccess") is True)
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is True)
        server.apply(bare(one("Verifier", ("level: strict", "level: audit"))))
        await until(lambda: server.status("verifiers", "verifier-notation").get("observedGeneration") == 2)
        assert len(running.sets) == 2
    assert seen == [{"verifiers": None, "stores": None}, {"verifiers": 1, "stores": 1}]


async def test_who_was_overtaken_looks_again(server: KubernetesSimulator) -> None:
    """409: the object is another by now. What the watch brings decides whether there is something left to write."""
    server.spoil("patch", "verifiers/status", status(409), times=2)
    with capture_logs() as logs:
        async with replica(server):
            await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is True)
    assert not [line for line in logs if line["event"] == "status not written"]
    assert server.verbs.count("patch verifiers/status") == 3


UNWRITTEN: dict[str, tuple[Fault, str]] = {
    "403": (status(403), "the API server answered 403"),
    "500": (status(500), "the API server answered 500"),
    "503 with garbage": (status(503, body=b"\xff\xfe"), "the API server answered 503"),
    "401": (status(401), "the API server answered 401"),
    "reset": (reset(), "the API server is out of reach (RemoteProtocolError)"),
    "cut off": (lying_length(10_000), "the API server is out of reach (RemoteProtocolError)"),
    "hangs": (hang(), "the API server does not answer"),
}


@pytest.mark.parametrize(("fault", "reason"), UNWRITTEN.values(), ids=UNWRITTEN.keys())
async def test_a_status_that_cannot_be_written_is_said_once_and_changes_nothing_else(
    server: KubernetesSimulator, fault: Fault, reason: str
) -> None:
    server.spoil("patch", "stores/status", fault)
    with capture_logs() as logs:
        async with replica(server) as running:
            await until(lambda: any(line["event"] == "status not written" for line in logs))
            await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is True)
            assert await running.ask() == "admitted"
            server.apply(stranger())
            await until(lambda: len(running.sets) > 1)
            await asyncio.sleep(0.2)
            if fault is not UNWRITTEN["403"][0]:
                server.heal()
                await until(lambda: server.status("stores", "store-oras").get("issuccess") is True)
    lines = [(line["resource"], line["reason"]) for line in logs if line["event"] == "status not written"]
    assert lines == [("Store/store-oras", reason)]


async def test_a_server_that_takes_no_status_is_left_alone(server: KubernetesSimulator) -> None:
    """Each object would cost a request that fails, again and again."""
    for number in range(30):
        spare = bare(one("KeyManagementProvider"))
        spare["metadata"]["name"] = f"spare-{number}"
        server.apply(spare)
    server.spoil("patch", "stores/status", status(500))
    for plural in ("verifiers", "policies", "keymanagementproviders"):
        server.spoil("patch", f"{plural}/status", status(500))
    settings = replace(QUICK, status=replace(QUICK.status, look=0.5))
    async with replica(server, settings=settings) as running:
        await until(lambda: bool(running.sets) and bool(writes(server)))
        await asyncio.sleep(0.2)
        assert len(writes(server)) <= 6
        server.heal()
        await settled(server)


async def test_an_answer_without_an_end_holds_up_no_other_status(server: KubernetesSimulator) -> None:
    server.spoil("patch", "stores/status", endless())
    async with replica(server):
        await until(lambda: server.status("verifiers", "verifier-notation").get("issuccess") is True)
        await until(lambda: server.status("policies", "ratify-policy").get("issuccess") is True)
        assert server.verbs.count("patch stores/status") == 1


async def test_without_a_status_subresource_nothing_is_written_or_said(server: KubernetesSimulator) -> None:
    server.spoil("patch", "stores/status", status(404))
    with capture_logs() as logs:
        async with replica(server):
            await until(lambda: server.verbs.count("patch stores/status") == 1)
            await asyncio.sleep(0.2)
    assert server.verbs.count("patch stores/status") == 1
    assert not [line for line in logs if line["event"] == "status not written"]


async def test_what_others_wrote_into_a_status_is_put_right_after_a_while(server: KubernetesSimulator) -> None:
    """At once, and two that disagree would write for ever."""
    settings = replace(QUICK, status=replace(QUICK.status, resync=0.4))
    async with replica(server, settings=settings):
        await until(lambda: server.status("stores", "store-oras").get("issuccess") is True)
        forged = copy.deepcopy(server.object("stores", "store-oras"))
        forged["status"] = {"issuccess": False, "error": "forged"}
        server.apply(forged)
        await until(lambda: server.status("stores", "store-oras").get("issuccess") is True)
        assert "error" not in server.status("stores", "store-oras")


async def test_an_object_made_anew_gets_a_status_of_its_own(server: KubernetesSimulator) -> None:
    async with replica(server):
        await settled(server)
        value = bare(one("Policy"))
        server.delete("policies", "ratify-policy")
        server.apply(value)
        await until(lambda: server.status("policies", "ratify-policy").get("issuccess") is True)


VAULT = """
apiVersion: config.ratify.deislabs.io/v1beta1
kind: KeyManagementProvider
metadata: {name: vault}
spec:
  type: azurekeyvault
  parameters: {vaultURI: 'https://example.vault.azure.net', certificates: [{name: release}]}
"""


@dataclass
class Vault:
    """A key provider whose material is what a test says."""

    name: str = "vault"
    now: KeyMaterial | Undecided = field(default_factory=KeyMaterial)

    def material(self) -> KeyMaterial:
        if isinstance(self.now, Undecided):
            raise self.now
        return self.now

    async def refresh(self) -> None:
        raise AssertionError("nobody asked for that")


def loaded(version: str, at: str) -> KeyMaterial:
    return KeyMaterial(properties={"Certificates": [{"Name": "release", "Version": version, "LastRefreshed": at}]})


async def test_the_status_of_a_key_service_says_what_was_loaded(server: KubernetesSimulator) -> None:
    """And what cannot be. A time alone is no reason to write, nor is an error in other words."""
    vault = Vault(now=loaded("1", "noon"))
    server.apply(from_plain(VAULT))

    def told() -> Any:
        return server.status("keymanagementproviders", "vault")

    providers: dict[str, KeyManagementProvider] = {}
    async with replica(server, key_providers=lambda: providers):
        await until(lambda: server.status("stores", "store-oras").get("issuccess") is True)
        assert told() == {}, "nothing is known yet"
        providers["KeyManagementProvider/vault"] = vault
        await until(lambda: told().get("properties") == loaded("1", "noon").properties)
        version = server._version
        vault.now = loaded("1", "one o'clock")
        await asyncio.sleep(0.2)
        assert server._version == version
        vault.now = loaded("2", "one o'clock")
        await until(lambda: told()["properties"] == loaded("2", "one o'clock").properties)
        vault.now = Undecided("KEYS_UNAVAILABLE", "the vault does not answer")
        await until(lambda: told()["issuccess"] is False)
        assert "KEYS_UNAVAILABLE: the vault does not answer" in told()["error"]
        assert told()["properties"] == loaded("2", "one o'clock").properties
        version = server._version
        for number in range(5):
            vault.now = Undecided("KEYS_UNAVAILABLE", f"request {number} failed")
            await asyncio.sleep(0.08)
        assert server._version == version
        vault.now = KeyMaterial(properties={"Keys": [{"Name": "k"}]})
        await until(lambda: told()["issuccess"] is True)
        assert told()["properties"] == {"Keys": [{"Name": "k"}]}


async def test_a_fault_in_writing_status_ends_nothing(server: KubernetesSimulator) -> None:
    def providers() -> Any:
        if not broken:
            return {}
        broken.pop()
        raise ZeroDivisionError

    broken = [1, 2]
    with capture_logs() as logs:
        async with replica(server, key_providers=providers):
            await until(lambda: server.status("stores", "store-oras").get("issuccess") is True)
    assert sum(line["event"] == "writing status failed unexpectedly" for line in logs) == 2


def from_plain(text: str) -> Object:
    value: Object = yaml.safe_load(text)
    return value
