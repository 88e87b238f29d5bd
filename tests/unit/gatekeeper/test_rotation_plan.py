"""What is decided about the serving certificate in every state that a cluster can be in.

A World is the Secret and the Providers with their versions; a Replica looks at it and acts, one thing at a time, so
that a crash or another replica can come between any two things.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.demo.pki import authority, issue, tls_server
from provider.errors import UsageError
from provider.gatekeeper.issuance import Authority, ServingPair, issue_authority, issue_pair, read_key
from provider.gatekeeper.keyring import MAX_OLD, Keyring
from provider.gatekeeper.rotation_plan import (
    Memory,
    Plan,
    ProviderSpec,
    RotationSettings,
    Seen,
    Step,
    carry_out,
    decide,
    remember,
)

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
VERIFY, MUTATE = "ratify-provider", "ratify-mutation-provider"
SPEC = ProviderSpec("https://ratify.gatekeeper-system:6001/ratify/gatekeeper/v1/verify", 5)
SETTINGS = RotationSettings("ratify", "gatekeeper-system", "ratify-tls", (VERIFY, MUTATE))


class World:
    """A cluster. `bundles` has the Providers that exist."""

    def __init__(self, keyring: Keyring | None = None) -> None:
        self.keyring = keyring
        self.bundles: dict[str, frozenset[x509.Certificate] | None] = {VERIFY: frozenset(), MUTATE: frozenset()}
        self.requested = False
        self.kept_by: str | None = None
        self.versions: dict[str, int] = {}
        self.at = START
        self.steps: list[Step] = []
        self.history: list[tuple[datetime, dict[str, frozenset[x509.Certificate] | None]]] = []

    def touch(self, name: str) -> None:
        self.versions[name] = self.versions.get(name, 0) + 1
        self.history.append((self.at, dict(self.bundles)))

    def trusted(self) -> list[frozenset[x509.Certificate] | None]:
        return list(self.bundles.values())

    def seen(self) -> Seen:
        return Seen(self.keyring, dict(self.bundles), self.requested, self.kept_by)


class Replica:
    """A process. Its memory is empty when it is made."""

    def __init__(self, settings: RotationSettings = SETTINGS) -> None:
        self.settings = settings
        self.memory = Memory()
        self.seen: Seen | None = None
        self.plan = Plan()
        self.versions: dict[str, int] = {}
        self.at = START

    def look(self, world: World) -> Plan:
        self.at, self.seen, self.versions = world.at, world.seen(), dict(world.versions)
        self.memory = remember(self.memory, self.seen, self.settings, self.at)
        self.plan = decide(self.memory, self.seen, self.settings, self.at)
        return self.plan

    def act(self, world: World) -> None:
        """Carry out what was planned at the last look; what has changed since then is not overwritten."""
        plan, seen = self.plan, self.seen
        self.plan, self.seen = Plan(), None
        if seen is None:
            return
        if plan.step is not None:
            if self._unchanged(world, "secret"):
                world.keyring = carry_out(plan.step, self.memory, seen, self.settings, self.at)
                world.requested = world.requested and plan.step not in (Step.PREPARE, Step.CREATE)
                world.steps.append(plan.step)
                world.touch("secret")
            return
        for name in plan.bundles:
            if self._unchanged(world, name) and name in world.bundles:
                world.bundles[name] = frozenset(plan.bundle)
                world.touch(name)
        for name in plan.restore:
            if name not in world.bundles:
                world.bundles[name] = frozenset(plan.bundle)
                world.touch(name)
        if plan.serve is not None:
            self.memory = replace(self.memory, served=plan.serve)

    def work(self, world: World) -> None:
        """Look and act until nothing is left to do."""
        for _ in range(12):
            if self.look(world).is_empty:
                return
            self.act(world)
        raise AssertionError(f"no end of work: {self.plan}, {world.steps}")

    @property
    def served(self) -> ServingPair:
        assert self.memory.served is not None
        return self.memory.served

    def _unchanged(self, world: World, name: str) -> bool:
        return world.versions.get(name, 0) == self.versions.get(name, 0)


def ours(at: datetime = START, **settings: Any) -> Keyring:
    """What CREATE writes."""
    return carry_out(Step.CREATE, Memory(), Seen(None, {}), replace(SETTINGS, **settings), at)


def healthy(keyring: Keyring | None = None, *, replicas: int = 1) -> tuple[World, list[Replica]]:
    """A cluster at rest."""
    world = World(ours() if keyring is None else keyring)
    members = [Replica() for _ in range(replicas)]
    for member in members:
        member.work(world)
    return world, members


def pass_time(world: World, members: list[Replica], duration: timedelta, every: timedelta = MINUTE) -> None:
    """Let time pass, with everybody at work."""
    end = world.at + duration
    while world.at < end:
        world.at = min(end, world.at + every)
        for member in members:
            member.work(world)


def foreign(names: tuple[str, ...] = SETTINGS.names[:1], *, days: int = 60, with_key: bool = False) -> Keyring:
    """A pair that somebody else made."""
    validity: dict[str, Any] = {"not_before": START - DAY, "not_after": START + days * DAY}
    root = issue({"CN": "their root"}, authority(), issuer=None, **{**validity, "not_after": START + 3650 * DAY})
    leaf = issue({"CN": "theirs"}, tls_server(names), issuer=root, **validity)
    theirs = Authority((root.certificate,), read_key(root.key_pem()) if with_key else None)
    return Keyring(theirs, ServingPair.of((leaf.certificate,), read_key(leaf.key_pem()), theirs.certificates))


# -- from nothing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyring", [None, Keyring()], ids=["no Secret", "empty Secret, as the chart makes it"])
def test_a_fresh_cluster_gets_an_authority_a_pair_and_bundles(keyring: Keyring | None) -> None:
    world, replica = World(keyring), Replica()
    replica.work(world)
    assert world.steps == [Step.CREATE]
    assert world.keyring is not None
    assert world.trusted() == [frozenset(world.keyring.trusted)] * 2
    assert replica.served == world.keyring.pair
    assert replica.served.names == {
        "ratify.gatekeeper-system",
        "ratify.gatekeeper-system.svc",
        "ratify.gatekeeper-system.svc.cluster.local",
    }
    assert len(world.keyring.trusted) == 1


def test_the_bundles_are_right_before_the_first_pair_is_served() -> None:
    world, replica = World(ours()), Replica()
    plan = replica.look(world)
    assert plan.bundles == (MUTATE, VERIFY)
    assert plan.serve is not None


def test_two_fresh_replicas_at_once_end_up_with_the_winners_pair() -> None:
    world, first, second = World(), Replica(), Replica()
    for replica in (first, second):
        assert replica.look(world).step is Step.CREATE
    first.act(world)
    winner = world.keyring
    second.act(world)
    assert world.keyring is winner
    for replica in (second, first):
        replica.work(world)
    assert first.served == second.served
    assert world.steps == [Step.CREATE]


def test_authorities_already_in_a_bundle_stay_trusted_for_a_while() -> None:
    """Replicas of before, or Ratify's, may be serving under them while the deployment is being updated."""
    theirs, expired = foreign(), ours(START - 900 * DAY)
    leaf = theirs.pair.certificate if theirs.pair else None
    world = World()
    world.bundles[VERIFY] = frozenset({*theirs.trusted, *expired.trusted, *((leaf,) if leaf else ())})
    world.bundles[MUTATE] = None
    replica = Replica()
    replica.work(world)
    assert world.keyring is not None
    assert world.keyring.old == theirs.trusted
    pass_time(world, [replica], SETTINGS.retire + HOUR, every=HOUR)
    assert world.keyring.old == ()
    assert world.trusted() == [frozenset(world.keyring.trusted)] * 2


