"""References, digests, descriptors and manifests: the grammar, and what an attacker writes instead."""

from __future__ import annotations

import contextlib
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import InvalidKey, Refused
from provider.oci import (
    MAX_MANIFEST_BYTES,
    MEDIA_TYPE_ARTIFACT_MANIFEST,
    MEDIA_TYPE_EMPTY,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    Reference,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
DESCRIPTOR = {"mediaType": MEDIA_TYPE_EMPTY, "digest": DIGEST, "size": 2}


@pytest.mark.parametrize(
    ("text", "normal", "repository"),
    [
        ("nginx", "docker.io/library/nginx:latest", "docker.io/library/nginx"),
        ("nginx:1.27", "docker.io/library/nginx:1.27", "docker.io/library/nginx"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest", "docker.io/library/nginx"),
        ("team/app", "docker.io/team/app:latest", "docker.io/team/app"),
        ("localhost/app", "localhost/app:latest", "localhost/app"),
        ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1", "localhost:5000/a/b"),
        ("[::1]:5000/app:v1", "[::1]:5000/app:v1", "[::1]:5000/app"),
        ("127.0.0.1/app", "127.0.0.1/app:latest", "127.0.0.1/app"),
        ("REGISTRY/app", "REGISTRY/app:latest", "REGISTRY/app"),
        (f"reg.example.com/app@{DIGEST}", f"reg.example.com/app@{DIGEST}", "reg.example.com/app"),
        (f"reg.example.com/app:v1@{DIGEST}", f"reg.example.com/app@{DIGEST}", "reg.example.com/app"),
        (
            "reg.example.com/a__b/c-d/e.f/g--h",
            "reg.example.com/a__b/c-d/e.f/g--h:latest",
            "reg.example.com/a__b/c-d/e.f/g--h",
        ),
    ],
)
def test_n34_references_are_normalised_as_the_runtime_does(text: str, normal: str, repository: str) -> None:
    reference = Reference.parse(text)
    assert (str(reference), reference.repository) == (normal, repository)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "nginx ",
        "nginx\n",
        "NGINX",
        "a/B",
        "reg.example.com/",
        "reg.example.com//app",
        "reg.example.com/../app",
        "reg.example.com/a/./b",
        "reg.example.com/a%2fb",
        "reg.example.com/app?x=1",
        "reg.example.com/app#x",
        "reg.example.com/app:",
        "reg.example.com/app:-v1",
        "reg.example.com/app:v1:v2",
        "reg.example.com/app:" + "v" * 129,
        "reg.example.com/app@",
        f"reg.example.com/app@{DIGEST}@{DIGEST}",
        "https://reg.example.com/app",
        "user@reg.example.com/app",
        "reg.example.com:/app",
        "reg.example.com:0/app",
        "reg.example.com:0443/app",
        "reg.example.com:65536/app",
        "reg.example.com:５０００/app",
        "reg.example.com:99999999999999999999/app",
        ":5000/app",
        "-reg.example.com/app",
        "reg..example.com/app",
        "[::1/app",
        "[zz]:5000/app",
        "reg.exаmple.com/app",  # a Cyrillic letter
        "reg.example.com/аpp",
        "a." * 128 + "example.com/app",
        "reg.example.com/" + "a" * 256,
        "reg.example.com/" + "a" * 2000,
        "b]img",
        "a" * 30 + "!",
    ],
)
def test_n34_what_is_not_a_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        Reference.parse(text)
    assert caught.value.code == "REFERENCE_INVALID"


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:" + HEX.upper(),
        "sha256:" + HEX[:-1],
        "sha256:" + HEX + "0",
        "sha256:../../x",
        "sha256:",
        "sha1:" + HEX[:40],
        "blake3:" + HEX,
        "SHA256:" + HEX,
        HEX,
        "sha512:" + HEX,
        "sha256:" + HEX[:-1] + "\n",
    ],
)
def test_n33_what_is_not_a_supported_digest_is_refused(digest: str) -> None:
    with pytest.raises(InvalidKey):
        Reference.parse(f"reg.example.com/app@{digest}")


def test_digests_are_computed_and_compared_by_their_own_algorithm() -> None:
    for algorithm in ("sha256", "sha384", "sha512"):
        digest = Digest.of(b"content", algorithm)
        assert digest.matches(b"content")
        assert not digest.matches(b"other")
        assert Digest.parse(str(digest)) == digest


@given(st.text(alphabet=string.ascii_lowercase + "._-/:@[]A0", max_size=60))
def test_n23_any_text_gives_a_reference_that_reads_back_or_our_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidKey:
        return
    assert Reference.parse(str(reference)) == reference


def test_n35_a_path_that_ends_like_a_trusted_scope_stays_in_its_own_registry() -> None:
    assert Reference.parse("evil.io/x/trusted.io/org/img").repository == "evil.io/x/trusted.io/org/img"


