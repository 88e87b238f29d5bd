"""From resources to live objects: what is built, what lives on, what ends, and what a failed build leaves alone."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider import assembly
from provider.assembly import MAX_SHOWN_ANCHORS, Assembler, Environment, Loading, anchor_figures
from provider.configuration.manifests import load
from provider.configuration.resources import PARAMETERS, Component, Resource, ResourceSet, Unusable, assemble_set
from provider.configuration.stores import CREDENTIALS, DockerConfigParameters, OrasParameters, RegistryParameters
from provider.errors import ConfigurationError, Undecided
from provider.executor import Executor, Snapshot
from provider.interfaces import KeyMaterial
from provider.oci import Descriptor
from provider.policy import ConfigPolicy
from provider.telemetry import Metrics
from provider.unusable import UnusablePolicy, UnusableStore
from provider.verifiers.notation import NotationVerifier
from tests.simulators.layout import write_layout
from tests.simulators.registry import Repository, as_json, describe
from tests.simulators.signer import JWS, Signer
from tests.unit.configuration.samples import GOOD, ROOT_PEM, SIGNER, good, read

SIGNATURE = "application/vnd.cncf.notary.signature"
IMAGE_TYPE = "application/vnd.oci.image.manifest.v1+json"
AT = datetime(2026, 11, 23, tzinfo=UTC)
MOMENT = 0.001  # seconds between tries of a key provider


@asynccontextmanager
async def assembler(**settings: Any) -> AsyncIterator[tuple[Assembler, list[Snapshot]]]:
    """An assembler, and what it has published."""
    published: list[Snapshot] = []
    one = Assembler(published.append, **settings)
    try:
        yield one, published
    finally:
        await one.aclose()


async def eventually(condition: Callable[[], bool]) -> None:
    """Let others run until it is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(MOMENT)


# -- doubles ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Recorded:
    """A store or key provider that remembers what happens to it."""

    name: str
    script: list[BaseException | float] = field(default_factory=list)  # what refreshes raise, or how long they take
    refreshed: int = 0
    closed: bool = False
    given: KeyMaterial | None = field(default_factory=KeyMaterial)

    def material(self) -> KeyMaterial:
        if self.given is None:
            raise Undecided("KEYS_UNAVAILABLE", "nothing was ever loaded")
        return self.given

    async def refresh(self) -> None:
        self.refreshed += 1
        step = self.script.pop(0) if self.script else 0.0
        if isinstance(step, BaseException):
            raise step
        await asyncio.sleep(step)

    async def aclose(self) -> None:
        self.closed = True
        if self.name == "unclosable":
            raise RuntimeError("it will not close")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Stores and key providers are recorded doubles; the list holds all that were made, in their order."""
    doubles: list[Recorded] = []

    def make(name: str) -> Recorded:
        doubles.append(Recorded(name))
        return doubles[-1]

    def store(attempt: Any, resource: Any, parameters: Any) -> Any:
        return attempt.take(("Store", resource.label), parameters, lambda: make(resource.name))

    monkeypatch.setitem(assembly.STORES, "oras", store)  # type: ignore[arg-type]
    return doubles


def scripted(monkeypatch: pytest.MonkeyPatch, *script: BaseException | float, refresh: float | None = None) -> Recorded:
    """Key providers of type inline are one double, whose refreshes follow the script."""
    double = Recorded("keys", list(script))

    def provider(attempt: Any, resource: Any, parameters: Any) -> Any:
        return attempt.take(
            (Component.KEY_PROVIDER.value, resource.label),
            parameters,
            lambda: double,
            load=Loading(resource, "spec.parameters", refresh),
        )

    monkeypatch.setitem(assembly.KEY_PROVIDERS, "inline", provider)  # type: ignore[arg-type]
    return double


# -- what is built ----------------------------------------------------------------------------------------------------


def test_every_type_that_is_read_has_a_class() -> None:
    """And no class is out of reach."""
    tables = {
        Component.STORE: assembly.STORES,
        Component.VERIFIER: assembly.VERIFIERS,
        Component.KEY_PROVIDER: assembly.KEY_PROVIDERS,
        Component.POLICY: assembly.POLICIES,
    }
    assert {(component, name) for component, table in tables.items() for name in table} == PARAMETERS.keys()
    assert assembly.CREDENTIALS.keys() == CREDENTIALS.keys()


def push(repository: Repository, data: bytes, media_type: str, tag: str | None = None) -> Descriptor:
    descriptor = describe(data, media_type)
    repository.manifests[str(descriptor.digest)] = (data, media_type)
    if tag:
        repository.tags[tag] = str(descriptor.digest)
    return descriptor


def push_blob(repository: Repository, data: bytes, media_type: str) -> dict[str, Any]:
    descriptor = describe(data, media_type)
    repository.blobs[str(descriptor.digest)] = data
    return as_json(descriptor)


def push_image(repository: Repository, tag: str) -> Descriptor:
    config = push_blob(repository, b'{"tag": "%s"}' % tag.encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": IMAGE_TYPE, "config": config, "layers": []}
    return push(repository, json.dumps(manifest).encode(), IMAGE_TYPE, tag)


def sign(repository: Repository, image: Descriptor, signer: Signer) -> None:
    payload = json.dumps({"targetArtifact": as_json(image)}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_TYPE,
        "artifactType": SIGNATURE,
        "config": push_blob(repository, b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [push_blob(repository, signer.jws(payload=payload), JWS)],
        "subject": as_json(image),
    }
    push(repository, json.dumps(manifest).encode(), IMAGE_TYPE)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with an image signed by SIGNER, one signed by a stranger, and one unsigned."""
    repository = Repository()
    sign(repository, push_image(repository, "signed"), SIGNER)
    sign(repository, push_image(repository, "strange"), Signer.make())
    push_image(repository, "unsigned")
    folder = tmp_path / "layout"
    folder.mkdir()
    return write_layout(repository, folder)