# -- at rest ----------------------------------------------------------------------------------------------------------


def test_a_healthy_cluster_is_left_alone() -> None:
    world, members = healthy(replicas=3)
    version = dict(world.versions)
    pass_time(world, members, 59 * DAY, every=12 * HOUR)
    assert world.versions == version
    assert world.steps == []


# -- renewal of the serving certificate -------------------------------------------------------------------------------


def test_the_serving_certificate_is_renewed_a_month_ahead_under_the_same_authority() -> None:
    world, members = healthy(replicas=2)
    authority_before, before = world.keyring, members[0].served
    world.at = START + 60 * DAY - MINUTE
    members[0].work(world)
    assert world.steps == []
    world.at += 2 * MINUTE
    members[0].work(world)
    assert world.steps == [Step.ISSUE]
    assert members[0].served.certificate != before.certificate
    assert members[0].served.anchor == before.anchor
    assert authority_before is not None
    assert world.trusted() == [frozenset(authority_before.trusted)] * 2
    members[1].work(world)
    assert members[1].served == members[0].served
    assert world.steps == [Step.ISSUE]


def test_two_replicas_renewing_at_once_end_up_with_one_pair() -> None:
    world, members = healthy(replicas=2)
    world.at = START + 61 * DAY
    for replica in members:
        assert replica.look(world).step is Step.ISSUE
    for replica in members:
        replica.act(world)
    for replica in members:
        replica.work(world)
    assert world.steps == [Step.ISSUE]
    assert members[0].served == members[1].served


def test_a_cluster_that_was_switched_off_for_months_gets_a_new_pair_at_once() -> None:
    world, _ = healthy()
    world.at = START + 200 * DAY
    replica = Replica()
    replica.work(world)
    assert world.steps == [Step.ISSUE]
    assert replica.served.is_valid(world.at)


