"""Stand-ins for what cannot be used: each denies whatever depends on it, for the moment, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from provider.components import STAND_INS
from provider.configuration.resources import Component, Resource, Unusable
from provider.errors import Undecided
from provider.interfaces import PolicyEnforcer, Standing, Store
from provider.oci import MEDIA_TYPE_MANIFEST, Descriptor, Digest, Reference, Subject
from provider.policy import ConfigPolicy, Rule
from provider.reports import VerifierReport
from provider.unusable import (
    UnusableKeyManagementProvider,
    UnusablePolicy,
    UnusableStore,
    UnusableVerifier,
)
from tests.unit.test_executor import SBOM, SIGNATURE, ScriptedStore, ScriptedVerifier, artifact, executor, signed

WHY = "Verifier/v cannot be used: spec.parameters: must be a mapping"
AT = datetime(2026, 11, 23, tzinfo=UTC)
KEY = "reg.example.com/app:v1"
SUBJECT = Subject(Reference.parse(KEY), Digest.of(b"image"))
DESCRIPTOR = Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(b"x"), 1)

ANY = ConfigPolicy({SIGNATURE: Rule.ANY}, Rule.ANY)
ALL = ConfigPolicy({SIGNATURE: Rule.ALL}, Rule.ALL)


async def outcome(store: Store, *verifiers: ScriptedVerifier | UnusableVerifier, policy: PolicyEnforcer = ANY) -> str:
    """`admitted`, or the code of the refusal or of why it is not decided."""
    made = executor(store, *verifiers, policy=policy)  # type: ignore[arg-type]
    reason = WHY
    try:
        answer = await made.verify(KEY)
    except Undecided as error:
        code, reason = error.code, error.detail
    else:
        code = answer.verdict.code or "admitted"
    assert code != "RESOURCE_UNUSABLE" or made.remembered(KEY) is None, "nobody keeps what is not decided"
    await made.aclose()
    assert reason == WHY
    return code


async def test_what_only_an_unusable_store_could_tell_is_not_decided() -> None:
    store = UnusableStore("s", WHY)
    assert await outcome(store, ScriptedVerifier()) == "RESOURCE_UNUSABLE"
    with pytest.raises(Undecided, match="cannot be used"):
        store.list_referrers(SUBJECT, None)
    with pytest.raises(Undecided, match="cannot be used"):
        await store.fetch_manifest(SUBJECT, DESCRIPTOR)
    with pytest.raises(Undecided, match="cannot be used"):
        await store.fetch_blob(SUBJECT, DESCRIPTOR, 1)


@pytest.mark.parametrize("policy", [ANY, ALL], ids=["any", "all"])
async def test_an_unusable_verifier_holds_up_the_artifacts_it_was_to_judge(policy: ConfigPolicy) -> None:
    assert await outcome(signed("s"), UnusableVerifier("v", WHY), policy=policy) == "RESOURCE_UNUSABLE"
    narrow = UnusableVerifier("v", WHY, frozenset({SIGNATURE}))
    assert await outcome(signed("s"), narrow, policy=policy) == "RESOURCE_UNUSABLE"


async def test_where_one_good_signature_is_enough_a_good_verifier_finds_it_beside_an_unusable_one() -> None:
    """As it would if the other could be used and refused."""
    assert await outcome(signed("s"), UnusableVerifier("v", WHY), ScriptedVerifier()) == "admitted"


async def test_where_all_have_to_be_good_an_unusable_verifier_denies() -> None:
    assert await outcome(signed("s"), UnusableVerifier("v", WHY), ScriptedVerifier(), policy=ALL) == "RESOURCE_UNUSABLE"


async def test_an_unusable_verifier_of_other_artifacts_denies_only_images_that_have_them() -> None:
    sbom = UnusableVerifier("v", WHY, frozenset({SBOM}))
    assert await outcome(signed("s"), sbom, ScriptedVerifier()) == "admitted"
    store = ScriptedStore({"v1": Digest.of(b"image")}, [artifact("s"), artifact("b", SBOM)])
    both = ConfigPolicy({SIGNATURE: Rule.ANY}, Rule.ALL)
    assert await outcome(store, sbom, ScriptedVerifier(), policy=both) == "RESOURCE_UNUSABLE"


async def test_an_unusable_verifier_admits_nothing_that_is_unsigned() -> None:
    assert await outcome(ScriptedStore({"v1": Digest.of(b"image")}), UnusableVerifier("v", WHY)) == "UNSIGNED"


async def test_an_unusable_policy_is_satisfied_by_nothing() -> None:
    policy = UnusablePolicy("ratify-policy", WHY)
    assert await outcome(signed("s"), ScriptedVerifier(), policy=policy) == "RESOURCE_UNUSABLE"
    good = VerifierReport(True, "v", "notation", "ok", Digest.of(b"s"), SIGNATURE)
    assert not policy.satisfied(SIGNATURE, [good])
    assert [policy.evaluate(reports).standing for reports in ([], [good])] == [Standing.UNDECIDED] * 2


async def test_an_unusable_source_of_keys_has_none_and_never_will() -> None:
    provider = UnusableKeyManagementProvider("team-a/k", WHY)
    await provider.refresh()
    with pytest.raises(Undecided) as caught:
        provider.material()
    assert (caught.value.code, caught.value.detail) == ("RESOURCE_UNUSABLE", WHY)


@pytest.mark.parametrize("component", Component)
def test_every_component_has_a_stand_in_that_says_whose_place_it_takes(component: Component) -> None:
    resource = Resource(component.value, component, "team-a", "n", "", "", Unusable(reason=WHY), frozenset({"a/b"}))
    stand_in = STAND_INS[component](resource, Unusable(reason=WHY))
    assert stand_in.reason == WHY
    assert stand_in.name == ("team-a/n" if component is Component.KEY_PROVIDER else "n")
    assert getattr(stand_in, "artifact_types", {"a/b"}) == {"a/b"}


def test_a_verifier_whose_types_cannot_be_read_holds_up_any() -> None:
    resource = Resource("Verifier", Component.VERIFIER, "", "n", "", "", Unusable(reason=WHY))
    assert STAND_INS[Component.VERIFIER](resource, Unusable(reason=WHY)).artifact_types == {"*"}