STORE_OF_LAYOUT = """
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Store
metadata: {name: layout}
spec: {name: oci-layout, parameters: {path: layout}}
"""
FOLDERS = GOOD["Verifier"].replace(
    "    verificationCertStores:\n      ca:\n        certs: [ratify-notation-inline-cert-0]\n",
    "    verificationCerts: [certs]\n",
)


def write_manifests(folder: Path, *texts: str) -> Path:
    (folder / "certs").mkdir(exist_ok=True)
    (folder / "certs" / "root.pem").write_text(ROOT_PEM)
    (folder / "all.yaml").write_text("\n---\n".join(texts).replace("@ROOT@", json.dumps(ROOT_PEM)))
    return folder / "all.yaml"


@pytest.mark.parametrize("verifier", [GOOD["Verifier"], FOLDERS], ids=["inline", "folder"])
async def test_manifests_on_disk_decide_on_images_on_disk(tmp_path: Path, layout: Path, verifier: str) -> None:
    """The whole way, from YAML to a verdict: store, key source, verifier and policy."""
    executor = Executor(clock=lambda: AT)
    one = Assembler(executor.use)
    try:
        await one.apply(load(write_manifests(tmp_path, *good(Store=STORE_OF_LAYOUT, Verifier=verifier))))
        verdicts = {
            tag: (await executor.verify(f"registry.example.com/app:{tag}")).verdict
            for tag in ("signed", "strange", "unsigned")
        }
    finally:
        await one.aclose()
    assert {tag: (verdict.is_success, verdict.code) for tag, verdict in verdicts.items()} == {
        "signed": (True, ""),
        "strange": (False, "UNTRUSTED_ROOT"),
        "unsigned": (False, "UNSIGNED"),
    }
    assert verdicts["signed"].reports[0].name == "verifier-notation"


async def test_settings_of_the_verifier_reach_it(tmp_path: Path, layout: Path) -> None:
    """Demanded metadata that the signature lacks, as one for all."""
    verifier = GOOD["Verifier"] + "    userMetadata: {stage: production}\n    maxSignatureAttempts: 7\n"
    executor = Executor(clock=lambda: AT)
    one = Assembler(executor.use)
    try:
        snapshot = await one.apply(load(write_manifests(tmp_path, *good(Store=STORE_OF_LAYOUT, Verifier=verifier))))
        assert snapshot.scopes[""].verifiers[0].max_attempts == 7
        assert (await executor.verify("registry.example.com/app:signed")).verdict.code == "METADATA_MISMATCH"
    finally:
        await one.aclose()


