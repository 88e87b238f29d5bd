"""The trust policy document: which repositories are verified how, with whose certificates, and for whose identities.

    {"version": "1.0",
     "trustPolicies": [{"name": ..., "registryScopes": [...],
                        "signatureVerification": {"level": ..., "override": {check: action}, "verifyTimestamp": ...},
                        "trustStores": ["type:name", ...], "trustedIdentities": [...]}, ...]}

Rules:
- A document is valid as a whole or not at all, and every fault is reported with its path, not the first one only.
- Nothing unknown is ignored: a member with a typing error in its name would otherwise weaken a policy in silence.
- A repository is covered by the statement that names it exactly, else by the one with scope `*`, else by none, which
  refuses it. There are no prefixes or patterns (attack N35).
- Integrity can never be overridden, and only revocation can be skipped. `skip` as a level needs named repositories: for
  `*` it would switch verification off for everything.
- null counts as absent, since YAML writes an empty value so.

What does not belong here: where documents come from, what is in trust stores, the checks themselves.
Source: notaryproject/specifications trust-store-trust-policy.md "Trust Policy"; stricter than notation-go where it says
`skip` on `*`, blank names, "." and ".." as store names, unknown members.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

from provider import strict_json
from provider.errors import ConfigurationError, Fault, Refused, printable
from provider.notation.identities import IdentityKind, TrustedIdentity

MAX_POLICY_BYTES: Final = 1024 * 1024  # bytes of a document; what etcd stores in one object, roughly
MAX_IDENTITIES: Final = 500  # of one statement; every pair is compared for overlap
MAX_SHOWN: Final = 80  # characters of a foreign value in a fault

_VERSION: Final = "1.0"
_WILDCARD: Final = "*"

# Linear on every input, unlike notation-go's: no part can match the empty string or its neighbour's text (attack N23).
# The two accept the same texts; fullmatch refuses the line feed that `$` lets through.
_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_STORE_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]+")


class Check(enum.StrEnum):
    """The checks of a signature, as a policy spells them."""

    INTEGRITY = "integrity"
    AUTHENTICITY = "authenticity"
    AUTHENTIC_TIMESTAMP = "authenticTimestamp"
    EXPIRY = "expiry"
    REVOCATION = "revocation"


class Action(enum.Enum):
    """What a failed check leads to."""

    ENFORCE = "enforce"
    LOG = "log"
    SKIP = "skip"


class Level(enum.StrEnum):
    """A named set of actions."""

    STRICT = "strict"
    PERMISSIVE = "permissive"
    AUDIT = "audit"
    SKIP = "skip"


class StoreType(enum.Enum):
    """What the certificates of a trust store are trusted for."""

    CA = "ca"
    SIGNING_AUTHORITY = "signingAuthority"
    TSA = "tsa"


class VerifyTimestamp(enum.Enum):
    """When a time-stamp is verified, where the statement lists a tsa store."""

    ALWAYS = "always"
    AFTER_CERT_EXPIRY = "afterCertExpiry"


LEVEL_ACTIONS: Final[Mapping[Level, Mapping[Check, Action]]] = MappingProxyType(
    {
        level: MappingProxyType(dict(zip(Check, actions, strict=True)))
        for level, actions in {
            # in the order of Check: integrity, authenticity, authenticTimestamp, expiry, revocation
            Level.STRICT: (Action.ENFORCE, Action.ENFORCE, Action.ENFORCE, Action.ENFORCE, Action.ENFORCE),
            Level.PERMISSIVE: (Action.ENFORCE, Action.ENFORCE, Action.LOG, Action.LOG, Action.LOG),
            Level.AUDIT: (Action.ENFORCE, Action.LOG, Action.LOG, Action.LOG, Action.LOG),
            Level.SKIP: (Action.SKIP, Action.SKIP, Action.SKIP, Action.SKIP, Action.SKIP),
        }.items()
    }
)


@dataclass(frozen=True, slots=True)
class TrustPolicyStatement:
    """One statement of a valid document.

    Attributes:
        name: the statement's name, unique in the document.
        registry_scopes: the repositories it covers; `*` alone covers all that no other statement names.
        level: the level as written. SKIP means that images are accepted unverified.
        overrides: actions that replace those of the level.
        verify_timestamp: when a time-stamp is verified.
        trust_stores: type and name of the trust stores; empty with SKIP.
        trusted_identities: the identities; empty with SKIP.
    """

    name: str
    registry_scopes: tuple[str, ...]
    level: Level
    overrides: Mapping[Check, Action] = field(hash=False)
    verify_timestamp: VerifyTimestamp
    trust_stores: tuple[tuple[StoreType, str], ...]
    trusted_identities: tuple[TrustedIdentity, ...]

    def action(self, check: Check) -> Action:
        """What a failure of this check leads to."""
        return self.overrides.get(check, LEVEL_ACTIONS[self.level][check])

    @property
    def skips(self) -> bool:
        """Whether images are accepted without looking for a signature."""
        return self.level is Level.SKIP

    @property
    def level_name(self) -> str:
        """The level's name for people: `custom` when something is overridden, as notation says."""
        return "custom" if self.overrides else self.level.value


