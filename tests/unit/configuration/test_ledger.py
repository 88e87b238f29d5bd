"""Which version of each object counts: bad updates, deletions, contradictions, refusals, and any order of events."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from provider.configuration import ledger as subject
from provider.configuration.ledger import MAX_OBJECT_BYTES, MAX_TENANT_BYTES, Key, Ledger, Proposal, label_of
from provider.configuration.resources import KINDS, Component, Resource, Unusable
from provider.configuration.verifiers import NotationParameters
from provider.errors import ConfigurationError, Fault
from provider.notation.trust_policy import Level
from tests.unit.configuration.objects import (
    KMP,
    POLICY,
    STORE,
    VERIFIER,
    Object,
    from_yaml,
    good,
    key_of,
    ledger_of,
    one,
    tenant,
)

STRICT = "level: strict"
BAD = (STRICT, "level: strickt")
PERMISSIVE = (STRICT, "level: permissive")
LEAF = ("@ROOT@", "@LEAF@")
GARBAGE = ("@ROOT@", "@TRUNCATED@")


def accepted(*objects: Object) -> Ledger:
    """A ledger whose set is in use."""
    ledger = ledger_of(*objects)
    proposal = ledger.propose()
    assert not proposal.missing
    ledger.accept(proposal)
    return ledger


def put(ledger: Ledger, value: Object) -> bool:
    return ledger.put(key_of(value), value)


def found(proposal: Proposal, key: Key) -> Resource:
    return next(resource for resource in proposal.resources if resource.label == label_of(key))


def reason(proposal: Proposal, key: Key) -> str:
    """Why a resource of the set cannot be used; empty when it can."""
    parameters = found(proposal, key).parameters
    return parameters.reason if isinstance(parameters, Unusable) else ""


def level(proposal: Proposal, key: Key = VERIFIER) -> Level:
    parameters = found(proposal, key).parameters
    assert isinstance(parameters, NotationParameters)
    return parameters.trust_policy_doc.statements[0].level


def paths(proposal: Proposal, key: Key) -> list[str]:
    return [fault.path for fault in proposal.faults[key]]


# -- good and bad -----------------------------------------------------------------------------------------------------


def test_a_good_set_is_proposed_without_faults() -> None:
    proposal = ledger_of(*good()).propose()
    assert (proposal.error, proposal.missing) == (None, ())
    assert all(resource.is_usable for resource in proposal.resources)
    assert proposal.resources.may_be_incomplete


def test_n65_a_bad_update_leaves_the_last_good_version_in_force_and_is_told() -> None:
    """The fault names the key, for the status; the set is the one in use."""
    ledger = accepted(*good())
    before = ledger.propose()
    assert put(ledger, one("Verifier", BAD, generation=2))
    after = ledger.propose()
    assert after.resources.digest == before.resources.digest
    assert level(after) is Level.STRICT
    assert paths(after, VERIFIER) == [
        "spec.parameters.trustPolicyDoc.trustPolicies[0].signatureVerification.level",
    ]
    assert after.generations[VERIFIER] == 2
    assert after.error is not None
    assert "level" in str(after.error)


@pytest.mark.parametrize(
    ("kind", "change", "key"),
    [
        ("Store", ("ttl: 10", "ttl: soon"), STORE),
        ("Verifier", ("name: notation", "name: cosine"), VERIFIER),
        ("KeyManagementProvider", GARBAGE, KMP),
        ("Policy", ("signature: any", "signature: some"), POLICY),
    ],
    ids=["Store", "Verifier", "KeyManagementProvider", "Policy"],
)
def test_a_bad_update_of_any_kind_replaces_nothing_and_mending_it_counts(
    kind: str, change: tuple[str, str], key: Key
) -> None:
    ledger = accepted(*good())
    digest = ledger.propose().resources.digest
    put(ledger, one(kind, change, generation=2))
    assert ledger.propose().resources.digest == digest
    assert ledger.propose().faults[key]
    put(ledger, one(kind, generation=3))
    healed = ledger.propose()
    assert (healed.resources.digest, healed.error) == (digest, None)


@pytest.mark.parametrize("key", [STORE, VERIFIER, KMP, POLICY], ids=lambda key: key[0])
def test_an_object_that_never_was_good_denies_in_its_place(key: Key) -> None:
    """After a start there is no former version. Left out, others would decide in its place."""
    change = {
        "Store": ("ttl: 10", "ttl: soon"),
        "Verifier": BAD,
        "KeyManagementProvider": GARBAGE,
        "Policy": ("signature: any", "signature: some"),
    }
    proposal = ledger_of(*(one(kind, change[kind]) if kind == key[0] else one(kind) for kind in change)).propose()
    assert reason(proposal, key).startswith(f"{label_of(key)} cannot be used: spec.parameters")
    assert bool(proposal.missing) == (key is not KMP)


def test_a_verifier_that_cannot_be_read_holds_up_the_artifacts_it_was_to_judge() -> None:
    broken = one("Verifier", BAD, ("artifactTypes: application/vnd.cncf.notary.signature", "artifactTypes: a/b, c/d,"))
    assert found(ledger_of(*good(), broken).propose(), VERIFIER).artifact_types == {"a/b", "c/d"}
    broken["spec"]["artifactTypes"] = 5
    assert found(ledger_of(*good(), broken).propose(), VERIFIER).artifact_types == frozenset()
    broken["spec"] = "nothing"
    assert found(ledger_of(*good(), broken).propose(), VERIFIER).artifact_types == frozenset()


def test_a_stand_in_for_other_artifacts_is_another_set() -> None:
    """The reason is the same, but what is held up is not: it has to be put to use."""
    first = ledger_of(*good()[1:], one("Verifier", BAD))
    other = ("artifactTypes: application/vnd.cncf.notary.signature", "artifactTypes: a/b")
    second = ledger_of(*good()[1:], one("Verifier", BAD, other))
    assert reason(first.propose(), VERIFIER) == reason(second.propose(), VERIFIER)
    assert first.propose().resources.digest != second.propose().resources.digest


def test_a_long_reason_is_cut() -> None:
    """It goes into answers."""
    broken = one("Store")
    broken["spec"]["parameters"] = {"registries": [{"host": "UPPER" * 40, "x" * 60: 1} for _ in range(3)]}
    text = reason(ledger_of(*good(), broken).propose(), STORE)
    assert len(text) <= 300
    long = one("KeyManagementProvider", ("  type: inline", "  type: " + "y" * 10), uid="9")
    long["metadata"]["name"] = ".".join(["n" * 60] * 4)
    text = reason(ledger_of(*good(), long).propose(), key_of(long))
    assert len(text) == 300
    assert text.endswith("…")


def test_an_object_without_anything_is_told_what_it_lacks() -> None:
    empty = {"metadata": {"name": "store-oras"}}
    ledger = ledger_of(*good())
    ledger.put(STORE, empty)
    assert paths(ledger.propose(), STORE) == ["spec"]


def test_an_object_that_is_too_large_is_refused_unread() -> None:
    """And its status does not make it larger."""
    large = one("Store")
    large["spec"]["parameters"]["localCachePath"] = "x" * MAX_OBJECT_BYTES
    [fault] = ledger_of(*good(), large).propose().faults[STORE]
    assert fault.message == f"has more than {MAX_OBJECT_BYTES} bytes"
    [fault] = ledger_of(*good(), tenant(large)).propose().faults[key_of(tenant(large))]
    assert fault.message == f"has more than {MAX_TENANT_BYTES} bytes"
    heavy = one("Store")
    heavy["status"] = {"error": "x" * MAX_OBJECT_BYTES}
    heavy["metadata"]["managedFields"] = [{"x": "y" * MAX_OBJECT_BYTES}]
    assert ledger_of(*good(), heavy).propose().error is None


def test_an_object_that_nobody_foresaw_is_refused_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in reading denies one object; it must not end the process that decides on all images."""

    def read(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    ledger = accepted(*good())
    monkeypatch.setattr(subject, "read_document", read)
    with capture_logs() as logs:
        put(ledger, one("Verifier", PERMISSIVE, generation=2))
    assert [(line["event"], line["resource"]) for line in logs] == [
        ("reading a resource failed unexpectedly", "Verifier/verifier-notation")
    ]
    assert level(ledger.propose()) is Level.STRICT
    assert "the log says why" in str(ledger.propose().error)


# -- what changes the set ---------------------------------------------------------------------------------------------


def test_only_what_means_something_changes_the_set() -> None:
    """Status, labels and managed fields change with every write of ours; each would empty every cache."""
    ledger = accepted(*good())
    digest = ledger.propose().resources.digest
    dressed = one("Verifier")
    dressed["metadata"] |= {"labels": {"a": "b"}, "resourceVersion": "77", "managedFields": [{"manager": "x"}]}
    dressed["status"] = {"issuccess": True}
    assert not put(ledger, dressed)
    assert ledger.propose().resources.digest == digest
    reordered = json.loads(json.dumps(one("Verifier"), sort_keys=True))
    assert not put(ledger, reordered)


def test_a_new_generation_of_the_same_content_is_told_but_changes_nothing() -> None:
    """The status has to carry it."""
    ledger = accepted(*good())
    digest = ledger.propose().resources.digest
    assert put(ledger, one("Verifier", generation=2))
    proposal = ledger.propose()
    assert proposal.resources.digest == digest
    assert proposal.generations[VERIFIER] == 2


@pytest.mark.parametrize("kind", ["Store", "Verifier", "KeyManagementProvider", "Policy"])
def test_every_change_of_a_spec_changes_the_set(kind: str) -> None:
    changes = {
        "Store": ("cacheEnabled: true", "useHttp: true"),
        "Verifier": PERMISSIVE,
        "KeyManagementProvider": ("@ROOT@", "@CHAIN@"),
        "Policy": ("default: all", "default: any"),
    }
    ledger = accepted(*good())
    digest = ledger.propose().resources.digest
    put(ledger, one(kind, changes[kind], generation=2))
    proposal = ledger.propose()
    assert proposal.error is None
    assert proposal.resources.digest != digest


# -- what resources say of each other ---------------------------------------------------------------------------------


def test_a_deleted_key_provider_is_gone_at_once() -> None:
    """The Verifier stays as it is, and what it needs is denied. The status says why; nothing brings the keys back."""
    ledger = accepted(*good())
    assert ledger.forget(KMP)
    proposal = ledger.propose()
    assert proposal.resources.key_providers == ()
    assert found(proposal, VERIFIER).is_usable
    assert paths(proposal, VERIFIER) == ["spec.parameters.verificationCertStores.ca.certs[0]"]
    ledger.accept(proposal)
    assert ledger.propose().resources.key_providers == ()
    assert not ledger.forget(KMP)


def test_a_deleted_key_provider_that_nobody_needs_is_no_fault() -> None:
    spare = one("KeyManagementProvider")
    spare["metadata"]["name"] = "spare"
    ledger = accepted(*good(), spare)
    ledger.forget(key_of(spare))
    assert ledger.propose().error is None


def test_another_object_of_the_same_name_never_gets_the_former_ones_good_version() -> None:
    """It was deleted and made anew, and the deletion was missed."""
    ledger = accepted(*good())
    put(ledger, one("KeyManagementProvider", GARBAGE, uid="2"))
    assert reason(ledger.propose(), KMP)


def test_a_change_of_keys_counts_even_if_it_leaves_a_trust_store_empty() -> None:
    """Who replaces a root with a leaf takes the root away: an admission by the old root would be a wrong yes."""
    ledger = accepted(*good())
    put(ledger, one("KeyManagementProvider", LEAF, generation=2))
    proposal = ledger.propose()
    assert (proposal.faults[KMP], reason(proposal, KMP)) == ((), "")
    assert (
        found(proposal, KMP).parameters
        == found(ledger_of(one("KeyManagementProvider", LEAF)).propose(), KMP).parameters
    )
    assert "holds no certificate that ca:certs can use" in proposal.faults[VERIFIER][0].message


def test_an_update_that_names_what_is_not_there_waits_for_it() -> None:
    """kubectl apply of a folder: the Verifier comes before the key provider that it names."""
    ledger = accepted(*good())
    renamed = one("Verifier", ("[ratify-notation-inline-cert-0]", "[next]"), PERMISSIVE, generation=2)
    put(ledger, renamed)
    proposal = ledger.propose()
    assert level(proposal) is Level.STRICT
    assert paths(proposal, VERIFIER) == ["spec.parameters.verificationCertStores.ca.certs[0]"]
    following = one("KeyManagementProvider", uid="2")
    following["metadata"]["name"] = "next"
    put(ledger, following)
    proposal = ledger.propose()
    assert (level(proposal), proposal.error) == (Level.PERMISSIVE, None)


def test_a_new_verifier_that_names_what_is_not_there_is_in_force_and_denies_what_needs_it() -> None:
    """It never was different; the assembly puts a stand-in where the key provider would be."""
    proposal = ledger_of(*(value for value in good() if value["kind"] != "KeyManagementProvider")).propose()
    assert found(proposal, VERIFIER).is_usable
    assert paths(proposal, VERIFIER) == ["spec.parameters.verificationCertStores.ca.certs[0]"]


def test_a_verifier_that_contradicts_itself_cannot_be_used() -> None:
    contradictory = one("Verifier", ('trustStores: ["ca:certs"]', 'trustStores: ["ca:others"]'))
    proposal = ledger_of(*good()[2:], good()[0], contradictory).propose()
    assert "ca:others is not in verificationCertStores" in reason(proposal, VERIFIER)
    ledger = accepted(*good())
    put(ledger, contradictory | {"metadata": contradictory["metadata"] | {"generation": 2}})
    assert reason(ledger.propose(), VERIFIER) == ""
    assert paths(ledger.propose(), VERIFIER) == ["spec.parameters.trustPolicyDoc.trustPolicies[0].trustStores[0]"]


def test_one_bad_object_keeps_no_other_from_changing() -> None:
    """Two people work on the cluster; the mistake of one is not the other's."""
    ledger = accepted(*good())
    put(ledger, one("Store", ("ttl: 10", "ttl: soon"), generation=2))
    put(ledger, one("Verifier", PERMISSIVE, generation=2))
    proposal = ledger.propose()
    assert level(proposal) is Level.PERMISSIVE
    assert [key for key, faults in proposal.faults.items() if faults] == [STORE]


def test_a_tenants_broken_verifier_never_gives_way_to_the_clusters() -> None:
    """It has a place in the namespace that it was written for: the cluster's may be laxer."""
    proposal = ledger_of(*good(), tenant(one("Verifier", BAD, uid="2"))).propose()
    [verifier] = proposal.resources.in_scope(Component.VERIFIER, "team-a")
    assert not verifier.is_usable
    assert not proposal.missing


def test_a_set_that_decides_nowhere_says_what_it_lacks() -> None:
    proposal = ledger_of(one("Verifier"), one("KeyManagementProvider")).propose()
    assert [str(fault) for fault in proposal.missing] == [
        "configuration: lacks a Store and a Policy; it takes a Store, a Verifier and a Policy to decide"
    ]
    assert (
        not ledger_of(*(tenant(value) for value in good() if value["kind"] != "KeyManagementProvider"))
        .propose()
        .missing
    )


def test_nothing_but_stand_ins_is_as_good_as_nothing() -> None:
    ledger = ledger_of(*(one(kind) for kind in ("Store", "KeyManagementProvider", "Policy")), one("Verifier", BAD))
    assert "lacks a Verifier" in str(ledger.propose().missing[0])


def test_a_tenant_learns_nothing_of_what_others_have() -> None:
    """What a fault suggests is within the tenant's reach."""
    theirs = tenant(one("KeyManagementProvider", uid="3"), "team-b")
    curious = one("Verifier", ("[ratify-notation-inline-cert-0]", "[team-b/ratify-notation-inline-cert-0]"), uid="2")
    [fault] = ledger_of(*good(), theirs, tenant(curious)).propose().faults[key_of(tenant(curious))]
    assert "team-b" not in fault.message.replace(
        "KeyManagementProvider team-b/ratify-notation-inline-cert-0 within", ""
    )


# -- what the assembly says -------------------------------------------------------------------------------------------


def refusal(key: Key, message: str = "file is missing") -> ConfigurationError:
    return ConfigurationError("CONFIG_INVALID", message, faults=[Fault("", label_of(key), "spec.parameters", message)])


def test_what_the_assembly_refuses_gives_way_to_the_last_good_version() -> None:
    ledger = accepted(*good())
    put(ledger, one("Verifier", PERMISSIVE, generation=2))
    assert ledger.refuse(ledger.propose(), refusal(VERIFIER))
    proposal = ledger.propose()
    assert level(proposal) is Level.STRICT
    assert proposal.faults[VERIFIER][0].message == "file is missing"


def test_what_the_assembly_refuses_and_never_was_good_denies() -> None:
    ledger = ledger_of(*good())
    assert ledger.refuse(ledger.propose(), refusal(STORE))
    proposal = ledger.propose()
    assert reason(proposal, STORE) == "Store/store-oras cannot be used: spec.parameters: file is missing"
    assert proposal.missing


def test_what_was_refused_is_proposed_again_when_it_is_time() -> None:
    """A file is there by now. Until it is in use its fault is told."""
    ledger = accepted(*good())
    put(ledger, one("Verifier", PERMISSIVE, generation=2))
    ledger.refuse(ledger.propose(), refusal(VERIFIER))
    ledger.reconsider()
    again = ledger.propose()
    assert level(again) is Level.PERMISSIVE
    assert again.faults[VERIFIER]
    assert ledger.refuse(again, refusal(VERIFIER, "still missing"))
    assert level(ledger.propose()) is Level.STRICT
    ledger.reconsider()
    again = ledger.propose()
    assert ledger.accept(again), "there are fewer faults now, which is to be told"
    assert ledger.propose().error is None
    assert not ledger.accept(ledger.propose())


def test_a_refusal_that_names_no_resource_blames_none() -> None:
    ledger = ledger_of(*good())
    assert not ledger.refuse(ledger.propose(), ConfigurationError("CONFIG_INVALID", "nobody knows"))
    assert not ledger.refuse(ledger.propose(), refusal(("Store", "", "another")))


def test_a_refusal_of_what_was_deleted_meanwhile_is_forgotten() -> None:
    """Building takes time, and the cluster goes on."""
    ledger = ledger_of(*good())
    proposal = ledger.propose()
    ledger.forget(STORE)
    assert ledger.refuse(proposal, refusal(STORE))
    put(ledger, one("Store", uid="2"))
    assert ledger.propose().error is None
    ledger.forget(VERIFIER)
    put(ledger, one("Verifier", uid="2"))
    ledger.accept(proposal)
    put(ledger, one("Verifier", BAD, uid="2", generation=2))
    assert reason(ledger.propose(), VERIFIER), "the deleted one's version is not the new one's"


def test_a_broken_stand_in_is_not_blamed_for_the_assemblys_fault() -> None:
    ledger = ledger_of(*good(), one("Verifier", BAD))
    assert not ledger.refuse(ledger.propose(), refusal(VERIFIER))


def test_refusals_of_versions_that_are_no_more_are_not_kept() -> None:
    """An object may change a million times."""
    ledger = accepted(*good())
    for number in range(5):
        put(ledger, one("Store", ("ttl: 10", f"ttl: {number}"), generation=number + 2))
        ledger.refuse(ledger.propose(), refusal(STORE))
    assert len(ledger._records[STORE].refused) == 1


# -- any order --------------------------------------------------------------------------------------------------------

VERSIONS: list[Object] = [
    one("Store"),
    one("Store", ("ttl: 10", "ttl: soon"), generation=2),
    one("Verifier"),
    one("Verifier", PERMISSIVE, generation=2),
    one("Verifier", BAD, generation=3),
    one("Verifier", ("[ratify-notation-inline-cert-0]", "[next]"), generation=4),
    one("KeyManagementProvider"),
    one("KeyManagementProvider", LEAF, generation=2),
    one("KeyManagementProvider", GARBAGE, generation=3),
    one("KeyManagementProvider", uid="other"),
    one("Policy"),
    one("Policy", ("signature: any", "signature: some"), generation=2),
    tenant(one("Verifier", uid="t")),
    tenant(one("Verifier", BAD, uid="t", generation=2)),
]
KEYS = sorted({key_of(value) for value in VERSIONS})

Steps = st.lists(
    st.one_of(
        st.sampled_from([("put", number) for number in range(len(VERSIONS))]),
        st.sampled_from([("forget", number) for number in range(len(KEYS))]),
        st.sampled_from([("use", number) for number in range(2)]),
    ),
    max_size=20,
)


def play(steps: list[tuple[str, int]]) -> tuple[Ledger, dict[Key, Object], dict[Key, set[str]]]:
    """Let things happen. Returns the ledger, what there is now, and the fingerprints of what was ever accepted."""
    ledger = Ledger()
    now: dict[Key, Object] = {}
    used: dict[Key, set[str]] = {}
    for what, number in steps:
        if what == "put":
            value = VERSIONS[number]
            key = key_of(value)
            if key in now and now[key]["metadata"]["uid"] != value["metadata"]["uid"]:
                used.pop(key, None)
            now[key] = value
            ledger.put(key, copy.deepcopy(value))
        elif what == "forget":
            now.pop(KEYS[number], None)
            used.pop(KEYS[number], None)
            ledger.forget(KEYS[number])
        else:
            proposal = ledger.propose()
            ledger.accept(proposal)
            for key, (_, reading) in proposal.chosen.items():
                if reading is not None:
                    used.setdefault(key, set()).add(reading.fingerprint)
    return ledger, now, used


@given(Steps)
def test_whatever_happens_what_is_said_depends_on_the_objects_as_they_are_now(steps: list[tuple[str, int]]) -> None:
    """Replicas that saw different histories write the same status."""
    ledger, now, _ = play(steps)
    fresh = ledger_of(*now.values())
    assert ledger.propose().faults == fresh.propose().faults
    assert ledger.propose().missing == fresh.propose().missing or any(ledger.propose().faults.values())


@given(Steps)
def test_whatever_happens_only_good_versions_are_in_the_set(steps: list[tuple[str, int]]) -> None:
    """Each is the newest and without faults of its own, or was in use before; what is gone is gone."""
    ledger, now, used = play(steps)
    proposal = ledger.propose()
    assert {label_of(key) for key in now} == {resource.label for resource in proposal.resources}
    for key, (_, reading) in proposal.chosen.items():
        newest = ledger._records[key].newest
        if reading is None:
            assert not found(proposal, key).is_usable
        elif reading is newest:
            assert not reading.faults
        else:
            assert reading.fingerprint in used[key]
    if not any(proposal.faults.values()):
        assert proposal.resources.digest == ledger_of(*now.values()).propose().resources.digest


@given(st.permutations([value for value in good() for value in (value, tenant(value))]))
def test_objects_may_come_in_any_order(objects: list[Object]) -> None:
    proposal = ledger_of(*objects).propose()
    again = ledger_of(*reversed(objects)).propose()
    assert proposal.resources.digest == again.resources.digest
    assert [one.label for one in proposal.resources] == [one.label for one in again.resources]
    assert proposal.faults == again.faults


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(sorted(KINDS)), JSON, st.dictionaries(st.text(max_size=8), JSON, max_size=3))
def test_any_content_is_read_or_refused(kind: str, spec: Any, rest: dict[str, Any]) -> None:
    """Whatever somebody could write into an object: it never becomes an exception, or a resource with faults."""
    namespace = "team-a" if KINDS[kind].namespaced else ""
    key = (kind, namespace, "some")
    ledger = ledger_of(*good())
    with capture_logs() as logs:
        ledger.put(key, {**rest, "metadata": {"name": "some", "uid": "x"}, "spec": spec})
    assert logs == []
    proposal = ledger.propose()
    assert bool(proposal.faults[key]) != (key in proposal.newest)
    json.dumps([str(fault) for fault in proposal.faults[key]])