async def test_a_namespace_decides_with_its_own_and_the_clusters_objects(made: list[Recorded]) -> None:
    """Each component by itself: here the policy is the tenant's, the rest is shared."""
    policy = (
        GOOD["Policy"].replace("kind: ", "kind: Namespaced").replace("metadata:\n", "metadata:\n  namespace: team-a\n")
    )
    async with assembler() as (one, published):
        await one.apply(read(*good(), policy.replace("any", "all")))
        cluster, tenant = published[0].scopes[""], published[0].scopes["team-a"]
    assert published[0].scopes.keys() == {"", "team-a"}
    assert (tenant.stores, tenant.verifiers) == (cluster.stores, cluster.verifiers)
    assert tenant.policy != cluster.policy
    assert [store.name for store in made] == ["store-oras"]


async def test_a_cluster_without_a_policy_has_no_scope(made: list[Recorded]) -> None:
    """What it would decide with is missing; the tenant's is not."""
    policy = (
        GOOD["Policy"].replace("kind: ", "kind: Namespaced").replace("metadata:\n", "metadata:\n  namespace: team-a\n")
    )
    async with assembler() as (one, published):
        await one.apply(read(*good(Policy=policy)))
    assert published[0].scopes.keys() == {"team-a"}


async def test_n58_a_set_that_decides_nowhere_is_never_used() -> None:
    async with assembler() as (one, published):
        with pytest.raises(ConfigurationError, match="no Store, Verifier and Policy decide together"):
            await one.apply(ResourceSet())
    assert not published


