"""Fixtures over the real peers: registries, authorities, the notation command, and the two judges.

Rules: a missing program skips the tests that need it, with the reason. Servers and keys are made once for a session;
every test has a repository of its own, so tests do not see each other's signatures.
What does not belong here: expectations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.interop import authorities
from tests.interop.authorities import Authority, Identity, TimestampAuthority
from tests.interop.countersign import Countersign
from tests.interop.notation import Notation, Trust
from tests.interop.registries import KINDS, Registry, Repository

Judge = Notation | Countersign

_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=sorted(KINDS))
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Each real registry that is here, one after the other."""
    with KINDS[request.param](tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def repository(registry: Registry) -> Repository:
    """A fresh repository in each registry."""
    return registry.repository(f"interop/app-{next(_numbers)}")


@pytest.fixture(scope="session")
def one_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One real registry, for what does not depend on how signatures are found."""
    folder = tmp_path_factory.mktemp("one-registry")
    for kind in sorted(KINDS):
        try:
            context = KINDS[kind](folder)
            running = context.__enter__()
        except pytest.skip.Exception:
            continue
        try:
            yield running
        finally:
            context.__exit__(None, None, None)
        return
    pytest.skip(f"none of the registries {', '.join(sorted(KINDS))} is here: run `make peers`")


@pytest.fixture
def app(one_registry: Registry) -> Repository:
    """A fresh repository in one registry."""
    return one_registry.repository(f"interop/one-{next(_numbers)}")


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The root that signers in these tests lead to; issues further certificates on demand."""
    return authorities.root_authority(tmp_path_factory.mktemp("pki"), "root")


@pytest.fixture(scope="session")
def signer(pki: Authority) -> Identity:
    """A signer below an intermediate, P-256."""
    return pki.intermediate("intermediate").issue("signer")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A signer with a root that nobody trusts."""
    return authorities.root_authority(tmp_path_factory.mktemp("stranger"), "stranger-root").issue("stranger")


@pytest.fixture(scope="session")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TimestampAuthority]:
    """A running time-stamp authority with an intermediate."""
    root = authorities.root_authority(tmp_path_factory.mktemp("tsa"), "tsa-root")
    identity = root.intermediate("tsa-intermediate").issue("tsa", "time_stamping", key_type="RSA-2048")
    with authorities.timestamp_authority(identity) as running:
        yield running


@pytest.fixture(scope="session")
def other_tsa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TimestampAuthority]:
    """Another time-stamp authority, with an ECDSA key."""
    root = authorities.root_authority(tmp_path_factory.mktemp("other-tsa"), "other-tsa-root")
    with authorities.timestamp_authority(root.issue("other-tsa", "time_stamping")) as running:
        yield running


@pytest.fixture(scope="session")
def trust(signer: Identity) -> Trust:
    """Trust in the signer's root, level strict, no time-stamp asked for."""
    return Trust(ca=[signer.root])


@pytest.fixture(scope="session")
def notation(tmp_path_factory: pytest.TempPathFactory) -> Notation:
    """The real notation command."""
    return Notation(tmp_path_factory.mktemp("notation"))


@pytest.fixture(scope="session")
def countersign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Countersign]:
    """Our own command."""
    with Countersign(tmp_path_factory.mktemp("countersign")) as command:
        yield command


@pytest.fixture(params=["notation", "countersign"])
def judge(request: pytest.FixtureRequest) -> Judge:
    """Both judges, one after the other: what they say must agree."""
    judge: Judge = request.getfixturevalue(request.param)
    return judge


@pytest.fixture(params=["jws", "cose"])
def envelope(request: pytest.FixtureRequest) -> str:
    """Both envelope formats."""
    return str(request.param)