def test_a_cluster_that_was_switched_off_for_years_starts_anew() -> None:
    world, _ = healthy()
    world.at = START + 1000 * DAY
    replica = Replica()
    replica.work(world)
    assert world.steps == [Step.CREATE]
    assert replica.served.is_valid(world.at)
    assert world.keyring is not None
    assert len(world.keyring.old) == 1  # as far as the clock is right, it could go at once
    pass_time(world, [replica], SETTINGS.retire + HOUR, every=HOUR)
    assert world.keyring.old == ()


def test_a_serving_certificate_that_cannot_become_valid_for_longer_is_not_renewed_again_and_again() -> None:
    """The change of authority is stuck, because a caBundle cannot be written."""
    keyring = ours(ca_lifetime=181 * DAY)
    world, replica = World(keyring), Replica()
    world.at = START + 175 * DAY
    for _ in range(140):
        plan = replica.look(world)
        world.at += HOUR
        replica.plan = replace(plan, bundles=())
        replica.act(world)
    assert world.steps == [Step.ISSUE, Step.PREPARE]
    assert Step.PROMOTE not in world.steps


# -- change of the authority ------------------------------------------------------------------------------------------


def test_the_authority_is_changed_half_a_year_ahead_in_an_order_in_which_no_caller_is_lost() -> None:
    world, members = healthy(replicas=2)
    former = members[0].served
    world.at = START + 551 * DAY
    for replica in members:
        replica.work(world)
    assert world.steps == [Step.ISSUE, Step.PREPARE]
    assert world.keyring is not None
    assert world.keyring.coming is not None
    coming = world.keyring.coming.certificate
    assert all(bundle is not None and {former.anchor, coming} == bundle for bundle in world.trusted())
    pass_time(world, members, SETTINGS.settle - MINUTE)
    assert [replica.served.anchor for replica in members] == [former.anchor] * 2
    pass_time(world, members, 2 * MINUTE)
    assert world.steps == [Step.ISSUE, Step.PREPARE, Step.PROMOTE]
    assert [replica.served.anchor for replica in members] == [coming] * 2
    assert all(bundle == {former.anchor, coming} for bundle in world.trusted())
    assert world.keyring.coming is None
    pass_time(world, members, 89 * DAY, every=12 * HOUR)
    assert all(bundle is not None and former.anchor in bundle for bundle in world.trusted())
    pass_time(world, members, 2 * DAY, every=HOUR)
    assert world.steps == [Step.ISSUE, Step.PREPARE, Step.PROMOTE, Step.ISSUE, Step.DROP]
    assert world.trusted() == [frozenset({coming})] * 2


def test_n67_no_replica_can_serve_under_an_authority_that_was_dropped_because_it_was_due() -> None:
    """One that has lost its way to the Kubernetes API right after it took the last certificate of that authority."""
    world, (awake, away) = healthy(replicas=2)
    world.at = START + 551 * DAY
    away.work(world)
    while world.steps[-1] is not Step.DROP:
        pass_time(world, [awake], DAY, every=DAY)
        if away.served.is_valid(world.at):
            assert all(bundle is not None and away.served.anchor in bundle for bundle in world.trusted())
    assert not away.served.is_valid(world.at)


def test_an_authority_that_somebody_wanted_to_be_rid_of_goes_after_a_day() -> None:
    world, members = healthy(replicas=2)
    former = members[0].served.anchor
    world.requested = True
    pass_time(world, members, SETTINGS.settle + 2 * MINUTE)
    assert world.keyring is not None
    assert former in world.keyring.old
    pass_time(world, members, SETTINGS.retire, every=HOUR)
    assert world.steps[-1] is Step.DROP
    assert world.trusted() == [frozenset({members[0].served.anchor})] * 2


def test_a_new_authority_can_be_asked_for() -> None:
    world, members = healthy(replicas=2)
    former = members[0].served.anchor
    world.requested = True
    pass_time(world, members, SETTINGS.settle + 2 * MINUTE)
    assert not world.requested
    assert world.steps == [Step.PREPARE, Step.PROMOTE]
    assert all(replica.served.anchor != former for replica in members)


def test_a_request_during_a_change_leads_to_one_more() -> None:
    """The key that is on its way may be the very one that was seen by somebody."""
    world, members = healthy()
    world.requested = True
    members[0].work(world)
    world.requested = True
    pass_time(world, members, 3 * SETTINGS.settle)
    assert world.steps == [Step.PREPARE, Step.PROMOTE, Step.PREPARE, Step.PROMOTE]


def test_the_settle_time_begins_anew_when_a_bundle_lost_the_coming_authority() -> None:
    world, (replica,) = healthy()
    world.requested = True
    replica.work(world)
    pass_time(world, [replica], SETTINGS.settle - 2 * MINUTE)
    world.bundles[MUTATE] = frozenset({replica.served.anchor})
    world.touch(MUTATE)
    replica.work(world)
    pass_time(world, [replica], SETTINGS.settle - MINUTE)
    assert Step.PROMOTE not in world.steps
    pass_time(world, [replica], 2 * MINUTE)
    assert Step.PROMOTE in world.steps


