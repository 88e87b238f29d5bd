"""The real `notation` command: signing, and verifying under a trust policy.

Rules:
- Every use has its own configuration folder (XDG_CONFIG_HOME), so nothing of the person who runs the tests is read or
  changed, and no two uses see each other's keys or trust stores.
- The trust that a test means is written once, as `Trust`, and each judge (this one and countersign.py) puts it in its
  own terms.

What does not belong here: keys (authorities.py) and registries (registries.py).
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tests.interop import peers
from tests.interop.authorities import Identity, TimestampAuthority

FORMATS: Final = {"jws": "application/jose+json", "cose": "application/cose"}


@dataclass(frozen=True)
class Trust:
    """What a test wants to be trusted: one statement of a trust policy with its stores.

    Attributes:
        ca: PEM files for a `ca` trust store; none leaves the store out.
        tsa: PEM files for a `tsa` trust store.
        signing_authority: PEM files for a `signingAuthority` trust store.
        identities: trusted identities, `*` for anybody with a certificate of the stores.
        level: strict, permissive, audit or skip.
        override: single checks with another action.
        verify_timestamp: `always` or `afterCertExpiry`; None leaves the default, always.
        scopes: registry scopes.
    """

    ca: Sequence[Path] = ()
    tsa: Sequence[Path] = ()
    signing_authority: Sequence[Path] = ()
    identities: Sequence[str] = ("*",)
    level: str = "strict"
    override: dict[str, str] = field(default_factory=dict)
    verify_timestamp: str | None = None
    scopes: Sequence[str] = ("*",)

    def but(self, **changes: Any) -> Trust:
        """The same with some attributes changed."""
        return replace(self, **changes)

    def stores(self) -> dict[str, Sequence[Path]]:
        """PEM files by type of trust store; each store is called `interop`."""
        every = {"ca": self.ca, "tsa": self.tsa, "signingAuthority": self.signing_authority}
        return {store: files for store, files in every.items() if files}

    def policy(self) -> dict[str, Any]:
        """The trust policy document over these stores."""
        verification: dict[str, Any] = {"level": self.level}
        if self.override:
            verification["override"] = self.override
        if self.verify_timestamp is not None:
            verification["verifyTimestamp"] = self.verify_timestamp
        statement: dict[str, Any] = {
            "name": "interop",
            "registryScopes": list(self.scopes),
            "signatureVerification": verification,
        }
        if self.level != "skip":
            statement["trustStores"] = [f"{store}:interop" for store in self.stores()]
            statement["trustedIdentities"] = list(self.identities)
        return {"version": "1.0", "trustPolicies": [statement]}


class Decision(enum.Enum):
    """Yes, no, and: not now. The real notation has no third one; it says no."""

    VERIFIED = "verified"
    REFUSED = "refused"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verdict:
    """What a judge said.

    Attributes:
        decision: whether the image may run.
        codes: stable codes of the refusal; empty for a judge that has none.
        words: everything it said, for the message of a failed test.
    """

    decision: Decision
    words: str
    codes: frozenset[str] = frozenset()


def assert_verified(verdict: Verdict) -> None:
    """The judge said yes."""
    assert verdict.decision is Decision.VERIFIED, verdict.words


def assert_refused(verdict: Verdict, *codes: str) -> None:
    """The judge said no; and where it has codes, for one of these reasons."""
    assert verdict.decision is Decision.REFUSED, verdict.words
    assert not verdict.codes or verdict.codes & set(codes), (
        f"none of {codes} in {sorted(verdict.codes)}: {verdict.words}"
    )


def assert_undecided(judge: str, verdict: Verdict, *codes: str) -> None:
    """The judge named did not say yes; ours says that it could not decide, for one of these reasons."""
    if judge == Notation.name:
        assert_refused(verdict)
    else:
        assert verdict.decision is Decision.UNDECIDED, verdict.words
        assert verdict.codes & set(codes), f"none of {codes} in {sorted(verdict.codes)}: {verdict.words}"


class Notation:
    """The command, with a configuration folder of its own."""

    name = "notation"

    def __init__(self, folder: Path) -> None:
        self._program = peers.find("notation")
        self._folder = folder
        self._uses = 0

    def _home(self) -> Path:
        self._uses += 1
        home = self._folder / f"use-{self._uses}"
        (home / "notation").mkdir(parents=True)
        return home

    def _env(self, home: Path) -> dict[str, str]:
        # NOTATION_EXPERIMENTAL=1 opens --oci-layout.
        places = {name: str(home) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
        return {**places, "NOTATION_EXPERIMENTAL": "1"}

    def sign(
        self,
        reference: str,
        identity: Identity,
        *more: str,
        envelope: str = "jws",
        timestamp: TimestampAuthority | None = None,
        layout: bool = False,
    ) -> None:
        """Sign an image.

        Args:
            reference: the image, by digest.
            identity: whose key and chain.
            more: further options.
            envelope: `jws` or `cose`.
            timestamp: whom to ask for a time-stamp.
            layout: the reference is `<folder of an OCI layout>@<digest>`, not an image of a registry.

        Raises:
            AssertionError: notation failed; with its words.
        """
        home = self._home()
        key = {"name": "interop", "keyPath": str(identity.key), "certPath": str(identity.chain)}
        (home / "notation" / "signingkeys.json").write_text(json.dumps({"default": "interop", "keys": [key]}))
        options = ["--signature-format", envelope, "--oci-layout" if layout else "--insecure-registry", *more]
        if timestamp is not None:
            options += ["--timestamp-url", timestamp.url, "--timestamp-root-cert", str(timestamp.root)]
        peers.must([self._program, "sign", *options, reference], env=self._env(home))

    def verify(self, reference: str, trust: Trust) -> Verdict:
        """Judge an image of a registry that speaks plain HTTP."""
        home = self._home()
        (home / "notation" / "trustpolicy.json").write_text(json.dumps(trust.policy()))
        for store, files in trust.stores().items():
            place = home / "notation" / "truststore" / "x509" / store / "interop"
            place.mkdir(parents=True)
            for number, file in enumerate(files):
                (place / f"{number}.pem").write_bytes(file.read_bytes())
        done = peers.run([self._program, "verify", "--insecure-registry", "-v", reference], env=self._env(home))
        said = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
        return Verdict(Decision.VERIFIED if done.returncode == 0 else Decision.REFUSED, said)

    def generate_test_certificate(self, name: str) -> tuple[Path, Path]:
        """`notation cert generate-test`: a self-signed RSA-2048 certificate; (key, certificate) files."""
        home = self._home()
        peers.must([self._program, "cert", "generate-test", name], env=self._env(home))
        keys = home / "notation" / "localkeys"
        return keys / f"{name}.key", keys / f"{name}.crt"

    def inspect(self, reference: str) -> dict[str, Any]:
        """`notation inspect --output json`."""
        home = self._home()
        said = peers.must(
            [self._program, "inspect", "--insecure-registry", "--output", "json", reference], env=self._env(home)
        )
        document: dict[str, Any] = json.loads(said)
        return document
