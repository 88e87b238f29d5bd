"""What to do next about the serving certificate: a decision over what is seen, what is remembered, and the time.

The order of a change of authority, each arrow one write to the Secret, so that a crash between any two changes nothing:

    next-ca made -> next-ca in every caBundle, `settle` passes -> next-ca becomes ca, issues the serving certificate,
    the former ca becomes old-ca -> nobody can serve under it any more (`RotationSettings.retire`) -> old-ca dropped

Rules:
- The Secret is the one truth. What every caBundle has to hold is a function of the Secret alone, so that replicas that
  see the same Secret never undo each other's work.
- A replica goes over to a pair only when it has itself seen the pair's authority in every caBundle for `settle`, unless
  it has nothing else that is valid. Nothing is read from clocks of others, and a restart only makes it wait again.
- A replica that serves under an authority that the Secret does not know enters it as old: it still needs it.
- A good pair that somebody else put into the Secret is taken (adopted). One that is not good is replaced, by what this
  replica remembers if that is still good. Without the CA's key a pair is used until it is due, then ours takes over.
- A Secret that somebody else keeps (`Seen.kept_by`) is not written, read or put into a caBundle: what is served stays.
- Clocks of nodes may be wrong. A pair of ours that is not valid yet was made by a clock that is ahead, or is looked at
  by one that is behind: it is left alone. What the Secret trusts is never dropped for being expired or early. A clock
  that is set back begins waiting times anew.
- `decide` says at most one thing to write to the Secret. It goes first, and after it all is read again; what else the
  plan says is for when it cannot be written.

What does not belong here: the Kubernetes API, files, logs (rotation.py); formats (keyring.py); X.509 (issuance.py).
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from provider.errors import UsageError
from provider.gatekeeper.issuance import (
    BACKDATING,
    Authority,
    ServingPair,
    is_authority,
    is_valid,
    issue_authority,
    issue_pair,
)
from provider.gatekeeper.keyring import Keyring

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, as Kubernetes names services
_MAX_DNS_NAME: Final = 253  # characters
_MAX_NAMES: Final = 32  # names of one serving certificate


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """The spec of a Provider object, for putting it back.

    Attributes:
        url: `https://<service>.<namespace>:<port>/<path>`.
        timeout: seconds that Gatekeeper waits; 0 would make every call fail.

    Raises:
        UsageError: Gatekeeper would refuse these.
    """

    url: str
    timeout: int

    def __post_init__(self) -> None:
        if not self.url.startswith("https://") or self.timeout < 1:
            raise UsageError(
                "USAGE",
                "the Provider cannot be restored with these values",
                expected="an https URL and a timeout of at least 1 second",
                found=f"{self.url}, {self.timeout}",
            )


@dataclass(frozen=True, slots=True)
class RotationSettings:
    """What is kept, under which names, and when it changes.

    Attributes:
        service: name of the Service that Gatekeeper calls.
        namespace: its namespace, and the Secret's.
        secret: name of the Secret.
        providers: names of the Provider objects whose caBundle is ours.
        restore: Provider objects to make again when they are missing, by name. Empty only reports them.
        more_names: further DNS names and IP addresses for the serving certificate, for callers outside of the cluster.
        ca_lifetime: two years. The key lies in a Secret; whoever reads it once can pose as the provider for so long.
        ca_renew_before: half a year: a cluster may be switched off for months, and nobody needs to be woken. Not less
            than leaf_lifetime, so that no serving certificate is cut short by its authority.
        leaf_lifetime: 90 days, as public authorities have it.
        leaf_renew_before: 30 days, but at most a third of the certificate's own lifetime.
        settle: from the time at which every caBundle was seen to hold an authority until it is relied on. Gatekeeper
            takes a change over within a second; a broken watch is noticed after 45 s and retried within 30 s.
        retire: how long at least a former authority stays in caBundle, for replicas that cannot reach the Kubernetes
            API and go on with their former serving certificate. An authority that went because it was due stays until
            its last serving certificate has expired, when nobody can have use for it. One that went because somebody
            asked for a new one goes after this time: its key may have been stolen.
        absence: how long a Secret or Provider has to be missing until it is made again, so that an uninstallation is
            not undone by replicas that are still stopping (the default grace period is 30 s).
        poll_seconds: between two looks. Changes are noticed at once by watches; this is for what a watch misses.
        pause_seconds: between two rounds at least, so that a fight with another controller stays slow.

    Raises:
        UsageError: a value makes no sense.
    """

    service: str
    namespace: str
    secret: str
    providers: tuple[str, ...]
    restore: Mapping[str, ProviderSpec] = field(default_factory=dict)
    more_names: tuple[str, ...] = ()
    ca_lifetime: timedelta = timedelta(days=730)
    ca_renew_before: timedelta = timedelta(days=180)
    leaf_lifetime: timedelta = timedelta(days=90)
    leaf_renew_before: timedelta = timedelta(days=30)
    settle: timedelta = timedelta(minutes=5)
    retire: timedelta = timedelta(hours=24)
    absence: timedelta = timedelta(seconds=60)
    poll_seconds: float = 30.0
    pause_seconds: float = 1.0

    def __post_init__(self) -> None:
        for what, name in (("service", self.service), ("namespace", self.namespace)):
            if _LABEL.fullmatch(name) is None:
                raise UsageError("USAGE", f"the name of the {what} is not a DNS label", found=name)
        for name in self.more_names:
            if not _is_dns_name(_normal(name)) and not _is_address(name):
                raise UsageError("USAGE", "the name is neither a DNS name nor an IP address", found=name)
        if not self.secret or not self.providers or not all(self.providers):
            raise UsageError("USAGE", "the Secret and at least one Provider need names")
        unknown = sorted(set(self.restore) - set(self.providers))
        if unknown:
            raise UsageError("USAGE", "a Provider to restore is not among the Providers", found=", ".join(unknown))
        self._check_times()

    def _check_times(self) -> None:
        times = (self.ca_lifetime, self.leaf_lifetime, self.retire, self.leaf_renew_before)
        seconds = (self.poll_seconds, self.pause_seconds)
        if min(times) <= timedelta(0) or min(self.settle, self.absence) < timedelta(0) or min(seconds) <= 0:
            raise UsageError("USAGE", "a time of the certificate rotation is not positive")
        if not self.leaf_renew_before < self.leaf_lifetime <= self.ca_renew_before < self.ca_lifetime:
            raise UsageError(
                "USAGE",
                "the times of the certificate rotation do not fit together",
                expected="leaf_renew_before < leaf_lifetime <= ca_renew_before < ca_lifetime",
            )
        # Otherwise the coming authority would itself be due, or the serving certificate expired, before it is used.
        if self.settle >= min(self.leaf_renew_before, self.ca_lifetime - self.ca_renew_before):
            raise UsageError(
                "USAGE",
                "the time until an authority is relied on is too long for the lifetimes",
                expected="settle < leaf_renew_before, and settle < ca_lifetime - ca_renew_before",
                found=f"{self.settle.total_seconds():g} s",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the serving certificate; the first is the one that Provider URLs have by convention."""
        main = f"{self.service}.{self.namespace}"
        more = (_normal(name) for name in self.more_names)
        return tuple(dict.fromkeys((main, f"{main}.svc", f"{main}.svc.cluster.local", *more)))

    @property
    def demanded_names(self) -> frozenset[str]:
        """Names without which a pair is not good: Ratify's own has the main one only."""
        return frozenset((self.names[0], *(_normal(name) for name in self.more_names)))


