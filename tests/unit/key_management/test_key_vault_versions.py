"""Which versions of a certificate count: the newest few that may be used, and for a pinned one that one or none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.key_management.key_vault_versions import VersionFacts, VersionState, judge_versions

AT = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
IN_USE, OLDER, DISABLED = VersionState.IN_USE, VersionState.OLDER, VersionState.DISABLED
EXPIRED, EARLY = VersionState.EXPIRED, VersionState.NOT_YET_VALID


def version(number: int, age: int, **facts: object) -> VersionFacts:
    return VersionFacts(f"{number:032x}", created=AT - age * DAY, **facts)  # type: ignore[arg-type]


def judge(
    *versions: VersionFacts, pinned: str | None = None, limit: int = 2, keep_expired: bool = False
) -> list[tuple[int, VersionState]]:
    judged = judge_versions(versions, pinned=pinned, limit=limit, at=AT, keep_expired=keep_expired)
    return [(int(one.facts.version, 16), one.state) for one in judged]


def test_the_newest_two_count_whatever_the_order_of_the_list() -> None:
    """Key Vault lists versions by their random names; the time of creation says which is newer."""
    assert judge(version(1, 30), version(3, 1), version(2, 10)) == [(3, IN_USE), (2, IN_USE), (1, OLDER)]


def test_a_version_without_a_time_of_creation_is_the_oldest() -> None:
    assert judge(VersionFacts(f"{9:032x}"), version(1, 30), limit=1) == [(1, IN_USE), (9, OLDER)]


def test_versions_that_may_not_be_used_leave_their_place_to_older_ones() -> None:
    """And each is told with what it is."""
    assert judge(
        version(6, 0, not_before=AT + DAY),
        version(5, 1, enabled=False),
        version(4, 2),
        version(3, 3, expires=AT - DAY),
        version(2, 4),
        version(1, 5),
    ) == [(6, EARLY), (5, DISABLED), (4, IN_USE), (3, EXPIRED), (2, IN_USE), (1, OLDER)]


def test_expired_versions_count_where_a_time_stamp_decides() -> None:
    versions = version(2, 1, expires=AT - DAY), version(1, 2, expires=AT - DAY, enabled=False)
    assert judge(*versions, keep_expired=True) == [(2, IN_USE), (1, DISABLED)]


def test_a_disabled_version_is_disabled_before_it_is_expired() -> None:
    assert judge(version(1, 1, enabled=False, expires=AT - DAY)) == [(1, DISABLED)]


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"not_before": AT}, IN_USE),
        ({"not_before": AT + timedelta(seconds=1)}, EARLY),
        ({"expires": AT}, IN_USE),
        ({"expires": AT - timedelta(seconds=1)}, EXPIRED),
    ],
)
def test_both_ends_of_the_validity_belong_to_it(facts: dict[str, datetime], state: VersionState) -> None:
    assert judge(version(1, 1, **facts)) == [(1, state)]


@given(st.permutations([version(number, number) for number in range(1, 6)]), st.integers(1, 5))
def test_a_pinned_version_never_moves(versions: list[VersionFacts], limit: int) -> None:
    """However many newer ones come, and in whatever case it is written."""
    assert judge(*versions, pinned=f"{4:032X}", limit=limit) == [(4, IN_USE)]


def test_a_pinned_version_that_may_not_be_used_is_replaced_by_none() -> None:
    assert judge(version(2, 1), version(1, 2, enabled=False), pinned=f"{1:032x}") == [(1, DISABLED)]
    assert judge(version(2, 1), pinned=f"{1:032x}") == []


@given(
    st.lists(
        st.builds(
            VersionFacts,
            st.text("0123456789abcdef", min_size=32, max_size=32),
            st.booleans(),
            *[st.none() | st.datetimes(timezones=st.just(UTC))] * 3,
        ),
        max_size=8,
    ),
    st.integers(1, 4),
)
def test_never_more_than_the_limit_and_none_that_is_switched_off(versions: list[VersionFacts], limit: int) -> None:
    judged = judge_versions(versions, pinned=None, limit=limit, at=AT, keep_expired=True)
    used = [one.facts for one in judged if one.state is IN_USE]
    assert len(judged) == len(versions)
    assert len(used) <= limit
    assert all(one.enabled for one in used)
