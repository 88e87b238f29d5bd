"""The custom resources of a cluster: listed, watched, made into sets of resources, and their status written.

    API server -> Reflector, one a kind -> Ledger -> sets of resources -> whoever uses them -> status

Rules:
- Nothing is given out before every kind was listed once. From then on what is known stays in force while the API server
  is out of reach; nothing is ever taken to be deleted because it could not be asked for.
- Changes that come together are taken together.
- How many objects there are is not bounded here. Where tenants may write resources, a ResourceQuota should:
  count/namespacedverifiers.config.ratify.deislabs.io and its kin.

RBAC needed, nothing more, for the service account of the provider (a ClusterRole):

    config.ratify.deislabs.io  stores, verifiers, keymanagementproviders, policies, certificatestores, namespacedstores,
                               namespacedverifiers, namespacedkeymanagementproviders, namespacedpolicies     list, watch
    config.ratify.deislabs.io  the same, each with /status                                                   patch

and what every service account may do: read which groups and kinds there are (system:discovery).

What does not belong here: list and watch of one kind (reflector.py), which version of an object counts (ledger.py),
what a status says (statuses.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httpx2
from lightkube import AsyncClient
from lightkube.config.client_adapter import AsyncClient as HttpClient
from lightkube.config.client_adapter import ConnectionParams
from lightkube.core.exceptions import ConfigError
from yaml import YAMLError

from provider.configuration.ledger import Key, Ledger
from provider.configuration.reflector import PAGES_AT_ONCE, FollowSettings, Reflector
from provider.configuration.resources import KINDS, ResourceSet
from provider.configuration.statuses import FIELD_MANAGER, Observed, StatusSettings, StatusWriter
from provider.errors import ConfigurationError, UsageError
from provider.interfaces import KeyManagementProvider


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Times, in seconds.

    Attributes:
        settle: quiet time that ends a group of changes.
        settle_at_most: changes that do not end are taken after this.
        retry: until what the assembly refused is tried again: a file or key service may be there by then.
        follow: times of list and watch.
        status: times of writing status.
    """

    settle: float = 0.1
    settle_at_most: float = 1.0
    retry: float = 30.0
    follow: FollowSettings = field(default_factory=FollowSettings)
    status: StatusSettings = field(default_factory=StatusSettings)