class Step(enum.Enum):
    """What can be written to the Secret."""

    CREATE = "create"  # new authority and serving certificate: there is nothing to build on
    RESTORE = "restore"  # what this replica remembers
    ISSUE = "issue"  # new serving certificate of the present authority
    PREPARE = "prepare"  # new authority, not used yet
    PROMOTE = "promote"  # the coming authority is used
    RETAIN = "retain"  # an authority in use, or the end of trust in old ones, is entered
    DROP = "drop"  # old authorities are dropped


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the cluster.

    Attributes:
        keyring: content of the Secret; None when there is no Secret.
        bundles: certificates in each Provider's caBundle by its name, for Providers that exist; None for a caBundle
            that cannot be read.
        requested: somebody asks for a new authority.
        kept_by: who else keeps the Secret, such as cert-manager; None when it is ours.
    """

    keyring: Keyring | None
    bundles: Mapping[str, frozenset[x509.Certificate] | None]
    requested: bool = False
    kept_by: str | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What a replica knows of earlier looks. It starts empty with the process.

    Attributes:
        served: the pair that is served.
        good: the last content of the Secret that was good.
        trusted_since: since when an authority has been in every caBundle.
        absent_since: since when a Provider has been missing, by name.
        secret_absent_since: the same for the Secret.
    """

    served: ServingPair | None = None
    good: Keyring | None = None
    trusted_since: Mapping[x509.Certificate, datetime] = field(default_factory=dict)
    absent_since: Mapping[str, datetime] = field(default_factory=dict)
    secret_absent_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next.

    Attributes:
        step: what to write to the Secret.
        bundles: names of Providers whose caBundle has to be written.
        bundle: its certificates.
        restore: names of missing Providers to be made.
        serve: pair to go over to.
    """

    step: Step | None = None
    bundles: tuple[str, ...] = ()
    bundle: tuple[x509.Certificate, ...] = ()
    restore: tuple[str, ...] = ()
    serve: ServingPair | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return self == Plan(bundle=self.bundle)


def remember(memory: Memory, seen: Seen, settings: RotationSettings, at: datetime) -> Memory:
    """Take a look into memory.

    Args:
        memory: of before.
        seen: the look.
        settings: which Providers there should be, and what is good.
        at: time of the look (aware).
    """
    keyring = seen.keyring if seen.kept_by is None else None
    wanted = () if keyring is None else keyring.trusted
    trusted = [one for one in wanted if all(bundle is not None and one in bundle for bundle in seen.bundles.values())]
    missing = [name for name in settings.providers if name not in seen.bundles]
    return replace(
        memory,
        good=keyring if keyring is not None and is_good(keyring.pair, settings, at) else memory.good,
        trusted_since={one: _since(memory.trusted_since.get(one), at) for one in trusted},
        absent_since={name: _since(memory.absent_since.get(name), at) for name in missing},
        secret_absent_since=_since(memory.secret_absent_since, at) if seen.keyring is None else None,
    )


def _since(known: datetime | None, at: datetime) -> datetime:
    """When something began that is still so; never later than now, whatever became of the clock."""
    return at if known is None else min(known, at)


def decide(memory: Memory, seen: Seen, settings: RotationSettings, at: datetime) -> Plan:
    """What to do next.

    Args:
        memory: with this look already in it (`remember`).
        seen: the look.
        settings: names and times.
        at: time of the look (aware).
    """
    if seen.kept_by is not None:
        return Plan()
    step = _step(memory, seen, settings, at)
    keyring = seen.keyring
    if keyring is None or not (is_good(keyring.pair, settings, at) or is_early(keyring, at)):
        return Plan(step)
    restore = tuple(
        name
        for name, since in sorted(memory.absent_since.items())
        if name in settings.restore and at - since >= settings.absence
    )
    wrong = _wrong_bundles(seen, keyring)
    return Plan(step, wrong, keyring.trusted, restore, _pair_to_serve(memory, keyring, settings, at))


def _wrong_bundles(seen: Seen, keyring: Keyring) -> tuple[str, ...]:
    wanted = frozenset(keyring.trusted)
    return tuple(name for name, found in sorted(seen.bundles.items()) if found != wanted)


def carry_out(step: Step, memory: Memory, seen: Seen, settings: RotationSettings, at: datetime) -> Keyring:
    """The content that the Secret gets by a step. New keys are made here, so that no two calls return the same.

    Args:
        step: as decided from these very arguments.
        memory: as for `decide`.
        seen: as for `decide`.
        settings: names and times.
        at: as for `decide`.
    """
    keyring = seen.keyring or Keyring()
    until = at + settings.retire
    if step is Step.RESTORE and memory.good is not None:
        return memory.good
    if step is Step.PREPARE:
        return replace(keyring, coming=_new_authority(settings, at))
    if step is Step.ISSUE and keyring.authority is not None:
        return replace(keyring, pair=_new_pair(keyring.authority, keyring.pair, settings, at))
    if step is Step.PROMOTE and keyring.authority is not None and keyring.coming is not None:
        pair = _new_pair(keyring.coming, None, settings, at)
        promoted = replace(keyring, authority=keyring.coming, coming=None, pair=pair)
        return promoted.with_old(keyring.authority.certificates, _end_of_trust(keyring, settings, at))
    if step is Step.RETAIN:
        in_use = () if memory.served is None else (memory.served.anchor,)
        if keyring.old_until is not None and _is_sensible(keyring.old_until, settings, at):
            until = max(until, keyring.old_until)
        return keyring.with_old((one for one in in_use if one not in keyring.trusted), until)
    if step is Step.DROP:
        return replace(keyring, old=(), old_until=None)
    # Some replica may serve under any authority that is trusted now: these stay for a while.
    authority = _new_authority(settings, at)
    found = (one for bundle in seen.bundles.values() for one in bundle or () if is_authority(one) and is_valid(one, at))
    return Keyring(authority, _new_pair(authority, None, settings, at)).with_old((*keyring.trusted, *found), until)


def _end_of_trust(keyring: Keyring, settings: RotationSettings, at: datetime) -> datetime:
    """Until when the authority of a keyring is to be trusted after it was replaced; see `RotationSettings.retire`."""
    until = at + settings.retire
    if keyring.pair is None or not _is_authority_due(keyring, settings, at):
        return until
    margin = min(BACKDATING, settings.retire)  # clocks differ
    return max(until, keyring.pair.certificate.not_valid_after_utc + margin)


def is_good(pair: ServingPair | None, settings: RotationSettings, at: datetime) -> bool:
    """Whether callers that trust a pair's authority would accept the pair."""
    return pair is not None and pair.is_valid(at) and settings.demanded_names <= pair.names