@pytest.mark.parametrize("made", [START - 600 * DAY, START + 2 * DAY], ids=["nearly expired", "not valid yet"])
def test_a_coming_authority_that_is_of_no_use_is_made_anew(made: datetime) -> None:
    """Nobody was there to put it to use for years, or it was made by a clock that is wrong."""
    world, (replica,) = healthy()
    assert world.keyring is not None
    stale = ours(made).authority
    world.keyring = replace(world.keyring, coming=stale)
    world.touch("secret")
    replica.work(world)
    assert world.steps == [Step.PREPARE]
    assert world.keyring.coming != stale


@pytest.mark.parametrize("crash_after", range(8))
def test_a_crash_after_any_action_of_a_change_is_survived(crash_after: int) -> None:
    """The process dies after its n-th action; a new one, that knows nothing, completes the change."""
    world, (replica,) = healthy()
    former = replica.served
    world.requested = True
    actions = 0
    for _ in range(40):
        replica.look(world)
        if not replica.plan.is_empty:
            if actions == crash_after:
                break
            actions += 1
        replica.act(world)
        world.at += MINUTE / 2
    successor = Replica()
    successor.work(world)
    assert successor.served.anchor in (world.bundles[VERIFY] or ())
    pass_time(world, [successor], 3 * SETTINGS.settle)
    assert successor.served.anchor != former.anchor
    pass_time(world, [successor], SETTINGS.retire, every=HOUR)
    assert world.keyring is not None
    assert world.keyring.trusted == (successor.served.anchor,)
    assert world.trusted() == [frozenset(world.keyring.trusted)] * 2
    assert sorted(step.value for step in world.steps) == ["drop", "prepare", "promote"]


def test_two_replicas_racing_at_every_write_change_the_authority_once() -> None:
    world, members = healthy(replicas=2)
    world.requested = True
    for _ in range(60):
        for replica in members:
            replica.look(world)
        for replica in members:
            replica.act(world)
        world.at += MINUTE
    assert world.steps == [Step.PREPARE, Step.PROMOTE]
    assert members[0].served == members[1].served


def test_a_replica_that_was_away_when_its_authority_was_dropped_enters_it_again() -> None:
    """It has just come back and has not gone over yet: callers must go on trusting it until it has."""
    world, members = healthy(replicas=2)
    awake, away = members
    world.requested = True
    pass_time(world, [awake], 2 * SETTINGS.settle)
    pass_time(world, [awake], SETTINGS.retire + HOUR, every=HOUR)
    assert world.steps[-1] is Step.DROP
    away.work(world)
    assert world.steps[-1] is Step.RETAIN
    assert away.served.anchor in (world.bundles[VERIFY] or ())
    pass_time(world, members, SETTINGS.settle + MINUTE)
    assert away.served == awake.served
    pass_time(world, members, SETTINGS.retire + HOUR, every=HOUR)
    assert world.keyring is not None
    assert world.keyring.old == ()


def test_a_fresh_replica_serves_what_everybody_serves_while_a_change_is_under_way() -> None:
    world, (replica,) = healthy()
    world.requested = True
    replica.work(world)
    late = Replica()
    late.work(world)
    assert late.served == replica.served


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["look", "act", "work", "crash", "ask"])), max_size=60))
@settings(max_examples=60)
def test_n67_in_no_order_of_events_does_a_replica_serve_what_some_caller_does_not_trust(
    events: list[tuple[int, str]],
) -> None:
    """Callers may lag behind every Provider by a minute; the settle time is five. Every replica is at work at least
    once in two minutes, and may have been interrupted at any point before."""
    lag = MINUTE
    world, members = healthy(replicas=3)
    world.history = [(START - HOUR, dict(world.bundles))]
    for number, (who, what) in enumerate(itertools.chain(events, [(i % 3, "work") for i in range(60)])):
        replica = members[who]
        if what == "crash":
            members[who] = Replica()
        elif what == "ask":
            world.requested = True
        else:
            getattr(replica, what)(world)
        world.at += MINUTE / 4
        if number % 8 == 7:
            for member in members:
                member.work(world)
        for member in members:
            pair = member.memory.served
            if pair is not None:
                assert pair.is_valid(world.at)
                for bundle in _bundles_in_use(world, lag):
                    assert pair.anchor in bundle


def _bundles_in_use(world: World, lag: timedelta) -> list[frozenset[x509.Certificate]]:
    """Bundles of all Providers that a caller may be using now."""
    recent = [bundles for at, bundles in world.history if at > world.at - lag]
    older = [bundles for at, bundles in world.history if at <= world.at - lag]
    return [bundle for bundles in (*older[-1:], *recent) for bundle in bundles.values() if bundle is not None]


# -- changes from outside: the Secret ---------------------------------------------------------------------------------