@given(
    JSON, st.sampled_from(["oras", "notation", "inline", "config-policy", "oci-layout"]), st.sampled_from(sorted(KINDS))
)
def test_any_parameters_are_read_or_refused(parameters: Any, name: str, kind: str) -> None:
    key = (kind, "team-a" if KINDS[kind].namespaced else "", "ratify-policy")
    ledger = ledger_of(*good())
    spec = {"name": name, "type": name, "provider": name, "artifactTypes": "*", "parameters": parameters}
    with capture_logs() as logs:
        ledger.put(key, {"metadata": {"name": "ratify-policy", "uid": "x"}, "spec": spec})
    assert logs == []
    proposal = ledger.propose()
    assert proposal.faults[key] or found(proposal, key).is_usable


def test_faults_of_a_large_cluster_are_told_in_part() -> None:
    """Nobody reads ten thousand lines."""
    values = []
    for number in range(150):
        value = one("Store", ("ttl: 10", "ttl: soon"), uid=str(number))
        value["metadata"]["name"] = f"store-{number}"
        values.append(value)
    error = ledger_of(*good(), *values).propose().error
    assert error is not None
    assert len(error.faults) == 100
    assert "(and 149 more)" in str(error)


def test_a_verifier_that_names_thousands_that_are_not_there_is_judged_in_passing() -> None:
    """A tenant may write that. Comparing each name with all that there are would take minutes, for everybody."""
    lines = "\n".join(
        f"        s{store}: [{', '.join(f'c{store}x{index}' for index in range(100))}]" for store in range(100)
    )
    many = one("Verifier", ("        certs: [ratify-notation-inline-cert-0]", lines), uid="2")
    spares = []
    for number in range(100):
        spare = one("KeyManagementProvider", uid=f"k{number}")
        spare["metadata"]["name"] = f"ratify-notation-inline-cert-0-{number}x"
        spares.append(spare)
    faults = ledger_of(*good(), *spares, tenant(many)).propose().faults[key_of(tenant(many))]
    assert len(faults) == 100
    absent = [fault.message for fault in faults if fault.message.startswith("there is no KeyManagementProvider")]
    assert sum("; known: " in message for message in absent) == 20


def test_versions_of_ratify_are_the_same_resource() -> None:
    """The API server gives each object in the version asked for; the other must not be another set."""
    former = from_yaml(
        "apiVersion: config.ratify.deislabs.io/v1alpha1\n" + "kind: Store\nmetadata: {name: s}\nspec: {name: oras}"
    )
    newer = copy.deepcopy(former) | {"apiVersion": "config.ratify.deislabs.io/v1beta1"}
    digests = {ledger_of(value).propose().resources.digest for value in (former, newer)}
    assert len(digests) == 1


def test_generations_are_numbers_or_nothing() -> None:
    assert [subject.generation_of({"metadata": {"generation": value}}) for value in (3, None, "4")] == [3, 0, 0]
