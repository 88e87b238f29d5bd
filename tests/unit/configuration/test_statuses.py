"""What the status of an object says: every fault with its key path, in the words of Ratify's columns."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.configuration.statuses import MAX_BRIEF_ERROR, MAX_ERROR, Observed, says, status_of
from provider.errors import Fault
from tests.simulators.kubernetes import merge_patch

FAULT = Fault("Store/s", "Store/s", "spec.parameters.ttl", "must be a whole number, found the text 'soon'")
LONG = Fault("v", "v", "spec.parameters.trustPolicyDoc.trustPolicies[0].signatureVerification.level", "is unknown " * 9)


def test_a_good_object_is_a_success_without_an_error() -> None:
    assert status_of((), 3) == {"issuccess": True, "observedGeneration": 3, "error": None, "brieferror": None}


def test_a_bad_object_says_every_fault_with_its_key_path() -> None:
    other = Fault("Store/s", "Store/s", "", "cannot be read")
    assert status_of((FAULT, other), 2) == {
        "issuccess": False,
        "observedGeneration": 2,
        "error": "spec.parameters.ttl: must be a whole number, found the text 'soon'; cannot be read",
        "brieferror": "spec.parameters.ttl: must be a whole number, found the text 'soon' (and 1 more)",
    }


@pytest.mark.parametrize("faults", [(LONG,), (LONG, LONG, FAULT), (Fault("", "", "", "x" * 300),) * 2])
def test_the_brief_error_fits_its_column(faults: tuple[Fault, ...]) -> None:
    """kubectl get shows it; the last step of the key path says more than its beginning."""
    brief = status_of(faults, 1)["brieferror"]
    assert len(brief) <= MAX_BRIEF_ERROR
    assert brief.startswith(("level: is unknown", "xxx"))
    assert ("more)" in brief) == (len(faults) > 1)


def test_an_error_has_an_end_and_no_control_characters() -> None:
    status = status_of((Fault("", "", "spec", "a\x1b[31mb\n" + "x" * 9000),), 1)
    assert len(status["error"]) == MAX_ERROR
    assert status["error"].isprintable()
    assert status["brieferror"].isprintable()


@given(st.lists(st.builds(Fault, st.just(""), st.just(""), st.text(max_size=200), st.text(max_size=200)), min_size=1))
def test_any_faults_make_a_status_that_an_api_server_takes(faults: list[Fault]) -> None:
    status = status_of(faults, 1)
    assert not status["issuccess"]
    assert len(status["brieferror"]) <= MAX_BRIEF_ERROR
    assert len(status["error"]) <= MAX_ERROR
    json.dumps(status).encode()


def test_properties_replace_all_former_ones() -> None:
    """A merge patch adds to what is there: a certificate that is gone would stay to be seen."""
    wanted = status_of((), 1, {"Keys": [{"Name": "k"}]})
    former = {"properties": {"Certificates": [{"Name": "old"}], "Keys": []}, "error": "was bad", "brieferror": "bad"}
    assert merge_patch(former, wanted) == {
        "issuccess": True,
        "observedGeneration": 1,
        "properties": {"Keys": [{"Name": "k"}]},
    }


def test_a_key_provider_that_lacks_something_says_so_beside_what_it_has() -> None:
    status = status_of((FAULT,), 2, {"Certificates": [{"Name": "a"}]})
    assert (status["issuccess"], status["properties"]) == (False, {"Certificates": [{"Name": "a"}], "Keys": None})


def test_properties_of_a_former_version_stay_while_the_newest_is_bad() -> None:
    """They tell of what is in force."""
    former = {"issuccess": True, "properties": {"Keys": [1]}}
    assert merge_patch(former, status_of((FAULT,), 2))["properties"] == {"Keys": [1]}


def test_what_was_written_is_recognised_as_it_comes_back() -> None:
    for wanted in (
        status_of((), 1),
        status_of((FAULT,), 1),
        status_of((), 1, {"Certificates": [{"Name": "a", "Version": ""}]}),
        status_of((), 1, {}),
    ):
        assert says(merge_patch({"lastfetchedtime": "then"}, wanted), wanted)
        assert not says({}, wanted) or not wanted
    assert says({"issuccess": True, "observedGeneration": 1, "error": "", "brieferror": ""}, status_of((), 1))
    assert not says(dict(status_of((FAULT,), 1)), status_of((FAULT,), 2))
    assert not says({"issuccess": True, "observedGeneration": 1, "error": "old"}, status_of((), 1))


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from(["issuccess", "error", "brieferror", "properties", "observedGeneration"]), VALUES)
)
def test_any_status_that_somebody_wrote_can_be_compared(found: dict[str, Any]) -> None:
    """Others may write what they like."""
    assert says(found, status_of((), 1, {"Keys": []})) in (True, False)
    observed = Observed.of({"metadata": {"uid": "u", "resourceVersion": "7", "generation": 2}, "status": found})
    assert (observed.uid, observed.resource_version, observed.generation, observed.status) == ("u", "7", 2, found)


@pytest.mark.parametrize("status", [None, "text", [1]])
def test_a_status_that_is_no_mapping_is_none(status: Any) -> None:
    assert Observed.of({"metadata": {}, "status": status}) == Observed("", "", 0, {})