def test_a_deleted_secret_is_made_again_with_the_same_content_but_not_during_an_uninstallation() -> None:
    world, (replica,) = healthy()
    content = world.keyring
    world.keyring = None
    world.touch("secret")
    replica.work(world)
    pass_time(world, [replica], SETTINGS.absence - timedelta(seconds=1), every=timedelta(seconds=10))
    assert world.steps == []
    world.at += timedelta(seconds=2)
    replica.work(world)
    assert world.steps == [Step.RESTORE]
    assert world.keyring == content


def test_while_the_secret_is_missing_nothing_else_is_written() -> None:
    world, (replica,) = healthy()
    world.keyring = None
    world.bundles[VERIFY] = frozenset()
    assert replica.look(world) == Plan()


def test_a_deleted_secret_and_a_new_replica_make_a_new_authority_beside_the_former_one() -> None:
    """The way out of every tangle that the documentation names."""
    world, (old,) = healthy()
    former = old.served.anchor
    world.keyring = None
    world.touch("secret")
    old.work(world)
    fresh = Replica()
    fresh.work(world)
    assert world.steps == [Step.CREATE]
    assert fresh.served.anchor != former
    for replica in (old, fresh):
        replica.work(world)
    assert world.trusted() == [frozenset({former, fresh.served.anchor})] * 2
    pass_time(world, [old, fresh], SETTINGS.settle + MINUTE)
    assert old.served == fresh.served
    assert world.steps == [Step.CREATE]


def test_a_former_authority_that_somebody_takes_out_of_the_secret_is_trusted_no_longer() -> None:
    world, members = healthy(replicas=2)
    former = members[0].served.anchor
    world.requested = True
    pass_time(world, members, 2 * SETTINGS.settle)
    assert world.keyring is not None
    world.keyring = replace(world.keyring, old=())
    world.touch("secret")
    members[0].work(world)
    assert all(bundle is not None and former not in bundle for bundle in world.trusted())


def test_a_secret_that_came_back_in_time_is_not_written() -> None:
    world, (replica,) = healthy()
    content, world.keyring = world.keyring, None
    pass_time(world, [replica], SETTINGS.absence / 2, every=timedelta(seconds=10))
    world.keyring = content
    replica.work(world)
    world.keyring = None
    pass_time(world, [replica], SETTINGS.absence / 2, every=timedelta(seconds=10))
    assert world.steps == []


GARBAGE = [
    ("everything", lambda _: Keyring(faults=("tls.crt: garbage",)), Step.RESTORE),
    ("the authority", lambda good: replace(good, authority=None, pair=None), Step.RESTORE),
    ("the serving certificate", lambda good: replace(good, pair=None), Step.ISSUE),
    ("both keys", lambda good: Keyring(Authority(good.authority.certificates)), Step.RESTORE),
]


@pytest.mark.parametrize(("_what", "spoil", "step"), GARBAGE, ids=[case[0] for case in GARBAGE])
def test_garbage_in_the_secret_is_replaced_without_a_new_authority(_what: str, spoil: Any, step: Step) -> None:
    world, (replica,) = healthy()
    before, anchor = world.keyring, replica.served.anchor
    world.keyring = spoil(before)
    world.touch("secret")
    replica.work(world)
    assert world.steps == [step]
    assert replica.served.anchor == anchor
    assert world.keyring is not None
    assert world.keyring.trusted == (anchor,)
    if step is Step.RESTORE:
        assert world.keyring == before


@pytest.mark.parametrize(("_what", "spoil", "step"), GARBAGE, ids=[case[0] for case in GARBAGE])
def test_garbage_found_by_a_process_that_remembers_nothing_is_replaced_as_well(
    _what: str, spoil: Any, step: Step
) -> None:
    world, (old,) = healthy()
    world.keyring = spoil(world.keyring)
    fresh = Replica()
    fresh.work(world)
    assert world.steps == [Step.ISSUE if step is Step.ISSUE else Step.CREATE]
    assert fresh.served.is_valid(world.at)
    for replica in (old, fresh):
        replica.work(world)
        assert replica.served.anchor in (world.bundles[VERIFY] or ())
    pass_time(world, [old, fresh], SETTINGS.settle + MINUTE)
    assert old.served == fresh.served


def test_a_good_pair_of_somebody_else_is_adopted_when_every_caller_can_know_it() -> None:
    world, members = healthy(replicas=2)
    former = members[0].served
    theirs = foreign()
    world.keyring = theirs
    world.touch("secret")
    for replica in members:
        replica.work(world)
    assert world.steps == [Step.RETAIN]
    assert [replica.served for replica in members] == [former] * 2
    assert world.trusted() == [frozenset({former.anchor, *theirs.trusted})] * 2
    pass_time(world, members, SETTINGS.settle + MINUTE)
    assert [replica.served for replica in members] == [theirs.pair] * 2
    pass_time(world, members, SETTINGS.retire + HOUR, every=HOUR)
    assert world.trusted() == [frozenset(theirs.trusted)] * 2