def is_early(keyring: Keyring, at: datetime) -> bool:
    """Whether a pair that was issued in this cluster is not valid yet: one of two clocks is wrong."""
    pair, authority = keyring.pair, keyring.authority
    if pair is None or authority is None or authority.key is None:
        return False
    return at < max(pair.certificate.not_valid_before_utc, pair.anchor.not_valid_before_utc)


def _step(memory: Memory, seen: Seen, settings: RotationSettings, at: datetime) -> Step | None:
    keyring = seen.keyring
    remembered = memory.good is not None and is_good(memory.good.pair, settings, at)
    if keyring is None:
        if not remembered:
            return Step.CREATE
        since = memory.secret_absent_since
        return Step.RESTORE if since is not None and at - since >= settings.absence else None
    can_sign = keyring.authority is not None and keyring.authority.can_sign(at)
    if not is_good(keyring.pair, settings, at):
        if is_early(keyring, at):
            return None
        if can_sign:
            return Step.ISSUE
        return Step.RESTORE if remembered else Step.CREATE
    if memory.served is not None and memory.served.is_valid(at) and memory.served.anchor not in keyring.trusted:
        return Step.RETAIN
    return _authority_step(memory, keyring, seen.requested, settings, at) or (
        Step.ISSUE if can_sign and _is_pair_due(keyring, settings, at) else _old_step(keyring, settings, at)
    )


