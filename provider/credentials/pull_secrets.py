"""What a pull secret says, and which repositories it speaks of. Pure functions.

    Secret kubernetes.io/dockerconfigjson    .dockerconfigjson    a Docker configuration
    Secret kubernetes.io/dockercfg           .dockercfg           its `auths` alone, the form of old

Rules:
- Only these two types are read, and of them only `auths`: a secret of another purpose is nobody's pull secret, and a
  credential helper that a secret names is a program to run, which no Secret may choose.
- A key is a registry, with its port if it has one, and may go on with a repository path. As the kubelet reads it, `*`
  and `?` in a host stand for characters of one label, and pattern and host have equally many labels: `*.example.com`
  covers `reg.example.com`, neither `example.com` nor `a.b.example.com`. A port and a path have no wildcards.
- Unlike the kubelet's, a path covers whole components: `reg/team` is not for `reg/team-evil` (N08).
- The most specific first: a host in full before a pattern, then the longer path, then the pattern with more written
  out, then the secret that is asked first.
- Nothing of a secret is in an error or a repr, but the key of a broken entry: it is the name of a repository.

What does not belong here: reading Secrets (kubernetes.py), Docker configurations (docker_config.py).
Sources: Kubernetes "Images", section "Interpretation of config.json"; kubelet, pkg/credentialprovider.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from provider import strict_json
from provider.credentials.docker_config import MAX_CONFIG_BYTES, read_auths
from provider.errors import Undecided, printable
from provider.interfaces import Credential

MAX_PATTERNS: Final = 256  # keys with wildcards of one secret: each is compared with every repository that is asked for
MAX_HOST_LENGTH: Final = 260  # a name of DNS and a port; longer keys are no registry's
MAX_SECRETS: Final = 64  # of a service account

DATA_KEYS: Final[Mapping[str, str]] = {
    "kubernetes.io/dockerconfigjson": ".dockerconfigjson",
    "kubernetes.io/dockercfg": ".dockercfg",
}

_WILDCARD = re.compile(r"[*?]")
# RFC 1123, as Kubernetes wants names of Secrets. The API server does not look at those in a service account, and a name
# with a slash in it would lead to another object.
_OBJECT_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")

_WRITE: Final = "Write the secret with kubectl create secret docker-registry, or as Kubernetes documents pull secrets."


class ObjectName(NamedTuple):
    """An object of a namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class _Rank(NamedTuple):
    """How specific a key is; the least is the most specific."""

    is_pattern: bool
    path: int
    written_out: int


@dataclass(frozen=True, slots=True)
class Match:
    """An entry that covers a repository.

    Attributes:
        rank: how specific it is; to be sorted by.
        credential: what it holds; secret.
        problem: why it holds nothing, empty if it does.
    """

    rank: _Rank
    credential: Credential | None = field(repr=False)
    problem: str = ""


class _Pattern(NamedTuple):
    labels: tuple[str, ...]
    port: str
    path: tuple[str, ...]
    entry: Credential | str

    def __repr__(self) -> str:
        return "_Pattern(...)"


