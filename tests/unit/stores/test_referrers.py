"""Lists of referrers without a registry: links, filters, tags."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from provider.errors import Undecided
from provider.oci import Descriptor, Digest, Index
from provider.stores.referrers import MAX_LINK_LENGTH, next_page, referrers_tag, select

PAGE = URL("https://reg.example.test:5000/v2/a/b/referrers/sha256:0?artifactType=x%2Fy", encoded=True)
SIGNATURE = "application/vnd.cncf.notary.signature"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], None),
        ([""], None),
        (['</v2/a/b/referrers/x?last=2>; rel="next"'], "/v2/a/b/referrers/x?last=2"),
        (["<?last=2>;rel=next"], "/v2/a/b/referrers/sha256:0?last=2"),
        (
            ['<./sha256:0?last=%2Fx%3D&n=1>; title="a, b"; REL="prev Next"'],
            "/v2/a/b/referrers/sha256:0?last=%2Fx%3D&n=1",
        ),
        (["</v2/first>; rel=first, </v2/second>; rel=next"], "/v2/second"),
        (["</v2/first>; rel=first", "</v2/second>; rel=next"], "/v2/second"),
        (["</v2/x>; rel=prev"], None),
        (["</v2/x>; rel=nextish"], None),
        (['</v2/x>; rel="not-next"'], None),
        # a registry behind a TLS proxy does not know its own scheme and port: they are not taken from it
        (["<http://reg.example.test/v2/x?last=1>; rel=next"], "/v2/x?last=1"),
        (["<https://REG.example.test:5000/v2/x#part>; rel=next"], "/v2/x"),
    ],
)
def test_the_link_to_the_next_page_is_found(fields: list[str], expected: str | None) -> None:
    found = next_page(PAGE, fields)
    assert found == (None if expected is None else URL(f"https://reg.example.test:5000{expected}", encoded=True))


@pytest.mark.parametrize(
    "field",
    [
        '<https://evil.example.org/v2/x>; rel="next"',
        '<//evil.example.org/v2/x>; rel="next"',
        '<https://reg.example.test.evil.org/v2/x>; rel="next"',
        '<https://user:pw@reg.example.test:5000/v2/x>; rel="next"',
        '<../../../../../admin>; rel="next"',
        '</v2/../admin>; rel="next"',
        '</v2/%2e%2e/admin>; rel="next"',
        '</admin>; rel="next"',
        '<\\\\evil.example.org/v2/x>; rel="next"',
        '</v2/a b>; rel="next"',
        '</v2/ä>; rel="next"',
        '<https://[/v2/x>; rel="next"',
        '<ftp://other/v2/x>; rel="next"',
        "</v2/x; rel=next",
        "next",
        "<" + "a" * MAX_LINK_LENGTH + ">; rel=next",
    ],
)
def test_n05_a_link_that_leads_away_or_cannot_be_read_ends_the_list(field: str) -> None:
    with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
        next_page(PAGE, [field])


@given(st.text(max_size=200) | st.text(alphabet='<>;," =relnxt/v2', max_size=200))
def test_any_link_leads_to_the_same_registry_or_nowhere(field: str) -> None:
    try:
        found = next_page(PAGE, [field, f"<{field}>;rel=next"])
    except Undecided:
        return
    assert found is None or (found.origin() == PAGE.origin() and found.raw_path.startswith("/v2/"))


@pytest.mark.parametrize("unit", [";a", " ", "<", ';a="\\"', "; rel =", "<>,", ';rel="next', " ;", '"'])
def test_n23_no_link_takes_more_than_quadratic_work_on_8_kib(unit: str) -> None:
    """Bounded by the suite's time limit: a regular expression that backtracks would need hours on these."""
    field = "<a>" + unit * ((MAX_LINK_LENGTH - 4) // len(unit))
    with contextlib.suppress(Undecided):
        next_page(PAGE, [field])


def test_the_referrers_tag_is_the_digest_cut_to_what_a_tag_may_be() -> None:
    assert referrers_tag(Digest("sha256", "0" * 64)) == "sha256-" + "0" * 64
    assert referrers_tag(Digest("sha512", "1" * 128)) == "sha512-" + "1" * 64


def page(*types: str | None, annotations: dict[str, str] | None = None) -> Index:
    entries = [
        {"mediaType": "a/b", "digest": f"sha256:{number:064x}", "size": 1, **({"artifactType": kind} if kind else {})}
        for number, kind in enumerate(types)
    ]
    return Index.parse(json.dumps({"manifests": entries, "annotations": annotations or {}}).encode())


@pytest.mark.parametrize(
    ("headers", "annotations", "expected"),
    [
        ({}, {}, [0]),
        ({"OCI-Filters-Applied": "artifactType"}, {}, [0, 2]),
        ({"OCI-Filters-Applied": "other, ARTIFACTTYPE"}, {}, [0, 2]),
        ({"OCI-Filters-Applied": "artifactTypes"}, {}, [0]),
        ({}, {"org.opencontainers.referrers.filtersApplied": "artifactType"}, [0, 2]),
    ],
)
def test_entries_are_selected_by_type_whatever_the_registry_did(
    headers: dict[str, str], annotations: dict[str, str], expected: list[int]
) -> None:
    found = select(page(SIGNATURE, "x/y", None, annotations=annotations), headers, SIGNATURE)
    assert [int(entry.digest.hex, 16) for entry in found] == expected
    assert {entry.artifact_type for entry in found} == {SIGNATURE}


def test_without_a_wanted_type_everything_is_selected_as_it_is() -> None:
    found: tuple[Descriptor, ...] = select(page(SIGNATURE, None), {}, None)
    assert [entry.artifact_type for entry in found] == [SIGNATURE, None]
