"""From resources to live objects: what is built, what lives on, what ends, and what a failed build leaves alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider import components
from provider.assembly import MAX_SHOWN_ANCHORS, Assembler, anchor_figures
from provider.configuration.manifests import load
from provider.configuration.resources import Component, Resource, ResourceSet, Unusable, assemble_set
from provider.errors import ConfigurationError, Undecided
from provider.executor import Executor
from provider.policy import ConfigPolicy
from provider.unusable import UnusablePolicy, UnusableStore
from provider.verifiers.notation import NotationVerifier
from tests.simulators.layout import write_layout
from tests.simulators.registry import Repository
from tests.simulators.signed_images import push_image, sign
from tests.simulators.signer import Signer
from tests.unit.assembling import FOLDERS, MOMENT, Recorded, assembler, eventually, write_manifests
from tests.unit.configuration.samples import GOOD, SIGNER, good, read

AT = datetime(2026, 11, 23, tzinfo=UTC)


# -- doubles ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Stores and key providers are recorded doubles; the list holds all that were made, in their order."""
    doubles: list[Recorded] = []

    def make(name: str) -> Recorded:
        doubles.append(Recorded(name))
        return doubles[-1]

    def store(attempt: Any, resource: Any, parameters: Any) -> Any:
        return attempt.take(("Store", resource.label), parameters, lambda: make(resource.name))

    monkeypatch.setitem(components.STORES, "oras", store)  # type: ignore[arg-type]
    return doubles


# -- what is built ----------------------------------------------------------------------------------------------------


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

    monkeypatch.setitem(components.KEY_PROVIDERS, "inline", provider)  # type: ignore[arg-type]
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

    monkeypatch.setitem(components.KEY_PROVIDERS, "inline", provider)  # type: ignore[arg-type]
    async with assembler() as (one, _):
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(read(*good()))
    assert [fault.message for fault in caught.value.faults] == ["it is of no use"]


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