@dataclass(frozen=True, slots=True)
class PullSecret:
    """The entries of a secret.

    Attributes:
        name: the Secret.
        entries: by registry and path components, those without wildcards; a text for a broken one.
        patterns: those with wildcards.
    """

    name: ObjectName
    entries: Mapping[tuple[str, ...], Credential | str] = field(repr=False)
    patterns: Sequence[_Pattern] = field(repr=False)

    @classmethod
    def parse(cls, name: ObjectName, kind: str | None, data: Mapping[str, object] | None) -> PullSecret:
        """Read a Secret.

        Args:
            name: its name, for errors.
            kind: its type; untrusted.
            data: its data, base64 by key; untrusted.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE; nothing of the data is in it.
        """
        kind = kind or "Opaque"
        key = DATA_KEYS.get(kind)
        if key is None:
            raise unavailable(
                f"the Secret {name} is no pull secret",
                expected=f"type {' or '.join(DATA_KEYS)}",
                found=printable(kind, 64),
                remediation=_WRITE,
            )
        encoded = (data or {}).get(key)
        if not isinstance(encoded, str) or not encoded:
            raise unavailable(f"the Secret {name} of type {kind} has nothing under {key}", remediation=_WRITE)
        if len(encoded) > MAX_CONFIG_BYTES * 4 // 3 + 4:
            raise unavailable(
                f"the Secret {name} is too large",
                expected=f"at most {MAX_CONFIG_BYTES} bytes under {key}",
                remediation="Keep only the registries in it that this cluster pulls from.",
            )
        try:
            document = strict_json.loads(base64.b64decode(encoded, validate=True), max_bytes=MAX_CONFIG_BYTES)
        except (binascii.Error, ValueError):  # MalformedJSONError among them
            document = None
        if isinstance(document, dict) and key == ".dockerconfigjson":
            document = document.get("auths", {})
        if not isinstance(document, dict):
            raise unavailable(
                f"the Secret {name} of type {kind} holds no Docker configuration under {key}", remediation=_WRITE
            )
        return cls._of(name, read_auths(document))

    @classmethod
    def _of(cls, name: ObjectName, auths: Mapping[tuple[str, ...], Credential | str | None]) -> PullSecret:
        entries: dict[tuple[str, ...], Credential | str] = {}
        patterns = []
        for scope, entry in auths.items():
            if entry is None or len(scope[0]) > MAX_HOST_LENGTH:
                continue
            if _WILDCARD.search(scope[0]):
                labels, port = _labels(scope[0])
                patterns.append(_Pattern(labels, port, scope[1:], entry))
            else:
                entries[scope] = entry
        if len(patterns) > MAX_PATTERNS:
            raise unavailable(
                f"the Secret {name} has too many keys with wildcards",
                expected=f"at most {MAX_PATTERNS}",
                found=str(len(patterns)),
                remediation="Name the registries in full, or spread them over several secrets.",
            )
        return cls(name, entries, tuple(patterns))

    def matches(self, domain: str, path: str) -> Iterable[Match]:
        """The entries that cover a repository, in no order.

        Args:
            domain: registry host with port, normalised.
            path: repository path.
        """
        domain = domain.lower()
        scope = (domain, *path.split("/"))
        for length in range(len(scope), 0, -1):
            entry = self.entries.get(scope[:length])
            if entry is not None:
                yield self._match(_Rank(False, -length, 0), entry, scope[:length])
        labels, port = _labels(domain) if self.patterns else ((), "")
        for pattern in self.patterns:
            if (pattern.port, len(pattern.labels)) != (port, len(labels)):
                continue
            if scope[1 : len(pattern.path) + 1] == pattern.path and all(map(_covers, pattern.labels, labels)):
                host = ".".join(pattern.labels)
                rank = _Rank(True, -len(pattern.path), -len(_WILDCARD.sub("", host)))
                yield self._match(rank, pattern.entry, (host, *pattern.path))

    def _match(self, rank: _Rank, entry: Credential | str, key: Sequence[str]) -> Match:
        if isinstance(entry, Credential):
            return Match(rank, entry)
        return Match(rank, None, f"the entry for {printable('/'.join(key), 200)} in the Secret {self.name} {entry}")


def named_secrets(account: ObjectName, names: Sequence[str | None]) -> tuple[ObjectName, ...]:
    """The Secrets of a service account's imagePullSecrets, which are of its namespace.

    Args:
        account: the service account.
        names: their names; untrusted.

    Raises:
        Undecided: CREDENTIALS_UNAVAILABLE, for more than MAX_SECRETS, or for what can be no Secret's name.
    """
    given = [name for name in names if name]
    if len(given) > MAX_SECRETS:
        raise unavailable(
            f"the ServiceAccount {account} names too many pull secrets",
            expected=f"at most {MAX_SECRETS}",
            found=str(len(given)),
            remediation="Name the secrets that matter in authProvider.secrets of the Store.",
        )
    for name in given:
        if _OBJECT_NAME.fullmatch(name) is None:
            raise unavailable(
                f"the ServiceAccount {account} names a pull secret that can be none",
                expected="a Kubernetes name (a-z, 0-9, '-', '.')",
                found=printable(name, 64),
                remediation=f"Mend imagePullSecrets: kubectl edit serviceaccount --namespace {account.namespace} "
                f"{account.name}",
            )
    return tuple(ObjectName(account.namespace, name) for name in dict.fromkeys(given))


def unavailable(
    reason: str, *, expected: str | None = None, found: str | None = None, remediation: str | None = None
) -> Undecided:
    """The error of everything that cannot be had of a pull secret."""
    return Undecided("CREDENTIALS_UNAVAILABLE", reason, expected=expected, found=found, remediation=remediation)


def _labels(host: str) -> tuple[tuple[str, ...], str]:
    """Labels and port of a host."""
    name, colon, port = host.partition(":")
    return tuple(name.split(".")), port if colon else ""


def _covers(pattern: str, label: str) -> bool:
    """Whether a pattern with `*` and `?` covers a label; the time is bounded by the product of their lengths (N23)."""
    at, star, retry = 0, -1, 0
    position = 0
    while position < len(label):
        if at < len(pattern) and pattern[at] == "*":
            star, retry = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", label[position]):
            at += 1
            position += 1
        elif star >= 0:
            retry += 1
            at, position = star + 1, retry
        else:
            return False
    return pattern[at:].strip("*") == ""
