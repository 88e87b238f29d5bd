"""Registry credentials from pull secrets of the cluster: Secrets that are named, and those of a service account.

Rules:
- Named secrets come first, the most specific entry of all of them before the others (pull_secrets.py); then the service
  account's in the same way. Who was refused with one is given the next: several secrets for one registry are common,
  and the kubelet tries them all too.
- A secret that cannot be had or read spoils nothing as long as another one has a credential. Otherwise it is an error
  with its name: what it would have said is not known, and anonymous access is no substitute that anyone asked for.
- What was read is used for KEEP_SECONDS; then it is still given out while it is read anew behind that. Who was refused
  by a registry waits for the new reading, at most one in REFUSAL_PAUSE_SECONDS. A decision reads nothing otherwise.
- While the API server is out of reach the last good reading is used, for KEEP_UNREACHABLE_SECONDS; when it says that
  there is none any more, or that it may not be read, or when what it gives is no pull secret, that counts at once.
- A service account's secrets are of its namespace, whatever it names.
- Nothing of a secret is in an error, a log line or a repr.

RBAC needed: `get` on secrets and on serviceaccounts, in the namespaces whose secrets are named: the provider's own, for
a Store that says nothing else, and every namespace that may have a NamespacedStore with k8Secrets.

What does not belong here: what a secret says (pull_secrets.py), what is done with a credential (stores/), who may name
which secret (configuration/).
Sources: Kubernetes "Pull an Image from a Private Registry"; Ratify v1.4 auth provider k8Secrets; attacks N08, N11.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

import httpx2
import msgspec
import structlog
from cachetools import LRUCache
from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.resources.core_v1 import Secret, ServiceAccount

from provider.credentials.pull_secrets import Match, ObjectName, PullSecret, named_secrets, unavailable
from provider.credentials.renewal import FAILURE_PAUSE_SECONDS, MAX_KEPT, Lease, Renewing
from provider.errors import Undecided
from provider.interfaces import Credential

KEEP_SECONDS: Final = 60.0  # until a secret is read again; the longest that a rotation without a refusal goes unseen
KEEP_UNREACHABLE_SECONDS: Final = 3600.0  # how long the last good one is used while the API server is out of reach
REFUSAL_PAUSE_SECONDS: Final = 5.0  # between two readings that refusals of a registry cause
READ_SECONDS: Final = 3.0  # of one reading, so that an answer to Gatekeeper can still be given in time
MAX_AT_ONCE: Final = 32 * 1024  # characters of a secret: some 10 ms on the event loop; a thread reads larger ones
MAX_REFUSED: Final = 1024  # repositories that have been refused and not been asked for since

_log = structlog.get_logger(__name__)

_Kind = type[Secret] | type[ServiceAccount]
_Key = tuple[_Kind, ObjectName]
_Reading = PullSecret | tuple[ObjectName, ...] | Undecided  # the last: why there is nothing to be had of it


class PullSecretCredentials:
    """A source of credentials. Safe for any number of tasks of one event loop; to be closed with `aclose`.

    Args:
        client: of the Kubernetes API; stays its owner's to close. None outside of a cluster, where nothing can be had.
        secrets: pull secrets, in the order in which they are asked.
        service_account: whose pull secrets are asked after them; None for nobody's.
        read_seconds: the most that one reading may take.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        client: AsyncClient | None,
        *,
        secrets: Iterable[ObjectName] = (),
        service_account: ObjectName | None = None,
        read_seconds: float = READ_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._secrets = tuple(secrets)
        self._service_account = service_account
        self._read_seconds = read_seconds
        self._readings: Renewing[_Key, _Reading] = Renewing(
            self._read, refusal_pause_seconds=REFUSAL_PAUSE_SECONDS, monotonic=monotonic
        )
        self._refused: LRUCache[tuple[str, str], bool] = LRUCache(MAX_REFUSED)
        self._told: LRUCache[_Key, str] = LRUCache(MAX_KEPT)

    async def credential(self, domain: str, path: str) -> Credential | None:
        """The credential for a repository; see interfaces.CredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, when there is none and a secret that may hold one cannot be had.
        """
        return await self.another(domain, path, ())

    async def another(self, domain: str, path: str, refused: Collection[Credential | None]) -> Credential | None:
        """One that is none of those refused; see interfaces.AlternativeCredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, as for `credential`.
        """
        anew = self._refused.pop((domain, path), False)
        found, problem = await self._search(self._secrets, domain, path, refused=refused, anew=anew)
        if found is None and self._service_account is not None:
            try:
                secrets: Any = await self._get((ServiceAccount, self._service_account), anew=anew)
            except Undecided as error:
                problem = problem or error
            else:
                found, more = await self._search(secrets, domain, path, refused=refused, anew=anew)
                problem = problem or more
        if found is None and problem is not None:
            raise problem
        return found

    def refused(self, domain: str, path: str) -> None:
        """A registry refused: the next who asks for the repository gets what is read after this."""
        self._refused[domain, path] = True

    async def aclose(self) -> None:
        """Give up the readings under way."""
        await self._readings.aclose()

    async def _search(
        self,
        secrets: Sequence[ObjectName],
        domain: str,
        path: str,
        *,
        refused: Collection[Credential | None],
        anew: bool,
    ) -> tuple[Credential | None, Undecided | None]:
        """The best credential in secrets that are read side by side, and the first thing that went wrong with them."""
        readings: Any = await asyncio.gather(
            *(self._get((Secret, name), anew=anew) for name in secrets), return_exceptions=True
        )
        matches: list[Match] = []
        problem: Undecided | None = None
        for reading in readings:
            if isinstance(reading, Undecided):
                problem = problem or reading
            elif isinstance(reading, BaseException):
                raise reading
            else:
                matches.extend(reading.matches(domain, path))
        for match in sorted(matches, key=lambda match: match.rank):
            if match.credential is None:
                problem = problem or unavailable(match.problem, remediation="Write the entry as docker login does.")
            elif match.credential not in refused:
                return match.credential, problem
        return None, problem

    async def _get(self, key: _Key, *, anew: bool) -> PullSecret | tuple[ObjectName, ...]:
        """What an object says.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        reading = await self._readings.get(key, anew=anew)
        if isinstance(reading, Undecided):
            raise reading.with_traceback(None)
        return reading

    async def _read(self, key: _Key) -> Lease[_Reading]:
        """Read an object now.

        Returns:
            What it says, or why it says nothing; both are the API server's word.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, when the API server's word is not to be had.
        """
        try:
            reading = await self._ask(key)
        except Undecided as error:
            self._tell(key, error)
            raise
        if isinstance(reading, Undecided):
            self._tell(key, reading)
            return Lease(reading, FAILURE_PAUSE_SECONDS)
        self._told.pop(key, None)
        return Lease(reading, KEEP_UNREACHABLE_SECONDS, KEEP_SECONDS)

    def _tell(self, key: _Key, error: Undecided) -> None:
        """Log a problem, once until it is another or over."""
        if self._told.get(key) != error.reason:
            self._told[key] = error.reason
            _log.warning("pull secret cannot be read", object=_what(key), reason=str(error))

    async def _ask(self, key: _Key) -> _Reading:
        kind, name = key
        if self._client is None:
            raise unavailable(
                f"{_what(key)} is in a cluster, and this process is not connected to one",
                remediation="Run countersign serve with --cluster; elsewhere use dockerConfig in place of k8Secrets.",
            )
        try:
            async with asyncio.timeout(self._read_seconds):
                found = await self._client.get(kind, name.name, namespace=name.namespace)
        except ApiError as error:
            return _refusal(key, error.response.status_code)
        except httpx2.HTTPStatusError as error:  # not in the API server's words: something else may stand in between
            raise _unreachable(key, f"answered {error.response.status_code} without saying why") from None
        except TimeoutError:
            raise _unreachable(key, f"did not answer within {self._read_seconds:g} s") from None
        except (httpx2.HTTPError, httpx2.StreamError, OSError, ConfigError) as error:
            raise _unreachable(key, f"is out of reach ({type(error).__name__})") from None
        # From lightkube's reading of the answer; a text of theirs may hold what is in it.
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _unreachable(key, "gave an answer that cannot be read") from None
        if found.metadata is None or (found.metadata.namespace, found.metadata.name) != name:
            raise _unreachable(key, "gave another object")
        try:
            if isinstance(found, Secret):
                parse = partial(PullSecret.parse, name, found.type, found.data)
                return await asyncio.to_thread(parse) if _size(found) > MAX_AT_ONCE else parse()
            return named_secrets(name, [reference.name for reference in found.imagePullSecrets or ()])
        except Undecided as error:
            return error


def _what(key: _Key) -> str:
    kind, name = key
    return f"the {kind.__name__} {name}"


def _size(secret: Secret) -> int:
    return sum(len(value) for value in (secret.data or {}).values() if isinstance(value, str))


def _refusal(key: _Key, status: int) -> Undecided:
    """What a status of the API server means.

    Raises:
        Undecided: nothing about the object.
    """
    kind, name = key
    plural = f"{kind.__name__.lower()}s"
    if status == 404:
        return unavailable(
            f"{_what(key)} does not exist",
            remediation=f"Create it, or mend its name in authProvider of the Store or imagePullSecrets of the "
            f"ServiceAccount: kubectl get {plural} --namespace {name.namespace}",
        )
    if status == 403:
        return unavailable(
            f"{_what(key)} may not be read by the provider's service account",
            remediation=f"Let it get {plural} in the namespace {name.namespace}: see rbac.pullSecretNamespaces of the "
            'chart, and "Pull secrets" in docs/operations.md.',
        )
    raise _unreachable(key, f"answered {status}")


def _unreachable(key: _Key, problem: str) -> Undecided:
    return unavailable(
        f"{_what(key)} cannot be read: the API server {problem}",
        remediation="See that the provider reaches the API server of the cluster, and that its token is good.",
    )
