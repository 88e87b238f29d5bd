"""A signature counts for the image that its payload describes, and for no other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import Refused
from provider.notation.envelope import Envelope, open_envelope
from provider.notation.json_objects import MAX_VALUES
from provider.notation.payload import check_metadata, check_payload, parse_payload
from provider.oci import Descriptor, Digest
from tests.simulators.signer import ABSENT, COSE, JWS, TARGET, Signer, change

IMAGE = Descriptor.parse(TARGET)


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.make()


def signed(signer: Signer, payload: object) -> Envelope:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return open_envelope(signer.cose(payload=data), COSE)


def about(**changes: object) -> dict[str, Any]:
    """A payload whose target differs from the image's."""
    return {"targetArtifact": change(TARGET, changes)}


def mismatch(signer: Signer, payload: object) -> Refused:
    with pytest.raises(Refused) as caught:
        check_payload(signed(signer, payload), IMAGE)
    assert caught.value.code == "PAYLOAD_MISMATCH"
    return caught.value


def test_the_payload_of_the_image_is_accepted(signer: Signer) -> None:
    assert check_payload(signed(signer, about()), IMAGE).target == IMAGE
    assert check_payload(open_envelope(signer.jws(), JWS), IMAGE).metadata == {}


@pytest.mark.parametrize(
    "payload",
    [
        {"targetArtifact": TARGET, "more": 1},
        about(artifactType="application/x.y"),
        about(urls=["http://a"], data="e30=", platform={"os": "linux"}),
        about(annotations={"a": "b"}),
        about(annotations=None),
        about(more={"deep": [1]}),
    ],
)
def test_everything_else_in_the_payload_is_ignored(signer: Signer, payload: object) -> None:
    assert check_payload(signed(signer, payload), IMAGE).target.digest == IMAGE.digest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("digest", "sha256:" + "b" * 64),
        ("digest", "sha512:" + "a" * 128),
        ("mediaType", "application/vnd.oci.image.index.v1+json"),
        ("mediaType", "application/vnd.oci.image.manifest.v1+JSON"),
        ("size", 529),
        ("size", 0),
    ],
)
def test_n28_a_payload_of_another_image_is_refused(signer: Signer, name: str, value: object) -> None:
    error = mismatch(signer, about(**{name: value}))
    assert (error.expected, error.found) == (str(TARGET[name]), str(value))
    assert name in error.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": ABSENT},
        {"mediaType": ABSENT},
        {"size": ABSENT},
        {"size": "528"},
        {"size": 528.0},
        {"size": True},
        {"size": None},
        {"size": -528},
        {"digest": "sha256:" + "A" * 64},
        {"digest": "a" * 64},
        {"digest": ["sha256:" + "a" * 64]},
        {"mediaType": None},
        {"mediaType": ""},
        {"annotations": ["a"]},
        {"annotations": {"a": 1}},
        {"artifactType": 1},
    ],
)
def test_n61_a_target_that_is_no_descriptor_is_refused(signer: Signer, changes: Mapping[str, object]) -> None:
    assert "describes no artifact" in mismatch(signer, about(**changes)).reason


@pytest.mark.parametrize(
    "payload",
    [
        {},
        [],
        None,
        "x",
        {"targetArtifact": None},
        {"targetArtifact": [TARGET]},
        {"targetArtifact": json.dumps(TARGET)},
        TARGET,
        b"not json",
        b"\xef\xbb\xbf{}",
        b"{}\n{}",
    ],
)
def test_n61_a_payload_without_a_target_is_refused(signer: Signer, payload: object) -> None:
    assert "describes no artifact" in mismatch(signer, payload).reason


@pytest.mark.parametrize("name", ["TargetArtifact", "targetartifact", "\u0074argetArtifact".upper()])
def test_n61_a_target_in_another_case_is_refused(signer: Signer, name: str) -> None:
    assert "in case alone" in mismatch(signer, {name: TARGET}).reason
    assert "in case alone" in mismatch(signer, about() | {name: TARGET}).reason


@pytest.mark.parametrize("name", ["Digest", "MEDIATYPE", "\u017fize", "Annotations", "artifacttype"])
def test_n61_a_member_of_the_target_in_another_case_is_refused(signer: Signer, name: str) -> None:
    assert "in case alone" in mismatch(signer, about(**{name: "sha256:" + "b" * 64})).reason


def test_n61_a_target_twice_is_refused(signer: Signer) -> None:
    target = json.dumps(TARGET)
    payload = f'{{"targetArtifact": {target}, "targetArtifact": {target}}}'.encode()
    assert "duplicate" in mismatch(signer, payload).reason
    inner = target.replace("}", ', "size": 528}')
    assert "duplicate" in mismatch(signer, f'{{"targetArtifact": {inner}}}'.encode()).reason


def test_n16_a_crowded_payload_is_refused(signer: Signer) -> None:
    assert f"more than {MAX_VALUES}" in mismatch(signer, about(x=[0] * MAX_VALUES)).reason


# -- metadata ---------------------------------------------------------------------------------------------------------


def test_demanded_metadata_that_is_there_is_accepted(signer: Signer) -> None:
    envelope = signed(signer, about(annotations={"build": "42", "team": "a"}))
    assert check_metadata(envelope, {"build": "42"}) == {"build": "42", "team": "a"}
    assert check_metadata(envelope, {}) == {"build": "42", "team": "a"}


@pytest.mark.parametrize(
    ("required", "found"),
    [
        ({"build": "43"}, "42"),
        ({"build": ""}, "42"),
        ({"Build": "42"}, "no such entry"),
        ({"build": "42", "other": "x"}, "no such entry"),
    ],
)
def test_demanded_metadata_that_is_absent_or_different_is_refused(
    signer: Signer, required: Mapping[str, str], found: str
) -> None:
    with pytest.raises(Refused) as caught:
        check_metadata(signed(signer, about(annotations={"build": "42"})), required)
    assert (caught.value.code, caught.value.found) == ("METADATA_MISMATCH", found)


def test_metadata_of_a_payload_that_cannot_be_read_is_refused(signer: Signer) -> None:
    for envelope in (signed(signer, {}), signed(signer, b"x")):
        with pytest.raises(Refused, match="PAYLOAD_MISMATCH"):
            check_metadata(envelope, {})


# -- any bytes --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_n70_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Refused, match="PAYLOAD_MISMATCH"):
        parse_payload(data)


values = st.none() | st.booleans() | st.integers() | st.text(max_size=80) | st.dictionaries(st.text(), st.text())


@given(st.dictionaries(st.sampled_from([*TARGET, "annotations", "Size", "x"]), values, max_size=3))
def test_n70_any_target_is_refused_or_a_descriptor(changes: dict[str, object]) -> None:
    data = json.dumps(about(**changes)).encode()
    if changes.keys() <= {"x"}:
        assert parse_payload(data).target == IMAGE
        return
    with contextlib.suppress(Refused):
        assert isinstance(parse_payload(data).target.digest, Digest)