@dataclass(frozen=True, slots=True)
class TrustPolicyDocument:
    """A valid trust policy document.

    Attributes:
        statements: its statements, at least one.
        warnings: what is valid and yet probably not meant, one sentence each with the path.
    """

    statements: tuple[TrustPolicyStatement, ...]
    warnings: tuple[str, ...] = ()
    _by_scope: Mapping[str, TrustPolicyStatement] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_scope = {scope: statement for statement in self.statements for scope in statement.registry_scopes}
        object.__setattr__(self, "_by_scope", by_scope)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a document from JSON.

        Raises:
            ConfigurationError: TRUST_POLICY_INVALID with every fault; source and resource of the faults are empty.
        """
        try:
            value = strict_json.loads(data, max_bytes=MAX_POLICY_BYTES)
        except strict_json.MalformedJSONError as error:
            raise _invalid([Fault("", "", "", f"the trust policy is not strict JSON: {error}")]) from None
        return cls.from_object(value)

    @classmethod
    def from_object(cls, value: object) -> Self:
        """Read a document from what a JSON or YAML reader made of it.

        Args:
            value: any object; of containers only dict and list are looked into.

        Raises:
            ConfigurationError: TRUST_POLICY_INVALID with every fault; source and resource of the faults are empty.
        """
        reader = _DocumentReader()
        statements = reader.read(value)
        if reader.faults:
            raise _invalid(reader.faults)
        return cls(statements, tuple(reader.warnings))

    def select(self, repository: str) -> TrustPolicyStatement:
        """Find the statement that covers a repository.

        Args:
            repository: registry and path without tag and digest, such as `registry.example.com/team/app`; compared as
                it is, so it must be in the form that the policy's scopes have.

        Raises:
            Refused: NO_TRUST_POLICY.
        """
        statement = None
        if _is_repository(repository):
            statement = self._by_scope.get(repository) or self._by_scope.get(_WILDCARD)
        if statement is None:
            raise Refused("NO_TRUST_POLICY", "no statement of the trust policy covers the repository", found=repository)
        return statement


def _invalid(faults: Iterable[Fault]) -> ConfigurationError:
    faults = tuple(faults)
    first = f"{faults[0].path}: {faults[0].message}" if faults[0].path else faults[0].message
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return ConfigurationError("TRUST_POLICY_INVALID", f"the trust policy is invalid: {first}{more}", faults=faults)


def _is_repository(text: str) -> bool:
    domain, slash, path = text.partition("/")
    return bool(slash and _DOMAIN.fullmatch(domain) and _PATH.fullmatch(path))


_E = TypeVar("_E", bound=enum.Enum)


class _DocumentReader:
    """One reading of one document; collects faults and goes on, so that what it returns counts only without any."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.warnings: list[str] = []
        self._names: set[str] = set()
        self._scopes: set[str] = set()

    def read(self, value: object) -> tuple[TrustPolicyStatement, ...]:
        members = self._members(value, "", ("version", "trustPolicies"))
        if members is None:
            return ()
        version = members.get("version")
        if version != _VERSION:
            self._fault("version", f'must be the string "{_VERSION}", in quotes; found {_shown(version)}')
        statements = self._list(members.get("trustPolicies"), "trustPolicies", required="statement")
        return tuple(
            statement
            for index, entry in enumerate(statements)
            if (statement := self._statement(entry, f"trustPolicies[{index}]")) is not None
        )

    def _statement(self, value: object, path: str) -> TrustPolicyStatement | None:
        members = self._members(
            value, path, ("name", "registryScopes", "signatureVerification", "trustStores", "trustedIdentities")
        )
        if members is None:
            return None
        name = self._name(members.get("name"), f"{path}.name")
        level, overrides, verify_timestamp = self._verification(
            members.get("signatureVerification"), f"{path}.signatureVerification"
        )
        scopes = self._registry_scopes(members.get("registryScopes"), f"{path}.registryScopes")
        if level is Level.SKIP and _WILDCARD in scopes:
            self._fault(f"{path}.registryScopes", "must name repositories when the level is skip, not *")
        for key in ("trustStores", "trustedIdentities"):
            if level is Level.SKIP and members.get(key):
                self._fault(f"{path}.{key}", "must be absent when the level is skip")
        required = None if level is Level.SKIP else "entry"
        return TrustPolicyStatement(
            name=name,
            registry_scopes=scopes,
            level=level,
            overrides=MappingProxyType(overrides),
            verify_timestamp=verify_timestamp,
            trust_stores=self._trust_stores(members.get("trustStores"), f"{path}.trustStores", required),
            trusted_identities=self._trusted_identities(
                members.get("trustedIdentities"), f"{path}.trustedIdentities", required
            ),
        )

    def _name(self, value: object, path: str) -> str:
        name = self._text(value, path)
        if name is None:
            return ""
        if not name.strip():
            self._fault(path, "must not be blank")
        elif name in self._names:
            self._fault(path, f"is used by an earlier statement too: {_shown(name)}")
        self._names.add(name)
        return name

    # -- signatureVerification -------------------------------------------------------------------------------------

    def _verification(self, value: object, path: str) -> tuple[Level, dict[Check, Action], VerifyTimestamp]:
        """The level counts as strict where it cannot be read, so that the rest is judged as for most statements."""
        members = self._members(value, path, ("level", "override", "verifyTimestamp"))
        if members is None:
            return Level.STRICT, {}, VerifyTimestamp.ALWAYS
        level = self._choice(Level, members.get("level"), f"{path}.level")
        verify_timestamp = None
        if members.get("verifyTimestamp") not in (None, ""):
            verify_timestamp = self._choice(VerifyTimestamp, members["verifyTimestamp"], f"{path}.verifyTimestamp")
        override = members.get("override")
        overrides = {} if override is None else self._overrides(override, f"{path}.override")
        if level is Level.SKIP and override:
            self._fault(f"{path}.override", "must be absent when the level is skip")
        return level or Level.STRICT, overrides, verify_timestamp or VerifyTimestamp.ALWAYS

    def _overrides(self, value: object, path: str) -> dict[Check, Action]:
        overrides: dict[Check, Action] = {}
        members = self._members(value, path, tuple(check.value for check in Check)) or {}
        for check in Check:
            if check.value not in members:
                continue
            where = f"{path}.{check.value}"
            if check is Check.INTEGRITY:
                self._fault(where, "cannot be overridden: integrity is always enforced")
                continue
            action = self._choice(Action, members[check.value], where)
            if action is Action.SKIP and check is not Check.REVOCATION:
                self._fault(where, "cannot be skipped; only revocation can")
            elif action is not None:
                overrides[check] = action
        return overrides

    # -- lists -----------------------------------------------------------------------------------------------------

    def _registry_scopes(self, value: object, path: str) -> tuple[str, ...]:
        scopes = []
        entries = self._list(value, path, required="repository, or * alone")
        for index, entry in enumerate(entries):
            where = f"{path}[{index}]"
            scope = self._text(entry, where)
            if scope is None:
                continue
            if scope == _WILDCARD:
                if len(entries) > 1:
                    self._fault(where, "is *, which must stand alone")
            elif not _is_repository(scope):
                self._fault(
                    where,
                    "must be registry/repository in full, without scheme, tag, digest or *, such as "
                    f"registry.example.com/team/app; found {_shown(scope)}",
                )
            if scope in self._scopes:
                self._fault(where, f"is listed before, and a scope belongs to one statement: {_shown(scope)}")
            self._scopes.add(scope)
            scopes.append(scope)
        return tuple(scopes)

    def _trust_stores(self, value: object, path: str, required: str | None) -> tuple[tuple[StoreType, str], ...]:
        stores = []
        for index, entry in enumerate(self._list(value, path, required=required)):
            where = f"{path}[{index}]"
            text = self._text(entry, where)
            if text is None:
                continue
            kind, colon, name = text.partition(":")
            if not colon:
                self._fault(where, f"must be type:name, such as ca:contoso; found {_shown(text)}")
                continue
            store_type = self._choice(StoreType, kind, where)
            if _STORE_NAME.fullmatch(name) is None or name in (".", ".."):
                self._fault(where, f"must have a name of letters, digits, _ . and - alone; found {_shown(name)}")
            elif store_type is not None:
                stores.append((store_type, name))
        return tuple(stores)

    def _trusted_identities(self, value: object, path: str, required: str | None) -> tuple[TrustedIdentity, ...]:
        entries = self._list(value, path, required=required)
        if len(entries) > MAX_IDENTITIES:
            self._fault(path, f"must list at most {MAX_IDENTITIES} identities, found {len(entries)}")
            return ()
        identities: list[TrustedIdentity] = []
        for index, entry in enumerate(entries):
            where = f"{path}[{index}]"
            text = self._text(entry, where)
            if text is None:
                continue
            try:
                identity = TrustedIdentity.parse(text)
            except ConfigurationError as error:
                self._fault(where, error.detail)
                continue
            if identity.kind is IdentityKind.ANY and len(entries) > 1:
                self._fault(where, "is *, which must stand alone")
            elif identity.kind is IdentityKind.UNSUPPORTED:
                self.warnings.append(f"{where}: the prefix is not x509.subject, so it matches nothing: {_shown(text)}")
            elif any(identity.overlaps(other) for other in identities):
                self._fault(where, f"overlaps an earlier identity, one of the two is useless: {_shown(text)}")
            identities.append(identity)
        return tuple(identities)

    # -- values ----------------------------------------------------------------------------------------------------

    def _members(self, value: object, path: str, known: tuple[str, ...]) -> dict[str, Any] | None:
        """The known members of an object; None, with a fault, for what is no object."""
        if not isinstance(value, dict):
            self._fault(path, f"must be an object with {', '.join(known)}; found {_shown(value)}")
            return None
        for name in value:
            if name not in known:
                where = printable(name, MAX_SHOWN) if isinstance(name, str) else _shown(name)
                self._fault(
                    f"{path}.{where}" if path else where, f"is not a known member; known are {', '.join(known)}"
                )
        return {name: value[name] for name in known if name in value}

    def _list(self, value: object, path: str, *, required: str | None) -> list[Any]:
        """The entries of a list; `required` says what there must be at least one of."""
        if value is not None and not isinstance(value, list):
            self._fault(path, f"must be a list, found {_shown(value)}")
            return []
        if not value and required is not None:
            self._fault(path, f"must list at least one {required}")
        return value or []

    def _text(self, value: object, path: str) -> str | None:
        if not isinstance(value, str):
            self._fault(path, f"must be a string, found {_shown(value)}")
            return None
        return value

    def _choice(self, choices: type[_E], value: object, path: str) -> _E | None:
        for choice in choices:
            if isinstance(value, str) and value == choice.value:
                return choice
        self._fault(path, f"must be one of {', '.join(choice.value for choice in choices)}; found {_shown(value)}")
        return None

    def _fault(self, path: str, message: str) -> None:
        self.faults.append(Fault("", "", path, message))


def _shown(value: object) -> str:
    """A foreign value in a message: scalars as Python writes them and cut, else what it is."""
    if value is None:
        return "nothing"
    if isinstance(value, (str, bool, float)):
        return repr(value)[:MAX_SHOWN]
    if (
        isinstance(value, int) and value.bit_length() <= 64
    ):  # Python refuses to write out a number of thousands of digits
        return repr(value)
    return f"a {type(value).__name__}"
