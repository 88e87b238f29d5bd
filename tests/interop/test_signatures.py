"""What the real `notation` signs is admitted where it should be and refused where it should be.

Every test asks two judges, `notation verify` and Countersign: where the reference says otherwise than a test claims,
the test is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from tests.interop import authorities, peers
from tests.interop.authorities import Authority, Identity
from tests.interop.conftest import Judge
from tests.interop.countersign import arguments, manifests, read
from tests.interop.notation import FORMATS, Decision, Notation, Trust, assert_refused, assert_undecided, assert_verified
from tests.interop.registries import Repository


def test_a_signature_in_any_registry_verifies(
    repository: Repository, notation: Notation, signer: Identity, trust: Trust, envelope: str, judge: Judge
) -> None:
    digest = repository.push_image("signed")
    notation.sign(repository.at(digest), signer, envelope=envelope)
    assert [repository.envelope(one)[1] for one in repository.signatures(digest)] == [FORMATS[envelope]]
    assert_verified(judge.verify(repository.at(digest), trust))


def test_the_command_started_afresh_says_the_same(
    app: Repository, notation: Notation, signer: Identity, trust: Trust, tmp_path: Path
) -> None:
    """The other tests fork it from a process that has imported it already (launcher.py)."""
    digest = app.push_image("afresh")
    (tmp_path / "resources.yaml").write_text(yaml.safe_dump_all(manifests(trust, app.registry)))
    command = [sys.executable, "-m", "provider", *arguments(tmp_path, app.at(digest))]
    for signed in (False, True):
        if signed:
            notation.sign(app.at(digest), signer)
        done = peers.run(command, cwd=peers.CLONE)
        verdict = read(done.returncode, done.stdout, done.stderr)
        assert verdict.decision is (Decision.VERIFIED if signed else Decision.REFUSED), verdict.words


def test_an_unsigned_image_is_refused_in_any_registry(repository: Repository, trust: Trust, judge: Judge) -> None:
    assert_refused(judge.verify(repository.at(repository.push_image("unsigned")), trust), "UNSIGNED")


@pytest.mark.parametrize("forced", ["true", "false"])
def test_the_signature_is_found_however_notation_stored_it(
    repository: Repository, notation: Notation, signer: Identity, trust: Trust, forced: str, judge: Judge
) -> None:
    digest = repository.push_image("stored")
    notation.sign(repository.at(digest), signer, f"--force-referrers-tag={forced}")
    assert repository.tag_schema(digest) or forced == "false"
    assert_verified(judge.verify(repository.at(digest), trust))


def test_n32_a_signed_index_of_several_architectures_verifies_and_its_parts_are_unsigned(
    repository: Repository, notation: Notation, signer: Identity, trust: Trust, judge: Judge
) -> None:
    images = {architecture: repository.push_image(architecture) for architecture in ("amd64", "arm64")}
    index = repository.push_index(images, "multi")
    notation.sign(repository.at(index), signer)
    assert_verified(judge.verify(repository.at("multi"), trust))
    assert_refused(judge.verify(repository.at(images["amd64"]), trust), "UNSIGNED")


def test_n27_a_tag_moved_to_an_unsigned_image_is_refused_and_the_old_digest_still_verifies(
    app: Repository, notation: Notation, signer: Identity, trust: Trust, judge: Judge
) -> None:
    signed = app.push_image("first", "v1")
    notation.sign(app.at(signed), signer)
    assert_verified(judge.verify(app.at("v1"), trust))
    app.push_image("second", "v1")
    assert_refused(judge.verify(app.at("v1"), trust), "UNSIGNED")
    assert_verified(judge.verify(app.at(signed), trust))


@pytest.mark.parametrize("key_type", authorities.KEY_TYPES)
def test_every_key_type_of_the_specification_verifies(
    app: Repository, notation: Notation, pki: Authority, trust: Trust, key_type: str, envelope: str, judge: Judge
) -> None:
    digest = app.push_image(key_type)
    notation.sign(app.at(digest), pki.once(key_type), envelope=envelope)
    assert_verified(judge.verify(app.at(digest), trust))


def test_a_self_signed_certificate_verifies_when_it_is_trusted_itself(
    app: Repository, notation: Notation, tmp_path: Path, trust: Trust, envelope: str, judge: Judge
) -> None:
    alone = authorities.self_signed(tmp_path / "alone", "alone")
    digest = app.push_image("alone")
    notation.sign(app.at(digest), alone, envelope=envelope)
    assert_verified(judge.verify(app.at(digest), trust.but(ca=[alone.certificate])))
    assert_refused(judge.verify(app.at(digest), trust), "UNTRUSTED_ROOT")


def test_the_test_certificate_that_notation_makes_itself_verifies(
    app: Repository, notation: Notation, trust: Trust, tmp_path: Path, judge: Judge
) -> None:
    key, certificate = notation.generate_test_certificate("wabbit-networks.io")
    own = authorities.adopt(tmp_path / "own", key, certificate)
    digest = app.push_image("own")
    notation.sign(app.at(digest), own)
    assert_verified(judge.verify(app.at(digest), trust.but(ca=[certificate])))


def test_a_pinned_intermediate_verifies_and_a_pinned_leaf_that_another_issued_does_not(
    app: Repository, notation: Notation, pki: Authority, trust: Trust, judge: Judge
) -> None:
    between = pki.intermediate(f"pinned-{judge.name}")
    leaf = between.issue(f"pinned-leaf-{judge.name}")
    digest = app.push_image("pinned")
    notation.sign(app.at(digest), leaf)
    assert_verified(judge.verify(app.at(digest), trust.but(ca=[between.identity.certificate])))
    assert_undecided(judge.name, judge.verify(app.at(digest), trust.but(ca=[leaf.certificate])), "CONFIG_INVALID")


def test_a_signer_whose_root_is_not_trusted_is_refused(
    app: Repository, notation: Notation, stranger: Identity, trust: Trust, envelope: str, judge: Judge
) -> None:
    digest = app.push_image("strange")
    notation.sign(app.at(digest), stranger, envelope=envelope)
    assert_refused(judge.verify(app.at(digest), trust), "UNTRUSTED_ROOT")


def test_a_good_signature_is_found_beside_a_strangers(
    app: Repository, notation: Notation, signer: Identity, stranger: Identity, trust: Trust, judge: Judge
) -> None:
    digest = app.push_image("both")
    notation.sign(app.at(digest), stranger)
    notation.sign(app.at(digest), signer)
    assert_verified(judge.verify(app.at(digest), trust))


@pytest.mark.parametrize(
    ("identity", "admitted"),
    [
        ("x509.subject: C=US, ST=WA, O=Countersign interop", True),
        ("x509.subject: CN=signer, O=Countersign interop, L=Seattle, ST=WA, C=US", True),
        ("x509.subject: C=US, S=WA, O=Countersign interop", True),
        ("x509.subject: C=US, ST=WA, O=Countersign interop, CN=somebody else", False),
        ("x509.subject: C=US, ST=WA, O=countersign interop", False),
        ("x509.subject: C=US, ST=WA, O=Countersign", False),
    ],
)
def test_n45_only_a_trusted_identity_is_admitted(
    app: Repository, notation: Notation, signer: Identity, trust: Trust, identity: str, admitted: bool, judge: Judge
) -> None:
    digest = app.push_image("identity")
    notation.sign(app.at(digest), signer)
    verdict = judge.verify(app.at(digest), trust.but(identities=[identity]))
    if admitted:
        assert_verified(verdict)
    else:
        assert_refused(verdict, "UNTRUSTED_IDENTITY")


def test_a_repository_outside_the_policys_scopes_is_refused(
    app: Repository, notation: Notation, signer: Identity, trust: Trust, judge: Judge
) -> None:
    digest = app.push_image("scoped")
    notation.sign(app.at(digest), signer)
    inside = f"{app.registry}/{app.name}"
    assert_verified(judge.verify(app.at(digest), trust.but(scopes=[inside])))
    assert_refused(judge.verify(app.at(digest), trust.but(scopes=[inside + "/other"])), "NO_TRUST_POLICY")
    assert_refused(judge.verify(app.at(digest), trust.but(scopes=[inside[:-1]])), "NO_TRUST_POLICY")


def test_user_metadata_and_a_future_expiry_do_not_hinder(
    app: Repository, notation: Notation, signer: Identity, trust: Trust, envelope: str, judge: Judge
) -> None:
    digest = app.push_image("metadata")
    notation.sign(app.at(digest), signer, "--user-metadata", "build=42", "--expiry", "24h", envelope=envelope)
    assert_verified(judge.verify(app.at(digest), trust))


def test_level_skip_admits_what_nobody_signed_and_audit_what_a_stranger_signed(
    app: Repository, notation: Notation, stranger: Identity, trust: Trust, judge: Judge
) -> None:
    scope = [f"{app.registry}/{app.name}"]
    unsigned = app.push_image("skipped")
    assert_verified(judge.verify(app.at(unsigned), trust.but(level="skip", scopes=scope)))
    assert_refused(judge.verify(app.at(unsigned), trust.but(level="audit")), "UNSIGNED")
    notation.sign(app.at(unsigned), stranger)
    assert_verified(judge.verify(app.at(unsigned), trust.but(level="audit")))