def test_ratifys_own_pair_is_adopted_at_once_and_its_authority_used_further() -> None:
    """A cluster that is moved over: the same Secret, the same caBundle, not a moment without trust."""
    theirs = foreign(with_key=True)
    world = World(theirs)
    world.bundles = {VERIFY: frozenset(theirs.trusted), MUTATE: frozenset(theirs.trusted)}
    replica = Replica()
    replica.work(world)
    assert world.steps == []
    assert replica.served == theirs.pair
    world.at = START + 45 * DAY
    replica.work(world)
    assert world.steps == [Step.ISSUE]  # of 61 days, less than a third is left
    assert replica.served.anchor in theirs.trusted


def test_an_adopted_pair_without_its_authoritys_key_is_replaced_by_ours_when_it_is_due() -> None:
    theirs = foreign(days=60)
    world, (replica,) = healthy(theirs)
    assert replica.served == theirs.pair
    pass_time(world, [replica], 35 * DAY, every=DAY)
    assert world.steps == []
    pass_time(world, [replica], 6 * DAY, every=HOUR)
    assert world.steps[:2] == [Step.PREPARE, Step.PROMOTE]
    assert replica.served.is_valid(START + 80 * DAY)


@pytest.mark.parametrize(
    ("theirs", "at"),
    [
        (foreign(("somebody.else",)), START),
        (foreign(days=1), START + 2 * DAY),
        (foreign(), START - 2 * DAY),
    ],
    ids=["other names", "expired", "not valid yet"],
)
def test_a_pair_of_somebody_else_that_callers_would_refuse_is_not_adopted(theirs: Keyring, at: datetime) -> None:
    world = World(ours(START - 5 * DAY))
    world.at = at
    replica = Replica()
    replica.work(world)
    mine = world.keyring
    world.keyring = theirs
    world.touch("secret")
    replica.work(world)
    assert world.steps == [Step.RESTORE]
    assert world.keyring == mine


def test_an_older_copy_of_the_secret_put_back_by_a_backup_tool_is_taken_like_any_good_pair() -> None:
    world, members = healthy()
    copy = world.keyring
    world.requested = True
    pass_time(world, members, 2 * SETTINGS.settle)
    pass_time(world, members, 2 * SETTINGS.retire, every=HOUR)
    former = members[0].served
    world.keyring = copy
    world.touch("secret")
    members[0].work(world)
    assert members[0].served == former
    assert all(bundle is not None and former.anchor in bundle for bundle in world.trusted())
    pass_time(world, members, SETTINGS.settle + MINUTE)
    assert copy is not None
    assert members[0].served == copy.pair


def test_a_pair_is_gone_over_to_at_once_when_the_one_in_use_has_expired() -> None:
    """Nothing can be lost any more."""
    theirs = foreign()
    world, (replica,) = healthy(ours(START - 89 * DAY))
    assert replica.served.is_valid(START)
    replica.memory = replace(replica.memory, served=ours(START - 100 * DAY).pair)
    world.keyring = theirs
    world.touch("secret")
    replica.work(world)
    assert replica.served == theirs.pair


def test_secrets_replaced_again_and_again_do_not_fill_the_bundle_without_end() -> None:
    world, (replica,) = healthy()
    for _ in range(3 * MAX_OLD):
        world.keyring = replace(foreign(), old=world.keyring.old if world.keyring else ())
        world.touch("secret")
        pass_time(world, [replica], SETTINGS.settle + MINUTE)
    assert world.keyring is not None
    assert len(world.keyring.trusted) <= MAX_OLD + 1


@pytest.mark.parametrize("until", [None, START + 100 * 365 * DAY], ids=["unreadable", "in a hundred years"])
def test_an_end_of_trust_that_nobody_of_us_wrote_is_put_right(until: datetime | None) -> None:
    world, (replica,) = healthy()
    assert world.keyring is not None
    world.keyring = replace(world.keyring, old=foreign().trusted, old_until=until)
    world.touch("secret")
    replica.work(world)
    assert world.steps == [Step.RETAIN]
    pass_time(world, [replica], SETTINGS.retire + HOUR, every=HOUR)
    assert world.keyring.old == ()


# -- a Secret that somebody else keeps ---------------------------------------------------------------------------------


def test_a_secret_that_cert_manager_keeps_is_neither_written_nor_taken() -> None:
    world, members = healthy(replicas=2)
    former, bundles = [replica.served for replica in members], world.trusted()
    world.keyring, world.kept_by = foreign(days=3), "cert-manager"
    world.touch("secret")
    world.requested = True
    pass_time(world, members, 10 * DAY, every=HOUR)
    assert world.steps == []
    assert [replica.served for replica in members] == former
    assert world.trusted() == bundles
    assert not any(anchor in replica.memory.trusted_since for replica in members for anchor in foreign().trusted)