def _authority_step(
    memory: Memory, keyring: Keyring, requested: bool, settings: RotationSettings, at: datetime
) -> Step | None:
    coming = None if keyring.coming is None else keyring.coming.certificate
    if coming is not None and is_valid(coming, at) and not _is_due(coming, settings.ca_renew_before, at):
        since = memory.trusted_since.get(coming)
        return Step.PROMOTE if since is not None and at - since >= settings.settle else None
    if requested or coming is not None or _is_authority_due(keyring, settings, at):
        return Step.PREPARE
    return None


def _old_step(keyring: Keyring, settings: RotationSettings, at: datetime) -> Step | None:
    if not keyring.old:
        return None
    if keyring.old_until is None or not _is_sensible(keyring.old_until, settings, at):
        return Step.RETAIN  # not written by us, or by a clock that was wrong
    return Step.DROP if keyring.old_until <= at else None


def _is_sensible(until: datetime, settings: RotationSettings, at: datetime) -> bool:
    return until <= at + 2 * max(settings.retire, settings.leaf_lifetime)


def _is_authority_due(keyring: Keyring, settings: RotationSettings, at: datetime) -> bool:
    if keyring.pair is None or keyring.authority is None:
        return False
    if not keyring.authority.can_sign(at):
        return _is_pair_due(keyring, settings, at)
    return _is_due(keyring.pair.anchor, settings.ca_renew_before, at)


