"""Registry credentials from a Docker configuration file, and from the credential helpers that it names.

    {"auths": {"<key>": {"auth": base64("user:password"), "username", "password", "identitytoken", "registrytoken"}},
     "credHelpers": {"<registry>": "<helper>"}, "credsStore": "<helper>"}

Rules:
- A key is a registry, with or without scheme, and may go on with a repository path. It covers what begins with it,
  whole components only: `reg.example.com/team` covers `reg.example.com/team/app`, not `reg.example.com/team-evil`, and
  `reg.example.com` not `reg.example.com.evil.org`. The longest key wins.
- `https://index.docker.io/v1/` and its kin mean docker.io.
- A helper is a program `docker-credential-<name>` on the PATH; its name holds no path. It gets the registry on its
  standard input, a limited time to answer and a limited answer.
- What a source says of a registry is used or is an error; a broken entry never becomes anonymous access.
- The file is read again when it changes. One that cannot be read as a configuration any more leaves the last good one.
- A helper's answer is kept for a while; when a registry refuses what was in it, the helper is asked again, but not
  oftener than every REFUSAL_PAUSE_SECONDS: whoever names an image decides how often a registry refuses.

What does not belong here: what is done with a credential (stores/), which entry of a pull secret of Kubernetes counts
(pull_secrets.py; their entries are read here).
Sources: docker/cli "config.json" and "Credential helper protocol"; Kubernetes "Images: config.json"; attack N08.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from cachetools import TTLCache

from provider import strict_json
from provider.cache import SingleFlight
from provider.errors import ConfigurationError, Fault, Undecided
from provider.interfaces import Credential

MAX_CONFIG_BYTES: Final = 1024 * 1024  # a Kubernetes Secret holds no more
MAX_HELPER_BYTES: Final = 256 * 1024  # of a helper's answer; tokens of clouds reach some 10 KiB
HELPER_TIMEOUT_SECONDS: Final = 5.0  # of one run of a helper; cloud helpers ask over the network
KILL_SECONDS: Final = 2.0  # until a killed process is gone; it takes milliseconds
HELPER_KEEP_SECONDS: Final = 300.0  # how long a helper's answer is used; cloud tokens live for an hour or more
REFUSAL_PAUSE_SECONDS: Final = 30.0  # between two runs of a helper that refusals of a registry cause
MAX_KEPT_ANSWERS: Final = 1024

DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"  # what helpers know Docker Hub by
TOKEN_USER: Final = "<token>"  # noqa: S105 - the user name that marks an identity token

_DOCKER_HUB_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_HELPER_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_NOT_FOUND: Final = b"credentials not found in native keychain"  # docker-credential-helpers, its one way to say none


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """A parsed configuration.

    Attributes:
        entries: by registry and path components; None for an entry without a credential, a text for a broken one.
        helpers: helper names by registry.
        default_helper: helper for all other registries, empty for none.
    """

    entries: Mapping[tuple[str, ...], Credential | str | None] = field(default_factory=dict)
    helpers: Mapping[str, str] = field(default_factory=dict)
    default_helper: str = ""

    @classmethod
    def parse(cls, data: bytes, source: str = "") -> Self:
        """Read a configuration. Unknown members are ignored; one broken entry does not spoil the others.

        Args:
            data: the file.
            source: its name, for errors.

        Raises:
            ConfigurationError: CONFIG_INVALID, with every fault outside single entries. Nothing of the file is quoted.
        """
        try:
            document = strict_json.loads(data, max_bytes=MAX_CONFIG_BYTES)
        except strict_json.MalformedJSONError as error:
            raise _invalid(source, [("", f"is not JSON: {error}")]) from None
        if not isinstance(document, dict):
            raise _invalid(source, [("", "is not a JSON object")])
        faults: list[tuple[str, str]] = []
        entries = read_auths(_mapping(document, "auths", faults))
        helpers: dict[str, str] = {}
        for key, name in _mapping(document, "credHelpers", faults).items():
            helpers[_scope(key)[0]] = _helper_name(name, "credHelpers", faults)
        default = _helper_name(document.get("credsStore") or "", "credsStore", faults)
        if faults:
            raise _invalid(source, faults)
        return cls(entries, helpers, default)

    def lookup(self, domain: str, path: str) -> Credential | None:
        """The credential of the longest key that covers a repository, None when no key does or it holds none.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, when that entry is broken.
        """
        scope = (domain.lower(), *path.split("/"))
        for length in range(len(scope), 0, -1):
            entry = self.entries.get(scope[:length])
            if isinstance(entry, str):
                raise _unavailable(f"the entry for {'/'.join(scope[:length])} in the Docker configuration {entry}")
            if entry is not None:
                return entry
        return None

    def helper(self, domain: str) -> str:
        """The name of the helper that knows a registry, empty when none is configured for it."""
        return self.helpers.get(domain.lower(), self.default_helper)


def read_auths(auths: Mapping[str, Any]) -> dict[tuple[str, ...], Credential | str | None]:
    """Read `auths` of a configuration, as DockerConfig.entries has it.

    Args:
        auths: the member; untrusted.
    """
    entries: dict[tuple[str, ...], Credential | str | None] = {}
    for key, entry in auths.items():
        scope = _scope(key)
        if entries.get(scope) is None:  # two spellings of one registry: the first that says something
            entries[scope] = _read_entry(entry)
    return entries


class DockerConfigCredentials:
    """Credentials from a Docker configuration file on disk. To be closed with `aclose`.

    Args:
        path: the file, or the folder that holds it as config.json (as DOCKER_CONFIG names it).
        required: the file has to be there; otherwise its absence means anonymous access.
        helper_timeout_seconds: the most that one run of a helper may take.
        helper_environment: environment of helpers; the process's own by default.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        path: Path,
        *,
        required: bool = True,
        helper_timeout_seconds: float = HELPER_TIMEOUT_SECONDS,
        helper_environment: Mapping[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._required = required
        self._helper_timeout_seconds = helper_timeout_seconds
        self._helper_environment = helper_environment
        self._stamp: object = None
        self._config: DockerConfig | None = None
        self._monotonic = monotonic
        self._answers: TTLCache[tuple[str, str], tuple[Credential | None, float]] = TTLCache(
            MAX_KEPT_ANSWERS, HELPER_KEEP_SECONDS, timer=monotonic
        )
        self._flights: SingleFlight[tuple[str, str], Credential | None] = SingleFlight()

    async def credential(self, domain: str, path: str) -> Credential | None:
        """The credential for a repository; see interfaces.CredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, when the file is missing or unusable and no good one was read before,
                when the entry is broken, or when the helper fails.
        """
        config = self._load()
        if config is None:
            return None
        name = config.helper(domain)
        if name:
            found = await self._ask_helper(name, _server(domain))
            if found is not None:
                return found
        return config.lookup(domain, path)

    def refused(self, domain: str, path: str) -> None:  # noqa: ARG002 - helpers know registries alone
        """A registry refused: what its helper said is asked for again. The file is looked at every time anyway."""
        if self._config is not None:
            key = (self._config.helper(domain), _server(domain))
            _, asked = self._answers.get(key, (None, self._monotonic()))
            if self._monotonic() >= asked + REFUSAL_PAUSE_SECONDS:
                del self._answers[key]

    async def aclose(self) -> None:
        """Give up the helpers under way."""
        await self._flights.aclose()

    def _load(self) -> DockerConfig | None:
        path = self._path
        try:
            path = path / "config.json" if path.is_dir() else path
            status = path.stat()
            stamp = (path, status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return self._good(path)
            with path.open("rb") as file:
                data = file.read(MAX_CONFIG_BYTES + 1)
        except FileNotFoundError:
            self._stamp, self._config = None, None
            if self._required:
                raise _unavailable(f"the Docker configuration {path} does not exist") from None
            return None
        except OSError as error:
            raise _unavailable(f"the Docker configuration {path} cannot be read: {error.strerror}") from None
        self._stamp = stamp
        try:
            self._config = DockerConfig.parse(data, str(path))
        except ConfigurationError as error:
            if self._config is None:
                raise _unavailable(_all_faults(error)) from None
        else:
            self._answers.clear()
        return self._config

    def _good(self, path: Path) -> DockerConfig:
        if self._config is None:
            raise _unavailable(f"the Docker configuration {path} is not valid; it was looked at before")
        return self._config

    async def _ask_helper(self, name: str, server: str) -> Credential | None:
        key = (name, server)
        if key in self._answers:
            return self._answers[key][0]
        asked = self._monotonic()
        found = await self._flights.run(key, lambda: self._run_helper(name, server))
        self._answers[key] = (found, asked)
        return found

    async def _run_helper(self, name: str, server: str) -> Credential | None:
        """Run `docker-credential-<name> get` (docker-credential-helpers, "Credential helper protocol")."""
        program = f"docker-credential-{name}"
        try:
            transport, conversation = await asyncio.get_running_loop().subprocess_exec(
                _Conversation,
                program,
                "get",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._helper_environment,
                start_new_session=True,
            )
        except OSError as error:
            raise _unavailable(f"the credential helper {program} cannot be run: {error.strerror}") from None
        try:
            async with asyncio.timeout(self._helper_timeout_seconds):
                output, status = await conversation.hold(transport, server.encode())
        except TimeoutError:
            limit = self._helper_timeout_seconds
            raise _unavailable(f"the credential helper {program} did not answer within {limit:g} s") from None
        finally:
            await conversation.end(transport)
        if len(output) > MAX_HELPER_BYTES:
            raise _unavailable(f"the credential helper {program} answered with more than {MAX_HELPER_BYTES} bytes")
        if status != 0:
            if _NOT_FOUND in output:
                return None
            raise _unavailable(f"the credential helper {program} failed with exit status {status}")
        return _read_helper_answer(program, output)


class _Conversation(asyncio.SubprocessProtocol):
    """One question to a helper and its answer, of which at most one byte more than is taken is kept."""

    def __init__(self) -> None:
        self._output = bytearray()
        self._closed = False
        self._exited = asyncio.Event()
        self._ended = asyncio.Event()

    async def hold(self, transport: asyncio.SubprocessTransport, question: bytes) -> tuple[bytes, int | None]:
        """Ask, and wait for the end of the answer and of the process. The exit status is None when it said too much."""
        pipe = transport.get_pipe_transport(0)
        if isinstance(pipe, asyncio.WriteTransport):
            pipe.write(question)
            pipe.close()
        await self._ended.wait()
        return bytes(self._output), transport.get_returncode()

    async def end(self, transport: asyncio.SubprocessTransport) -> None:
        """Leave neither the process behind nor what it started: it runs in a session of its own."""
        if not (self._exited.is_set() and self._closed):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    await self._exited.wait()
        transport.close()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        del fd  # there is but one to read from
        self._output += data[: MAX_HELPER_BYTES + 1 - len(self._output)]
        if len(self._output) > MAX_HELPER_BYTES:
            self._ended.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        del exc
        if fd == 1:
            self._closed = True
            self._check_ended()

    def process_exited(self) -> None:
        self._exited.set()
        self._check_ended()

    def _check_ended(self) -> None:
        if self._closed and self._exited.is_set():
            self._ended.set()


def _server(domain: str) -> str:
    """What helpers know a registry by."""
    return DOCKER_HUB_KEY if domain == DOCKER_HUB else domain


def _read_helper_answer(program: str, output: bytes) -> Credential:
    try:
        answer = strict_json.loads(output, max_bytes=MAX_HELPER_BYTES)
    except strict_json.MalformedJSONError:
        answer = None
    username = answer.get("Username") if isinstance(answer, dict) else None
    secret = answer.get("Secret") if isinstance(answer, dict) else None
    if not isinstance(username, str) or not isinstance(secret, str) or not username or not secret:
        raise _unavailable(f"the credential helper {program} answered without Username and Secret")
    return _pair(username, secret)


def _pair(username: str, secret: str) -> Credential:
    return Credential(identity_token=secret) if username == TOKEN_USER else Credential(username, secret)


def _mapping(document: dict[str, Any], name: str, faults: list[tuple[str, str]]) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        faults.append((name, "is not an object"))
        return {}
    return value


def _helper_name(name: Any, path: str, faults: list[tuple[str, str]]) -> str:
    if name == "":  # no helper, for this registry
        return ""
    if not isinstance(name, str) or _HELPER_NAME.fullmatch(name) is None:
        faults.append((path, "is not the name of a credential helper (letters, digits, dot, dash, underscore)"))
        return ""
    return name


def _scope(key: str) -> tuple[str, ...]:
    """A key of the file as registry and path components."""
    scheme = _SCHEME.match(key)
    host, *components = key[scheme.end() :].strip("/").split("/") if scheme else key.rstrip("/").split("/")
    host = host.lower()
    if host in _DOCKER_HUB_HOSTS:
        host = DOCKER_HUB
    # `/v1/` and `/v2/` are the API's, not a repository: in URLs, and for Docker Hub, which has no such namespaces.
    if components in (["v1"], ["v2"]) and (scheme or host == DOCKER_HUB):
        components = []
    return (host, *components)


def _read_entry(entry: Any) -> Credential | str | None:
    """The credential of one entry of `auths`, None when it holds none, what is wrong with it as a text."""
    if not isinstance(entry, dict):
        return "is not an object"
    texts = {name: entry.get(name) or "" for name in ("auth", "username", "password", "identitytoken", "registrytoken")}
    for name, value in texts.items():
        if not isinstance(value, str):
            return f"has a {name} that is not a string"
    if texts["registrytoken"]:
        return Credential(registry_token=texts["registrytoken"])
    if texts["identitytoken"]:
        return Credential(identity_token=texts["identitytoken"])
    if texts["auth"]:
        try:
            pair = base64.b64decode(texts["auth"], validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return "has an auth that is not base64 of UTF-8 text"
        username, colon, password = pair.partition(":")
        password = password.rstrip("\0")  # Docker pads some with NUL
        if not colon or not username or not password:
            return "has an auth that is not base64 of user:password"
        return _pair(username, password)
    if bool(texts["username"]) != bool(texts["password"]):
        return "has a username or a password and not both"
    return _pair(texts["username"], texts["password"]) if texts["username"] else None


def _invalid(source: str, faults: list[tuple[str, str]]) -> ConfigurationError:
    return ConfigurationError(
        "CONFIG_INVALID",
        f"the Docker configuration {source} is not valid".replace("  ", " "),
        faults=[Fault(source, "", path, message) for path, message in faults],
        remediation="Write the file with docker login, or as Docker documents config.json.",
    )


def _all_faults(error: ConfigurationError) -> str:
    return f"{error.reason}: {'; '.join(f'{fault.path} {fault.message}'.strip() for fault in error.faults)}"


def _unavailable(reason: str) -> Undecided:
    return Undecided("CREDENTIALS_UNAVAILABLE", reason)