def test_a_reference_is_pinned_without_its_tag() -> None:
    pinned = Reference.parse("reg.example.com/app:v1").at_digest(Digest.parse(DIGEST))
    assert str(pinned) == f"reg.example.com/app@{DIGEST}"


# -- descriptors and manifests ----------------------------------------------------------------------------------------


def manifest(**changes: object) -> bytes:
    members: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "artifactType": "application/x",
        "config": DESCRIPTOR,
        "layers": [{**DESCRIPTOR, "annotations": {"a": "b"}, "unknown": [1]}],
        "subject": DESCRIPTOR,
        "annotations": {"k": "v"},
    }
    members.update(changes)
    return json.dumps({key: value for key, value in members.items() if value != "absent"}).encode()


def test_a_manifest_is_read() -> None:
    read = Manifest.parse(manifest())
    assert (read.artifact_type, len(read.layers), read.annotations) == ("application/x", 1, {"k": "v"})
    assert read.config == read.subject == Descriptor.parse(DESCRIPTOR)
    assert read.layers[0].annotations == {"a": "b"}
    bare = Manifest.parse(manifest(artifactType="absent", subject="absent", annotations=None))
    assert (bare.artifact_type, bare.subject, bare.annotations) == (None, None, {})


def test_the_withdrawn_artifact_manifest_is_read() -> None:
    members = {"mediaType": MEDIA_TYPE_ARTIFACT_MANIFEST, "artifactType": "application/x", "blobs": [DESCRIPTOR]}
    read = Manifest.parse(json.dumps(members).encode())
    assert (read.config, len(read.layers)) == (None, 1)
    assert Manifest.parse(json.dumps({**members, "blobs": []}).encode()).layers == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"schemaVersion":2,"schemaVersion":2}',
        manifest(schemaVersion=1),
        manifest(mediaType=MEDIA_TYPE_INDEX),
        manifest(mediaType="absent"),
        manifest(config=None),
        manifest(config="absent"),
        manifest(layers="absent"),
        manifest(layers={}),
        manifest(layers=[1]),
        manifest(layers=[{**DESCRIPTOR, "size": "2"}]),
        manifest(layers=[{**DESCRIPTOR, "size": True}]),
        manifest(layers=[{**DESCRIPTOR, "size": -1}]),
        manifest(layers=[{**DESCRIPTOR, "size": 2.0}]),
        manifest(layers=[{**DESCRIPTOR, "digest": "sha256:x"}]),
        manifest(layers=[{**DESCRIPTOR, "digest": 1}]),
        manifest(layers=[{**DESCRIPTOR, "mediaType": "nonsense"}]),
        manifest(layers=[{**DESCRIPTOR, "mediaType": None}]),
        manifest(layers=[{**DESCRIPTOR, "artifactType": 1}]),
        manifest(layers=[{**DESCRIPTOR, "annotations": {"a": 1}}]),
        manifest(layers=[DESCRIPTOR] * 10_001),
        manifest(artifactType=3),
        manifest(annotations=[]),
        manifest(subject={"digest": DIGEST}),
    ],
)
def test_n25_a_malformed_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        Manifest.parse(data)
    assert caught.value.code == "MANIFEST_INVALID"


def test_n15_an_oversized_manifest_is_not_parsed() -> None:
    with pytest.raises(Refused, match="more than"):
        Manifest.parse(b" " * (MAX_MANIFEST_BYTES + 1))


def test_an_index_is_read_in_order() -> None:
    entries = [{**DESCRIPTOR, "artifactType": f"application/{name}"} for name in "ba"]
    index = Index.parse(json.dumps({"schemaVersion": 2, "manifests": entries, "annotations": {"a": "b"}}).encode())
    assert [entry.artifact_type for entry in index.manifests] == ["application/b", "application/a"]
    assert index.annotations == {"a": "b"}


@pytest.mark.parametrize(
    "members",
    [
        {"manifests": None},
        {"manifests": [None]},
        {"manifests": [], "mediaType": MEDIA_TYPE_MANIFEST},
        {"manifests": [DESCRIPTOR] * 10_001},
        {"manifests": [], "annotations": {"a": None}},
    ],
)
def test_n38_a_malformed_index_is_refused(members: dict[str, object]) -> None:
    with pytest.raises(Refused, match="index is malformed"):
        Index.parse(json.dumps(members).encode())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda leaf: (
            st.lists(leaf)
            | st.dictionaries(st.sampled_from(["mediaType", "digest", "size", "layers", "config", "manifests"]), leaf)
        ),
    )
)
def test_n70_any_json_gives_a_manifest_or_our_error(value: object) -> None:
    data = json.dumps(value).encode()
    for kind in (Manifest, Index):
        with contextlib.suppress(Refused):
            kind.parse(data)