def _is_pair_due(keyring: Keyring, settings: RotationSettings, at: datetime) -> bool:
    """Whether the serving certificate is to be renewed, and can become valid for longer."""
    if keyring.pair is None or keyring.authority is None:
        return False
    leaf, authority = keyring.pair.certificate, keyring.authority
    longest = leaf.not_valid_after_utc >= authority.certificate.not_valid_after_utc
    return not (longest and authority.can_sign(at)) and _is_due(leaf, settings.leaf_renew_before, at)


def _is_due(certificate: x509.Certificate, renew_before: timedelta, at: datetime) -> bool:
    end = certificate.not_valid_after_utc
    return end - at <= min(renew_before, (end - certificate.not_valid_before_utc) / 3)


def _pair_to_serve(memory: Memory, keyring: Keyring, settings: RotationSettings, at: datetime) -> ServingPair | None:
    pair, served = keyring.pair, memory.served
    if pair is None or pair == served:
        return None
    if served is None:
        return pair
    if is_early(keyring, at):
        return None
    if not served.is_valid(at) or served.anchor == pair.anchor:
        return pair
    since = memory.trusted_since.get(pair.anchor)
    return pair if since is not None and at - since >= settings.settle else None


def _new_authority(settings: RotationSettings, at: datetime) -> Authority:
    return issue_authority(settings.names[0], at=at, lifetime=settings.ca_lifetime)


def _new_pair(
    authority: Authority, former: ServingPair | None, settings: RotationSettings, at: datetime
) -> ServingPair:
    """A new pair. Names of a former one that lacks some of ours stay: during an update of the deployment replicas of
    before demand other names than those of after, and must not undo each other's work."""
    names: tuple[str, ...] = settings.names
    if former is not None and former.is_valid(at) and not settings.demanded_names <= former.names:
        names = tuple(dict.fromkeys((*names, *sorted(former.names))))[:_MAX_NAMES]
    return issue_pair(authority, names, at=at, lifetime=settings.leaf_lifetime)


def _normal(name: str) -> str:
    """A name as certificates spell it."""
    return str(ipaddress.ip_address(name)) if _is_address(name) else name.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_dns_name(name: str) -> bool:
    return len(name) <= _MAX_DNS_NAME and all(_LABEL.fullmatch(label) for label in name.split("."))
