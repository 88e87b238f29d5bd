"""Keeps the provider's own serving certificate: look at the cluster, carry out the plan, serve the pair, for ever.

    Provider objects, Secret -> keyring.py -> rotation_plan.py -> Secret, caBundle of the Providers, serving.pem

The pair goes into one PEM file (key first, then the chain) that is replaced by renaming, mode 0600, in a folder given
by the caller: an emptyDir with `medium: Memory`, so that no key reaches a disk. ServingTLS reads it as it reads any
certificate file (OpenSSL loads keys from files only) and changes over without a restart; one file, because a key and a
certificate in two could be read in the middle of their change. The Secret is not mounted: what is mounted changes only
a minute or more after the Secret.

Rules:
- No leader: every replica does whatever it finds undone. Who loses a race reads again and takes what the winner wrote.
- Watches only wake the loop. What is true is read with GETs, in a round that can begin anew at any time.
- Nothing that goes wrong here stops serving: the pair in use stays, the log and a metric say what is wrong.
- A Secret that somebody else keeps (cert-manager) is left alone. At the start that ends the command, later it is told.

RBAC needed, nothing more:

    Role in the namespace:  secrets                             get, watch, update   resourceNames: [<secret>]
    (only if the chart does not make the Secret:)  secrets      create               no resourceNames, RBAC cannot
    ClusterRole:  externaldata.gatekeeper.sh providers          get, watch, patch    resourceNames: [<each Provider>]
    (only with `restore`:)  externaldata.gatekeeper.sh providers  create             no resourceNames

To the author of a chart: make the Secret, empty (type Opaque). Then `create` is not needed and uninstalling removes it.
Gatekeeper refuses a Provider without caBundle, so that it needs a placeholder: a constant certificate that has expired.
A constant one, because an upgrade writes only what differs from the former release, and an expired one, because
authorities in caBundle that are valid are kept trusted for a day when the first pair is made.

A new authority at once: kubectl annotate secret <secret> countersign/rotate=now

What does not belong here: decisions (rotation_plan.py), the Kubernetes API (rotation_cluster.py), X.509 (issuance.py),
certificates that others keep (tls.py alone).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import secrets
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import structlog
from lightkube import AsyncClient

from provider.errors import ConfigurationError, printable
from provider.gatekeeper.issuance import ServingPair, certificates_pem, unusable
from provider.gatekeeper.keyring import Keyring
from provider.gatekeeper.rotation_cluster import (
    API_ERRORS,
    ClusterError,
    ClusterObjects,
    Look,
    host_of,
    writer_of_bundle,
)
from provider.gatekeeper.rotation_plan import (
    Memory,
    Plan,
    RotationSettings,
    Step,
    carry_out,
    decide,
    is_early,
    remember,
)
from provider.telemetry import Metrics

_log = structlog.get_logger(__name__)

SERVING_FILE: Final = "serving.pem"
WATCH_SECONDS: Final = 600.0  # a watch is begun anew after this: one whose connection died silently says nothing
WATCH_PAUSE_SECONDS: Final = 5.0  # between two watches of an object
REPEAT_SECONDS: Final = 600.0  # a problem that stays is logged again after this
_KEPT_REMEDY: Final = (
    "Name another Secret (--rotate-secret), or mount this one and give it with --cert-dir instead of --rotate-certs."
)
_MAX_LOOKS: Final = 6  # of one round; a way without lost races takes three, and what is left waits for the next


def utc_now() -> datetime:
    """The time by which certificates are renewed."""
    return datetime.now(UTC)


class CertificateRotation:
    """Keeps the serving certificate in the Secret, the caBundle of the Providers, and the file that is served from.

    Args:
        client: of the Kubernetes API; stays the caller's to close.
        settings: names and times.
        folder: where SERVING_FILE is written; in memory.
        metrics: what is counted.
        clock: aware, UTC.

    Attributes:
        file: the PEM file with key and chain, to be given to TLSFiles as both.
    """

    def __init__(
        self,
        client: AsyncClient,
        settings: RotationSettings,
        *,
        folder: Path,
        metrics: Metrics,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.file = folder / SERVING_FILE
        self._cluster = ClusterObjects(client, settings)
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._memory = Memory()
        self._kept_by: str | None = None
        self._wake = asyncio.Event()
        self._changed: Callable[[], object] = _nothing
        self._said = _Said()

    async def prepare(self) -> None:
        """Wait until there is a pair to serve. Problems of the cluster are logged and tried again, for ever.

        Raises:
            ConfigurationError: TLS_INVALID; the folder cannot be written to, or somebody else keeps the Secret.
        """
        try:
            _try_folder(self.file)
        except OSError as error:
            raise unusable(
                f"{self.file}: the serving certificate cannot be written: {error.strerror or type(error).__name__}"
            ) from None
        await self._attempt()
        while self._memory.served is None:
            if self._kept_by is not None:
                raise ConfigurationError(
                    "TLS_INVALID",
                    f"the Secret {self._settings.secret} is kept by somebody else",
                    expected="a Secret of the provider's own",
                    found=self._kept_by,
                    remediation=_KEPT_REMEDY,
                )
            await asyncio.sleep(self._settings.pause_seconds)
            await self._attempt()

    async def run(self, changed: Callable[[], object]) -> NoReturn:
        """Go on until cancelled.

        Args:
            changed: called after the file was written, such as `ServingTLS.reload`. A ConfigurationError of it is
                logged.
        """
        self._changed = changed
        watches = [asyncio.create_task(self._watch(begin)) for begin in self._cluster.watches()]
        try:
            while True:
                self._wake.clear()
                await self._attempt()
                await asyncio.sleep(self._settings.pause_seconds)
                # Not wait_for: it loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.poll_seconds):
                        await self._wake.wait()
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _attempt(self) -> None:
        try:
            await self._round()
        except ClusterError as error:
            self._failed("look", error)
        except Exception:  # noqa: BLE001 - a mistake in here must not take down a server that serves well
            self._count("look", "failed")
            _log.exception("certificate rotation failed unexpectedly, what is served stays")

    async def _round(self) -> None:
        """Look, decide and act until nothing is left to do."""
        for _ in range(_MAX_LOOKS):
            at = self._clock()
            look = await self._cluster.look()
            self._kept_by = look.seen.kept_by
            before, self._memory = self._memory, remember(self._memory, look.seen, self._settings, at)
            self._report(before, look, at)
            plan = decide(self._memory, look.seen, self._settings, at)
            written = plan.step is not None and await self._write(plan.step, look, at)
            if not written and not await self._follow(plan, look):
                return

    async def _write(self, step: Step, look: Look, at: datetime) -> bool:
        """Write to the Secret. Returns whether it is worth while to look again; not when writing failed."""
        keyring = carry_out(step, self._memory, look.seen, self._settings, at)
        asked = step in (Step.PREPARE, Step.CREATE)
        outcome = await self._do(step.value, self._cluster.write_secret(look.secret, keyring, forget_request=asked))
        if outcome is _Outcome.DONE:
            _log.info("serving certificate: the Secret was written", step=step.value, secret=self._settings.secret)
        return outcome is not _Outcome.FAILED

    async def _follow(self, plan: Plan, look: Look) -> bool:
        """Do what a plan says besides the Secret. Returns whether it is worth while to look again."""
        outcomes: set[_Outcome] = set()
        bundle = certificates_pem(plan.bundle)
        for name in plan.bundles:
            found = look.providers[name]
            outcome = await self._do("bundle", self._cluster.write_bundle(found, bundle))
            outcomes.add(outcome)
            if outcome is _Outcome.DONE:
                _log.info("caBundle of a Provider was written", provider=name, formerWriter=writer_of_bundle(found))
        for name in plan.restore:
            outcome = await self._do("provider", self._cluster.create_provider(name, bundle))
            outcomes.add(outcome)
            if outcome is _Outcome.DONE:
                _log.warning("a missing Provider was made again", provider=name)
        if plan.serve is not None:
            outcomes.add(self._serve(plan.serve))
        return bool(outcomes - {_Outcome.FAILED})

    def _serve(self, pair: ServingPair) -> _Outcome:
        try:
            _write_privately(self.file, pair.pem())
        except OSError as error:
            self._failed("serve", ClusterError(f"{self.file} cannot be written: {error.strerror}"))
            return _Outcome.FAILED
        self._memory = replace(self._memory, served=pair)
        self._said.forget("serve")
        self._count("serve", "done")
        expires = pair.certificate.not_valid_after_utc.isoformat()
        _log.info("serving certificate written", file=str(self.file), expires=expires)
        try:
            self._changed()
        except ConfigurationError as error:  # of another file, such as a client CA; ServingTLS goes on trying
            _log.error("the new serving certificate is not in use yet", code=error.code, errorReason=error.detail)
        return _Outcome.DONE

    async def _do(self, action: str, call: Awaitable[None]) -> _Outcome:
        """Await a write; the log and a metric say how it ended."""
        try:
            await call
        except ClusterError as error:
            if error.conflict:
                self._count(action, "conflict")
                return _Outcome.CONFLICT
            self._failed(action, error)
            return _Outcome.FAILED
        self._said.forget(action)
        self._count(action, "done")
        return _Outcome.DONE

    def _failed(self, action: str, error: ClusterError) -> None:
        self._count(action, "failed")
        if self._said.is_news(action, str(error), self._clock()):
            _log.error(
                "certificate rotation: an action failed, what is served stays",
                action=action,
                errorReason=str(error),
                remediation=error.remediation,
            )

    def _count(self, action: str, outcome: str) -> None:
        self._metrics.certificate_rotation.labels(action, outcome).inc()

    def _report(self, before: Memory, look: Look, at: datetime) -> None:
        """Tell of what a look shows and a plan cannot say."""
        self._said.forget("look")
        for name in self._settings.providers:
            self._report_presence(name, name in look.seen.bundles, came_back=name in before.absent_since, at=at)
        keyring, keeper = look.seen.keyring, look.seen.kept_by
        if keyring is None:
            if before.secret_absent_since is None:
                _log.warning("the Secret of the serving certificate is missing", secret=self._settings.secret)
            return
        if keeper is not None:
            if self._said.is_news("keeper", keeper, at):
                _log.error(
                    "the Secret of the serving certificate is kept by somebody else, what is served stays",
                    secret=self._settings.secret,
                    found=keeper,
                    remediation=_KEPT_REMEDY,
                )
            return
        for fault in keyring.faults:
            if self._said.is_news(fault, fault, at):
                _log.warning("the Secret of the serving certificate has a part that cannot be used", errorReason=fault)
        if keyring.pair is not None:
            self._report_pair(keyring, keyring.pair, look, at)

    def _report_presence(self, name: str, present: bool, *, came_back: bool, at: datetime) -> None:
        self._metrics.provider_present.labels(name).set(present)
        what = f"absence of {name}"
        if present:
            self._said.forget(what)
            if came_back:
                _log.info("the Provider object is there again", provider=name)
        elif self._said.is_news(what, what, at):
            _log.error(
                "a Provider object is missing: Gatekeeper cannot ask",
                provider=name,
                remediation="Apply it again (helm upgrade), or let it be restored (--restore-provider).",
            )

    def _report_pair(self, keyring: Keyring, pair: ServingPair, look: Look, at: datetime) -> None:
        self._metrics.ca_not_after.set(pair.anchor.not_valid_after_utc.timestamp())
        begin = pair.certificate.not_valid_before_utc.isoformat()
        if is_early(keyring, at) and self._said.is_news("early", begin, at):
            _log.warning(
                "the serving certificate in the Secret is not valid yet: a clock is wrong",
                begins=begin,
                now=at.isoformat(timespec="seconds"),
                remediation="Check the clocks of the nodes that the replicas run on.",
            )
        for name, found in look.providers.items():
            host = host_of(found)
            if host not in pair.names and self._said.is_news(f"host of {name}", host, at):
                _log.warning(
                    "a Provider calls a host that the serving certificate does not name",
                    provider=name,
                    expected=", ".join(sorted(pair.names)),
                    found=printable(host),
                )

    async def _watch(self, begin: Callable[[], AsyncIterable[object]]) -> NoReturn:
        """Wake the loop when an object changes. What happened is not looked at."""
        while True:
            with contextlib.suppress(TimeoutError, *API_ERRORS):
                async with asyncio.timeout(WATCH_SECONDS):
                    async for _ in begin():
                        self._wake.set()
            await asyncio.sleep(WATCH_PAUSE_SECONDS)


def _nothing() -> None:
    """Nobody is told."""


class _Outcome(enum.Enum):
    """How a write ended."""

    DONE = enum.auto()
    CONFLICT = enum.auto()  # somebody else was quicker
    FAILED = enum.auto()


class _Said:
    """What was logged, so that a problem that stays is not logged every time."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, datetime]] = {}

    def is_news(self, what: str, text: str, at: datetime) -> bool:
        """Whether a text about something is other than the last one about it, or that was long ago."""
        last = self._said.get(what)
        if last is not None and last[0] == text and abs((at - last[1]).total_seconds()) < REPEAT_SECONDS:
            return False
        self._said[what] = (text, at)
        return True

    def forget(self, what: str) -> None:
        """The problem is over."""
        self._said.pop(what, None)


def _try_folder(file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    probe.unlink()


def _write_privately(file: Path, content: bytes) -> None:
    """Write a file that only this user can read, in one step as seen by readers.

    Raises:
        OSError: nothing is left behind.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