def test_a_secret_that_is_ours_again_gets_what_is_remembered() -> None:
    world, (replica,) = healthy()
    mine = world.keyring
    world.keyring, world.kept_by = foreign(("somebody.else",)), "cert-manager"
    world.touch("secret")
    replica.work(world)
    world.kept_by = None
    replica.work(world)
    assert world.steps == [Step.RESTORE]
    assert world.keyring == mine


# -- clocks that are wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [2 * HOUR, 400 * DAY], ids=["of hours", "of a year"])
def test_a_replica_whose_clock_is_behind_writes_nothing_and_serves_what_the_others_serve(behind: timedelta) -> None:
    world, (right,) = healthy()
    version = dict(world.versions)
    wrong = Replica()
    for _ in range(10):
        world.at -= behind
        wrong.work(world)
        world.at += behind + MINUTE
        right.work(world)
    assert wrong.served == right.served
    assert (world.steps, world.versions) == ([], version)
    world.bundles[VERIFY] = frozenset()
    world.at -= behind
    wrong.work(world)
    assert world.bundles[VERIFY] == world.bundles[MUTATE]


def test_a_clock_that_is_set_back_changes_neither_the_secret_nor_what_is_served() -> None:
    world, (replica, other) = healthy(replicas=2)
    served = replica.served
    world.at = START + 61 * DAY
    other.work(world)
    assert world.steps == [Step.ISSUE]
    world.at = START + DAY
    replica.work(world)
    assert replica.served == served  # what the others have now is not valid yet, as far as this one knows
    world.at = START + 61 * DAY
    replica.work(world)
    assert replica.served == other.served
    assert world.steps == [Step.ISSUE]


def test_waiting_times_begin_anew_when_the_clock_is_set_back() -> None:
    world, (replica,) = healthy(ours(START - DAY))
    world.requested = True
    replica.work(world)
    world.at -= HOUR / 2
    replica.work(world)
    pass_time(world, [replica], SETTINGS.settle + MINUTE)
    assert world.steps == [Step.PREPARE, Step.PROMOTE]
    del world.bundles[VERIFY]
    restoring = Replica(replace(SETTINGS, restore={VERIFY: SPEC}))
    restoring.work(world)
    world.at -= 6 * HOUR
    restoring.work(world)
    pass_time(world, [restoring], SETTINGS.absence + MINUTE)
    assert VERIFY in world.bundles


@pytest.mark.parametrize("ahead", [100 * DAY, 1000 * DAY], ids=["of months", "of years"])
def test_a_replica_whose_clock_is_ahead_takes_no_trust_from_what_the_others_serve(ahead: timedelta) -> None:
    world, (right,) = healthy()
    wrong = Replica()
    for _ in range(3):
        world.at += ahead
        wrong.work(world)
        world.at -= ahead - MINUTE
        for bundle in world.trusted():
            assert bundle is not None
            assert right.served.anchor in bundle
        right.work(world)
        assert right.served.is_valid(world.at)


def test_an_end_of_trust_is_not_brought_forward_by_entering_another_authority() -> None:
    world, (replica,) = healthy(ours(START - 560 * DAY))
    pass_time(world, [replica], SETTINGS.settle + 2 * MINUTE)
    assert world.keyring is not None
    until = world.keyring.old_until
    assert until is not None
    assert until > world.at + 60 * DAY
    stranger = foreign()
    world.keyring = replace(stranger, old=world.keyring.old, old_until=until)
    world.touch("secret")
    replica.work(world)
    assert world.steps[-1] is Step.RETAIN
    assert world.keyring.old_until == until


# -- changes from outside: names, Providers ---------------------------------------------------------------------------


def test_a_name_that_the_deployment_now_demands_is_added() -> None:
    world, _ = healthy()
    replica = Replica(replace(SETTINGS, more_names=("Ratify.Example.COM", "127.0.0.1", "0:0::1")))
    replica.work(world)
    assert world.steps == [Step.ISSUE]
    assert {*SETTINGS.names, "ratify.example.com", "127.0.0.1", "::1"} == replica.served.names


def test_replicas_of_before_and_after_an_update_with_other_names_do_not_fight() -> None:
    before, after = (Replica(replace(SETTINGS, more_names=(name,))) for name in ("before.example", "after.example"))
    world = World()
    for _ in range(5):
        before.work(world)
        after.work(world)
    assert world.steps == [Step.CREATE, Step.ISSUE]
    assert {"before.example", "after.example"} <= before.served.names
    pass_time(world, [after], 61 * DAY, every=DAY)
    assert "before.example" not in after.served.names


@pytest.mark.parametrize("bundle", [None, frozenset(), frozenset(foreign().trusted)], ids=["garbage", "empty", "other"])
def test_a_tampered_ca_bundle_is_put_right_at_once(bundle: frozenset[x509.Certificate] | None) -> None:
    world, (replica,) = healthy()
    good = world.bundles[VERIFY]
    world.bundles[VERIFY] = bundle
    world.touch(VERIFY)
    plan = replica.look(world)
    assert (plan.step, plan.bundles) == (None, (VERIFY,))
    replica.act(world)
    assert world.bundles[VERIFY] == good
    assert replica.look(world).is_empty