async def test_credentials_are_those_that_the_store_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stores that name the same share them."""
    asked: list[tuple[Path | None, bool]] = []

    def credentials(attempt: Any, resource: Any, parameters: DockerConfigParameters) -> None:
        asked.append((parameters.config_path, attempt.environment.docker_config is None))

    monkeypatch.setitem(assembly.CREDENTIALS, "dockerConfig", credentials)  # type: ignore[arg-type]
    named = GOOD["Store"] + "    authProvider: {name: dockerConfig, configPath: /etc/docker.json}\n"
    stores = [named, named.replace("store-oras", "a"), GOOD["Store"].replace("store-oras", "b")]
    async with assembler() as (one, _):
        await one.apply(read(*good(Store=stores[0]), *stores[1:]))
    assert asked == [(Path("/etc/docker.json"), True), (None, True)]


async def test_stores_are_built_with_all_that_their_resource_says(tmp_path: Path) -> None:
    """A registry of one's own authority, numbers, credentials: nothing of it fails to fit the store's settings."""
    (tmp_path / "ca.pem").write_text(ROOT_PEM)
    store = GOOD["Store"] + (
        "    authProvider: {name: dockerConfig, configPath: docker.json}\n"
        "    registries:\n"
        "      - {host: registry.example.com, caFile: ca.pem, tokenHosts: [a.example.com], redirectHosts: [b:1]}\n"
        f"      - {{host: 'other.example.com:5000', caBundle: {json.dumps(ROOT_PEM)}}}\n"
        "      - {host: localhost:5000, plainHttp: true}\n"
        "    useHttp: false\n    maxReferrers: 5\n    timeoutSeconds: 1\n    maxConnectionsPerHost: 2\n"
    )
    environment = Environment.from_variables({"HOME": str(tmp_path), "HTTPS_PROXY": "proxy.example.com:3128"})
    async with assembler(environment=environment) as (one, published):
        await one.apply(load(write_manifests(tmp_path, *good(Store=store))))
    assert [store.name for store in published[0].scopes[""].stores] == ["store-oras"]


def test_the_environment_says_where_dockers_configuration_is() -> None:
    assert Environment.from_variables({}).docker_config is None
    assert Environment.from_variables({"HOME": "/home/a"}).docker_config == Path("/home/a/.docker/config.json")
    variables = {"HOME": "/home/a", "DOCKER_CONFIG": "/etc/docker"}
    assert Environment.from_variables(variables).docker_config == Path("/etc/docker/config.json")
    with pytest.raises(ConfigurationError):
        Environment.from_variables({"HTTPS_PROXY": "ftp://proxy"})


# -- what lives on, and what ends --------------------------------------------------------------------------------------


async def test_what_did_not_change_lives_on(made: list[Recorded]) -> None:
    """A change of the policy costs no store its connections and no key provider its keys."""
    async with assembler() as (one, published):
        await one.apply(read(*good()))
        keys = dict(one.key_providers)
        await one.apply(read(*good(Policy=GOOD["Policy"].replace("any", "all"))))
        first, second = published
        assert (first.generation, second.generation) == (1, 2)
        assert second.scopes[""].stores == first.scopes[""].stores
        assert second.scopes[""].policy != first.scopes[""].policy
        assert dict(one.key_providers) == keys
        assert keys.keys() == {"KeyManagementProvider/ratify-notation-inline-cert-0"}
        assert not made[0].closed
    assert made[0].closed


async def test_what_changed_is_replaced_and_closed_after_its_grace(made: list[Recorded]) -> None:
    """Decisions that began with the old store finish with it."""
    async with assembler(grace_seconds=MOMENT) as (one, published):
        await one.apply(read(*good()))
        await one.apply(read(*good(Store=GOOD["Store"].replace("ttl: 10", "ttl: 20"))))
        old, new = made
        assert [snapshot.scopes[""].stores for snapshot in published] == [(old,), (new,)]
        await eventually(lambda: old.closed)
        assert not new.closed


async def test_within_the_grace_nothing_is_closed(made: list[Recorded]) -> None:
    """But at the end everything is, without waiting for the grace."""
    async with assembler(grace_seconds=3600) as (one, _):
        await one.apply(read(*good()))
        await one.apply(read(*good(Store=GOOD["Store"].replace("store-oras", "other"))))
        await asyncio.sleep(10 * MOMENT)
        assert not any(store.closed for store in made)
    assert all(store.closed for store in made)


async def test_one_object_that_will_not_close_keeps_no_other_open(made: list[Recorded]) -> None:
    stores = [GOOD["Store"].replace("store-oras", name) for name in ("a", "unclosable", "z")]
    with capture_logs() as logs:
        async with assembler() as (one, _):
            await one.apply(read(*good(Store=stores[0]), *stores[1:]))
    assert [store.closed for store in made] == [True, True, True]
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["not closed cleanly"]


# -- what cannot be built ----------------------------------------------------------------------------------------------


async def test_n65_a_build_that_fails_leaves_the_old_one_in_use(made: list[Recorded], tmp_path: Path) -> None:
    """Every fault is told, what was begun is closed, and what was good still decides."""
    async with assembler() as (one, published):
        await one.apply(read(*good()))
        other = GOOD["Store"].replace("store-oras", "other")
        verifier = FOLDERS.replace("[certs]", f"[{tmp_path}/none, {tmp_path}]")
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(read(*good(Verifier=verifier), other))
        assert [str(fault) for fault in caught.value.faults] == [
            "manifest-2.yaml#1 Verifier/verifier-notation spec.parameters.verificationCerts[0]: "
            f"{tmp_path}/none none: cannot be read: No such file or directory",
            "manifest-2.yaml#1 Verifier/verifier-notation spec.parameters.verificationCerts[1]: "
            f"{tmp_path}: holds no certificate file",
        ]
        assert str(caught.value).endswith("(and 1 more)")
        assert [(store.name, store.closed) for store in made] == [("store-oras", False), ("other", True)]
        assert len(published) == 1
        await one.apply(read(*good(), other))
        assert published[-1].generation == 2


async def test_files_that_a_store_needs_and_cannot_use_are_faults(tmp_path: Path) -> None:
    broken = GOOD["Store"] + "    registries: [{host: registry.example.com, caFile: none.pem}]\n"
    async with assembler() as (one, published):
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(load(write_manifests(tmp_path, *good(Store=broken))))
        assert not published
    [fault] = caught.value.faults
    assert (fault.resource, fault.path) == ("Store/store-oras", "spec.parameters")
    assert "none.pem cannot be read" in fault.message


async def test_settings_that_a_store_refuses_are_faults(tmp_path: Path) -> None:
    """Should the models ever let through what the store does not take."""
    [store] = read(*good()).stores
    registry = RegistryParameters.model_construct(host="No Host")
    wrong = replace(store, parameters=OrasParameters().model_copy(update={"registries": (registry,)}))
    resources = assemble_set([wrong, *(one for one in read(*good()) if one.component is not Component.STORE)])
    async with assembler() as (one, _):
        with pytest.raises(ConfigurationError, match="is not a registry host"):
            await one.apply(resources)


async def test_a_trust_store_never_lacks_a_source_silently() -> None:
    """A set that was not checked: the key provider is missing."""
    resources = assemble_set(one for one in read(*good()) if one.component is not Component.KEY_PROVIDER)
    async with assembler() as (one, _):
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(resources)
    assert [(fault.path, fault.message) for fault in caught.value.faults] == [
        ("spec.parameters.verificationCertStores.ca.certs", "there is no key provider ratify-notation-inline-cert-0")
    ]


async def test_a_deleted_key_provider_denies_what_needs_it(tmp_path: Path, layout: Path) -> None:
    """In a cluster, where objects come and go. In files, an incomplete set is refused as a whole (above)."""
    executor = Executor(clock=lambda: AT)
    one = Assembler(executor.use)
    complete = load(write_manifests(tmp_path, *good(Store=STORE_OF_LAYOUT)))
    without = assemble_set(
        (one for one in complete if one.component is not Component.KEY_PROVIDER), may_be_incomplete=True
    )
    try:
        await one.apply(complete)
        assert (await executor.verify("registry.example.com/app:signed")).is_success
        await one.apply(without)
        assert executor.remembered("registry.example.com/app:signed") is None
        with pytest.raises(Undecided, match="none within reach") as caught:
            await executor.verify("registry.example.com/app:signed")
        assert caught.value.code == "RESOURCE_UNUSABLE"
        assert "ratify-notation-inline-cert-0" in caught.value.detail
        await one.apply(complete)
        assert (await executor.verify("registry.example.com/app:signed")).is_success
    finally:
        await one.aclose()


async def test_a_set_of_a_cluster_may_decide_nothing(made: list[Recorded]) -> None:
    """Everything was deleted: then everything is denied, by what is there now and not by what was."""
    executor = Executor(clock=lambda: AT)
    one = Assembler(executor.use)
    try:
        await one.apply(assemble_set((), may_be_incomplete=True))
        with pytest.raises(Undecided) as caught:
            await executor.verify("registry.example.com/app:signed")
    finally:
        await one.aclose()
    assert caught.value.code == "NOT_READY"


def unusable(resource: Resource) -> Resource:
    return replace(resource, type="", parameters=Unusable(reason=f"{resource.label} cannot be used"))


async def test_an_unusable_store_keeps_its_place_before_others(made: list[Recorded]) -> None:
    """What it would have answered, a laxer one after it must not answer."""
    stores = read(*good(), GOOD["Store"].replace("store-oras", "a"), GOOD["Store"].replace("store-oras", "z"))
    resources = assemble_set(unusable(one) if one.name == "store-oras" else one for one in stores)
    async with assembler() as (one, published):
        await one.apply(resources)
    assert [store.name for store in published[0].scopes[""].stores] == ["a", "store-oras", "z"]
    assert isinstance(published[0].scopes[""].stores[1], UnusableStore)


async def test_a_policy_that_no_one_evaluates_stands_in_nobodys_way(made: list[Recorded]) -> None:
    """Of all Policies the one named ratify-policy counts; without it, whatever there is says why not."""
    [policy] = read(*good()).policies
    misnamed = unusable(replace(policy, name="a-policy"))
    async with assembler() as (one, published):
        await one.apply(assemble_set([*read(*good()), misnamed]))
        others = [one for one in read(*good()) if one.component is not Component.POLICY]
        await one.apply(assemble_set([*others, misnamed]))
    assert isinstance(published[0].scopes[""].policy, ConfigPolicy)
    assert isinstance(published[1].scopes[""].policy, UnusablePolicy)


async def test_a_resource_that_nobody_foresaw_is_a_fault_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tenant's object must not end the process that decides for all."""

    def provider(attempt: Any, resource: Any, parameters: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setitem(assembly.KEY_PROVIDERS, "inline", provider)  # type: ignore[arg-type]
    async with assembler() as (one, _):
        with capture_logs() as logs, pytest.raises(ConfigurationError) as caught:
            await one.apply(read(*good()))
    [fault] = caught.value.faults
    assert (fault.resource, fault.message) == (
        "KeyManagementProvider/ratify-notation-inline-cert-0",
        "cannot be built; the log says why",
    )
    assert [line["event"] for line in logs] == ["building a resource failed unexpectedly"]


async def test_a_key_provider_that_cannot_be_built_is_one_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier that needs it adds none."""

    def provider(attempt: Any, resource: Any, parameters: Any) -> Any:
        raise ConfigurationError("CERTIFICATE_INVALID", "it is of no use")

    monkeypatch.setitem(assembly.KEY_PROVIDERS, "inline", provider)  # type: ignore[arg-type]
    async with assembler() as (one, _):
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(read(*good()))
    assert [fault.message for fault in caught.value.faults] == ["it is of no use"]


# -- loading key providers ---------------------------------------------------------------------------------------------


async def test_a_key_service_that_is_away_holds_up_nothing_and_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys count as not loaded meanwhile, which denies what needs them and no more."""
    away = Undecided("KEYS_UNAVAILABLE", "the vault does not answer")
    keys = scripted(monkeypatch, away, away, RuntimeError("surprise"), ConfigurationError("CERTIFICATE_INVALID", "bad"))
    with capture_logs() as logs:
        async with assembler(retry_seconds=MOMENT) as (one, published):
            await one.apply(read(*good()))
            assert len(published) == 1
            await eventually(lambda: keys.refreshed == 5)
            await asyncio.sleep(10 * MOMENT)
            assert keys.refreshed == 5  # loaded at last, and not told to be refreshed
    assert [entry["event"] for entry in logs if entry["log_level"] != "info"] == [
        "key provider not loaded",
        "key provider not loaded",
        "key provider failed unexpectedly",
        "key provider not loaded",
    ]
    assert keys.closed


async def test_a_key_service_that_asks_to_be_left_alone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it would be tried again otherwise."""
    keys = scripted(monkeypatch, Undecided("KEYS_UNAVAILABLE", "limits the request rate", retry_after=3600.0))
    with capture_logs() as logs:
        async with assembler(retry_seconds=MOMENT) as (one, _):
            await one.apply(read(*good()))
            await asyncio.sleep(20 * MOMENT)
            assert keys.refreshed == 1
    assert "limits the request rate" in next(one for one in logs if one["log_level"] == "warning")["reason"]


async def test_the_age_of_key_material_is_shown_where_material_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded, lacking something, not to be had at all; and gone with the provider."""
    metrics = Metrics()
    keys = scripted(monkeypatch, refresh=MOMENT)
    keys.given = KeyMaterial(as_of=AT)

    def shown(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"countersign_key_material_{name}", {"provider": "keys"})

    with capture_logs():
        async with assembler(metrics=metrics) as (one, _):
            await one.apply(read(*good()))
            assert (shown("seen_timestamp_seconds"), shown("complete")) == (AT.timestamp(), 1.0)
            keys.given = KeyMaterial(as_of=AT, missing=("a certificate",))
            await eventually(lambda: shown("complete") == 0.0)
            keys.given = KeyMaterial(as_of=AT)
            await eventually(lambda: shown("complete") == 1.0)
            keys.given = None
            await eventually(lambda: shown("complete") == 0.0)
    assert (shown("seen_timestamp_seconds"), shown("complete")) == (None, None)


async def test_a_slow_key_service_holds_up_a_configuration_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = scripted(monkeypatch, 3600.0)
    with capture_logs() as logs:
        async with assembler(load_seconds=MOMENT, retry_seconds=MOMENT) as (one, published):
            await one.apply(read(*good()))
            assert len(published) == 1
            await eventually(lambda: keys.refreshed == 2)
    assert [entry["reason"] for entry in logs if "reason" in entry] == ["it took over 0.001 s"]


async def test_keys_are_loaded_again_as_often_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is tried again sooner, and the interval then goes on."""
    keys = scripted(monkeypatch, 0.0, Undecided("KEYS_UNAVAILABLE", "away"), refresh=MOMENT)
    async with assembler(retry_seconds=MOMENT / 2) as (one, _):
        await one.apply(read(*good()))
        await eventually(lambda: keys.refreshed >= 5)
    count = keys.refreshed
    await asyncio.sleep(10 * MOMENT)
    assert keys.refreshed == count  # closed is closed


async def test_a_key_provider_whose_material_is_wrong_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = scripted(monkeypatch, ConfigurationError("CERTIFICATE_INVALID", "no certificate in it"))
    async with assembler() as (one, published):
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(read(*good()))
        assert [(fault.path, fault.message) for fault in caught.value.faults] == [
            ("spec.parameters", "no certificate in it")
        ]
        assert keys.closed
        assert not published


async def test_a_build_that_is_cancelled_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = scripted(monkeypatch, 3600.0)
    async with assembler(load_seconds=3600) as (one, published):
        task = asyncio.create_task(one.apply(read(*good())))
        await eventually(lambda: keys.refreshed == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert keys.closed
        assert not published


async def test_a_folder_serves_stores_of_its_type_only(tmp_path: Path) -> None:
    """A leaf that signs itself may be in a ca store and not in a tsa store, though the folder is the same."""
    folder = tmp_path / "certs"
    folder.mkdir()
    (folder / "root.pem").write_text(ssl.DER_cert_to_PEM_cert(SIGNER.chain[1]))
    verifier = FOLDERS.replace("[certs]", f"[{folder}]").replace(
        '["ca:certs"]', '["ca:certs", "tsa:clock", "ca:other"]'
    )
    async with assembler() as (one, published):
        await one.apply(read(*good(Verifier=verifier)))
        assert len(published) == 1
        (folder / "leaf.pem").write_text(ssl.DER_cert_to_PEM_cert(SIGNER.chain[0]))
        await one.apply(read(*good(Verifier=verifier, Policy=GOOD["Policy"].replace("any", "all"))))
        assert len(published) == 2  # the folder lives on with what was good; its own refresh tells of the leaf


# -- figures ----------------------------------------------------------------------------------------------------------


def anchored(*ends: tuple[str, str, datetime]) -> Any:
    """A Notation verifier with trust anchors that end at these times."""

    class Anchored(NotationVerifier):
        def __init__(self) -> None:
            """It verifies nothing."""

        def trust_anchors(self) -> Any:
            for provider, store, end in ends:
                yield provider, store, SimpleNamespace(not_after=end)

    return Anchored()


def test_the_first_end_of_a_key_provider_in_a_trust_store_is_shown() -> None:
    soon, late, past = AT + timedelta(days=1), AT + timedelta(days=9), AT - timedelta(days=1)
    one = anchored(("a", "ca:x", late), ("a", "ca:x", soon), ("a", "ca:x", past), ("a", "tsa:x", late))
    other = anchored(("b", "ca:x", past), ("b", "ca:x", past - timedelta(days=1)))
    shown = {figure.labels: figure.value for figure in anchor_figures([one, other, object()], AT.timestamp())}  # type: ignore[list-item]
    assert shown == {
        ("a", "ca:x"): soon.timestamp(),
        ("a", "tsa:x"): late.timestamp(),
        ("b", "ca:x"): past.timestamp(),
    }


def test_n24_tenants_cannot_fill_the_metrics_with_names() -> None:
    many = anchored(*((f"team-{number}/keys", "ca:x", AT + timedelta(hours=number)) for number in range(1, 500)))
    shown = list(anchor_figures([many], AT.timestamp()))
    assert len(shown) == MAX_SHOWN_ANCHORS
    assert shown[0].labels[0] == "team-1/keys"