def connect(namespace: str | None = None) -> AsyncClient:
    """A client of the cluster's API: by the pod's service account, else by KUBECONFIG or ~/.kube/config.

    Args:
        namespace: the provider's own; by default the service account's, or that of the configuration's context.

    Raises:
        UsageError: there is neither, or it cannot be used.
    """
    # httpx2 logs each request at the level info: a line for every status and every look at a secret.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        return AsyncClient(namespace=namespace, field_manager=FIELD_MANAGER)
    except (
        ConfigError,
        OSError,
        YAMLError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        reason = str(error) if isinstance(error, ConfigError) else type(error).__name__
        raise UsageError(
            "USAGE",
            f"--cluster finds no way to a Kubernetes API server: {reason}",
            expected="a pod with a service account's token, or KUBECONFIG",
        ) from None


class ClusterConfiguration:
    """The resources of a cluster. One task may iterate over `watch`, another run `write_status`.

    Args:
        client: of the Kubernetes API; stays its owner's to close. Its namespace is the provider's own.
        report: told what is wrong, each fault once for as long as it lasts.
        settings: times.
        trust_env: obey proxy variables of the environment, as `client` does.
    """

    def __init__(
        self,
        client: AsyncClient,
        report: Callable[[ConfigurationError], None],
        *,
        settings: ClusterSettings | None = None,
        trust_env: bool = True,
    ) -> None:
        self._client = client
        self._report = report
        self._settings = settings or ClusterSettings()
        self._trust_env = trust_env
        self._ledger = Ledger(client.namespace)
        self._observed: dict[Key, Observed] = {}
        self._changed = asyncio.Event()
        self._key_providers: Callable[[], Mapping[str, KeyManagementProvider]] = dict
        self._statuses = StatusWriter(self._observed, lambda: self._key_providers(), settings=self._settings.status)
        self._reported: frozenset[str] = frozenset()
        self._unexplained = ""
        self._retry_at: float | None = None

    async def watch(self) -> AsyncGenerator[ResourceSet, ConfigurationError | None]:
        """Yield sets of resources, the first as soon as there is one that can decide, then each that differs.

        Whoever sends the ConfigurationError back that a set led to (`asend`) gets one without the versions that its
        faults name; None says that the set is in use. To be closed with `aclose`.
        """
        async with HttpClient(self._client.config, self._connection()) as http:
            pages = asyncio.Semaphore(PAGES_AT_ONCE)
            reflectors = [Reflector(http, kind, self._take, self._settings.follow, pages) for kind in KINDS]
            tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
            try:
                for reflector in reflectors:
                    await reflector.listed.wait()
                async with aclosing(self._sets()) as sets:
                    outcome = None
                    while True:
                        outcome = yield await sets.asend(outcome)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def write_status(self, key_providers: Callable[[], Mapping[str, KeyManagementProvider]]) -> NoReturn:
        """Keep the status of every object up to date, until cancelled.

        Args:
            key_providers: the key providers in use, by label, as Assembler.key_providers gives them.
        """
        self._key_providers = key_providers
        async with HttpClient(self._client.config, self._connection()) as http:
            await self._statuses.run(http)

    async def _sets(self) -> AsyncGenerator[ResourceSet, ConfigurationError | None]:
        in_use = ""
        while True:
            self._changed.clear()
            proposal = self._ledger.propose()
            self._tell(proposal.error)
            if proposal.resources.digest != in_use and (in_use or not proposal.missing):
                error = yield proposal.resources
                if error is None:
                    in_use, self._unexplained = proposal.resources.digest, ""
                    if self._ledger.accept(proposal):
                        continue
                else:
                    self._retry_at = self._retry_at or self._now() + self._settings.retry
                    if self._ledger.refuse(proposal, error):
                        continue
                    if str(error) != self._unexplained:
                        self._unexplained = str(error)
                        self._report(error)
            self._statuses.tell(proposal)  # only now: who reads that a version is good may count on it
            await self._settle()

    async def _settle(self) -> None:
        """Wait for changes, and until there are no more of them for a moment; or until it is time to retry."""
        try:
            async with asyncio.timeout_at(self._retry_at):
                await self._changed.wait()
        except TimeoutError:
            pass
        end = self._now() + self._settings.settle_at_most
        while self._changed.is_set() and self._now() < end:
            self._changed.clear()
            await asyncio.sleep(self._settings.settle)
        if self._retry_at is not None and self._now() >= self._retry_at:
            self._retry_at = None
            self._ledger.reconsider()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _tell(self, error: ConfigurationError | None) -> None:
        """Report what is wrong, as far as that is news."""
        faults = {str(fault): fault for fault in error.faults} if error is not None else {}
        news = [fault for text, fault in faults.items() if text not in self._reported]
        self._reported = frozenset(faults)
        if news:
            more = f" (and {len(news) - 1} more)" if len(news) > 1 else ""
            self._report(ConfigurationError("CONFIG_INVALID", f"{news[0]}{more}", faults=news))

    def _take(self, key: Key, value: Mapping[str, Any] | None) -> None:
        """What a reflector saw: an object as it is now, or None for one that is gone."""
        if value is None:
            self._observed.pop(key, None)
            changed = self._ledger.forget(key)
        else:
            self._observed[key] = Observed.of(value)
            changed = self._ledger.put(key, value)
        if changed:
            self._changed.set()
        self._statuses.tell()

    def _connection(self) -> ConnectionParams:
        # Who reads has limits of its own; what is left to limit is connecting and sending.
        return ConnectionParams(timeout=httpx2.Timeout(10.0, read=None), trust_env=self._trust_env)