def test_an_authority_added_to_a_bundle_is_taken_out() -> None:
    world, (replica,) = healthy()
    good = world.bundles[MUTATE]
    assert good is not None
    world.bundles[MUTATE] = good | {*foreign().trusted}
    world.touch(MUTATE)
    replica.work(world)
    assert world.bundles[MUTATE] == good


def test_a_bundle_that_changed_after_the_look_is_not_overwritten() -> None:
    world, (replica,) = healthy()
    world.bundles[VERIFY] = frozenset()
    replica.look(world)
    theirs = world.bundles[VERIFY] = frozenset(foreign().trusted)
    world.touch(VERIFY)
    replica.act(world)
    assert world.bundles[VERIFY] == theirs
    replica.work(world)
    assert world.bundles[VERIFY] == world.bundles[MUTATE]


def test_a_deleted_provider_is_only_reported_unless_restoring_was_asked_for() -> None:
    world, (replica,) = healthy()
    del world.bundles[VERIFY]
    pass_time(world, [replica], 10 * MINUTE)
    assert VERIFY not in world.bundles
    assert replica.memory.absent_since == {VERIFY: START + MINUTE}


def test_a_deleted_provider_is_restored_with_its_bundle_but_not_during_an_uninstallation() -> None:
    world, _ = healthy()
    replica = Replica(replace(SETTINGS, restore={VERIFY: SPEC}))
    replica.work(world)
    del world.bundles[VERIFY], world.bundles[MUTATE]
    replica.work(world)
    world.at += SETTINGS.absence - timedelta(seconds=1)
    replica.work(world)
    assert world.bundles == {}
    world.at += timedelta(seconds=1)
    replica.work(world)
    assert world.keyring is not None
    assert world.bundles == {VERIFY: frozenset(world.keyring.trusted)}


def test_the_authority_is_changed_although_a_provider_is_missing() -> None:
    """Nobody calls through it; when it comes back it gets the bundle of then."""
    world, (replica,) = healthy()
    del world.bundles[MUTATE]
    world.requested = True
    pass_time(world, [replica], 2 * SETTINGS.settle)
    assert world.steps == [Step.PREPARE, Step.PROMOTE]
    world.bundles[MUTATE] = frozenset()
    replica.work(world)
    assert world.bundles[MUTATE] == world.bundles[VERIFY]


def test_when_the_secret_cannot_be_written_the_rest_is_still_in_the_plan() -> None:
    world, _ = healthy()
    world.at = START + 61 * DAY
    world.bundles[VERIFY] = frozenset()
    plan = Replica().look(world)
    assert plan.step is Step.ISSUE
    assert plan.bundles == (VERIFY,)
    assert plan.serve is not None


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"service": "Ratify"}, "service is not a DNS label"),
        ({"service": "a.b"}, "service is not a DNS label"),
        ({"namespace": ""}, "namespace is not a DNS label"),
        ({"namespace": "x" * 64}, "namespace is not a DNS label"),
        ({"more_names": ("not a name",)}, "neither a DNS name nor an IP address"),
        ({"more_names": (".".join(["x" * 60] * 5),)}, "neither a DNS name nor an IP address"),
        ({"secret": ""}, "need names"),
        ({"providers": ()}, "need names"),
        ({"providers": ("",)}, "need names"),
        ({"restore": {"other": SPEC}}, "not among the Providers"),
        ({"settle": -MINUTE}, "not positive"),
        ({"poll_seconds": 0.0}, "not positive"),
        ({"retire": 0 * DAY}, "not positive"),
        ({"leaf_lifetime": 200 * DAY}, "do not fit together"),
        ({"leaf_renew_before": 90 * DAY}, "do not fit together"),
        ({"ca_lifetime": 180 * DAY}, "do not fit together"),
        ({"settle": 30 * DAY}, "too long for the lifetimes"),
        ({"ca_lifetime": 180 * DAY + MINUTE}, "too long for the lifetimes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(("url", "timeout"), [("http://x", 5), ("https://x", 0), ("", 5)])
def test_a_provider_that_gatekeeper_would_refuse_is_not_restored(url: str, timeout: int) -> None:
    with pytest.raises(UsageError, match="cannot be restored"):
        ProviderSpec(url, timeout)


def test_the_serving_certificate_is_not_cut_short_by_its_authority() -> None:
    """Until the very day on which the authority is changed."""
    at = START + SETTINGS.ca_lifetime - SETTINGS.ca_renew_before
    ca = issue_authority("x", at=START, lifetime=SETTINGS.ca_lifetime)
    pair = issue_pair(ca, SETTINGS.names, at=at, lifetime=SETTINGS.leaf_lifetime)
    assert pair.certificate.not_valid_after_utc == at + SETTINGS.leaf_lifetime
