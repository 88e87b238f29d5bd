"""Revocation with the answers of the real `openssl`: its OCSP responder and its CRLs, served over HTTP on loopback."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator
from urllib.parse import unquote

import pytest

from tests.interop import authorities
from tests.interop.authorities import Authority, Identity
from tests.interop.conftest import Judge
from tests.interop.countersign import Countersign
from tests.interop.notation import Notation, Trust, assert_refused, assert_undecided, assert_verified
from tests.interop.registries import Repository

_numbers = itertools.count(1)


class Issuer:
    """An authority whose certificates say where to ask about revocation, with the responder behind that place.

    Attributes:
        authority: issues and revokes.
        asked: paths that were asked for, `/ocsp` and `/crl`.
        answering: set to False, the service answers with status 503.
    """

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.responder = authority.issue(f"{authority.folder.name}-responder", "ocsp_responder")
        self.asked: list[str] = []
        self.answering = True
        self.url = ""

    def handle(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """RFC 6960 appendix A: POST, or GET with the request in the path; and a CRL."""
        self.asked.append("/" + path.split("/")[1])
        if not self.answering:
            return 503, "text/plain", b"out of order"
        if path == "/crl":
            return 200, "application/pkix-crl", self.authority.crl()
        request = body if method == "POST" else base64.b64decode(unquote(path.removeprefix("/ocsp/")))
        return 200, "application/ocsp-response", self.authority.ocsp_answer(request, self.responder)

    def signer(self, *kinds: str) -> Identity:
        """A code signing certificate that points to `ocsp`, `crl` or both."""
        lines = {
            "ocsp": f"authorityInfoAccess = OCSP;URI:{self.url}/ocsp",
            "crl": f"crlDistributionPoints = URI:{self.url}/crl",
        }
        name = f"{self.authority.folder.name}-signer-{next(_numbers)}"
        return self.authority.issue(name, extensions="\n".join(lines[kind] for kind in kinds))


@pytest.fixture
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    issuer = Issuer(authorities.root_authority(tmp_path_factory.mktemp("issuer"), "issuer"))
    with authorities.http_service(issuer.handle) as url:
        issuer.url = url
        yield issuer


@pytest.fixture
def sign(app: Repository, notation: Notation) -> Callable[[Identity], str]:
    """Sign a fresh image; its reference."""

    def one(identity: Identity) -> str:
        digest = app.push_image(f"revocation {next(_numbers)}")
        notation.sign(app.at(digest), identity)
        return app.at(digest)

    return one


Sign = Callable[[Identity], str]


@pytest.mark.parametrize("kinds", [("ocsp",), ("crl",), ("ocsp", "crl")], ids="+".join)
def test_n46_a_certificate_in_good_standing_is_admitted_and_a_revoked_one_is_not(
    issuer: Issuer, sign: Sign, kinds: tuple[str, ...], judge: Judge
) -> None:
    trust = Trust(ca=[issuer.authority.identity.certificate])
    good, revoked = issuer.signer(*kinds), issuer.signer(*kinds)
    good_image, revoked_image = sign(good), sign(revoked)
    issuer.authority.revoke(revoked)
    assert_verified(judge.verify(good_image, trust))
    assert_refused(judge.verify(revoked_image, trust), "CERTIFICATE_REVOKED")
    assert f"/{kinds[0]}" in issuer.asked


def test_n46_a_crl_answers_where_the_ocsp_responder_does_not_know_the_certificate(
    issuer: Issuer, sign: Sign, judge: Judge
) -> None:
    trust = Trust(ca=[issuer.authority.identity.certificate])
    signer = issuer.signer("ocsp", "crl")
    image = sign(signer)
    (issuer.authority.folder / "index.txt").write_text("")  # the responder forgets what was ever issued
    assert_verified(judge.verify(image, trust))
    assert issuer.asked.count("/crl") >= 1


@pytest.mark.parametrize("kind", ["ocsp", "crl"])
def test_n46_a_responder_that_is_down_admits_nobody_unless_the_policy_only_logs_revocation(
    issuer: Issuer, sign: Sign, kind: str, judge: Judge
) -> None:
    trust = Trust(ca=[issuer.authority.identity.certificate])
    image = sign(issuer.signer(kind))
    issuer.answering = False
    assert_undecided(judge.name, judge.verify(image, trust), "REVOCATION_UNAVAILABLE")
    assert_verified(judge.verify(image, trust.but(override={"revocation": "log"})))
    issuer.asked.clear()
    assert_verified(judge.verify(image, trust.but(override={"revocation": "skip"})))
    assert issuer.asked == []


def test_a_revoked_certificate_that_the_policy_only_logs_is_admitted(issuer: Issuer, sign: Sign, judge: Judge) -> None:
    signer = issuer.signer("ocsp")
    image = sign(signer)
    issuer.authority.revoke(signer)
    trust = Trust(ca=[issuer.authority.identity.certificate])
    assert_verified(judge.verify(image, trust.but(override={"revocation": "log"})))


def test_a_suspended_certificate_is_refused(issuer: Issuer, sign: Sign, judge: Judge) -> None:
    signer = issuer.signer("crl")
    image = sign(signer)
    issuer.authority.revoke(signer, "certificateHold")
    assert_refused(judge.verify(image, Trust(ca=[issuer.authority.identity.certificate])), "CERTIFICATE_REVOKED")


@pytest.mark.parametrize("extensions", ["", "noCheck = ignored"], ids=["an ordinary one", "one that nobody checks"])
def test_n46_an_answer_signed_by_a_code_signer_of_the_same_authority_admits_nobody(
    issuer: Issuer, sign: Sign, extensions: str, countersign: Countersign
) -> None:
    """The holder of any certificate of the authority vouches for himself. Only ours: notation admits the image."""
    signer = issuer.signer("ocsp")
    image = sign(signer)
    issuer.responder = issuer.authority.issue(f"impostor-{next(_numbers)}", extensions=extensions)
    verdict = countersign.verify(image, Trust(ca=[issuer.authority.identity.certificate]))
    assert_refused(verdict, "REVOCATION_UNKNOWN")
