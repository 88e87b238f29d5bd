"""What is fuzzed: the parsers of foreign bytes, each with what has to hold for any bytes, and bytes to start from.

Rules:
- A target takes bytes and returns, or fails. Our own error is an outcome like any other; every other exception, and
  every broken promise (an envelope that opens and says what nobody signed), is a failure.
- Seeds are made here, with throw-away keys: nothing is kept on disk, and each run starts from whole, good inputs.
- The same targets are run by hypothesis in the ordinary tests (test_targets.py), and by atheris (__main__.py).
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from yarl import URL

from provider import strict_json
from provider.challenge import parse_challenges
from provider.configuration.strict_yaml import load_documents
from provider.credentials.docker_config import DockerConfig
from provider.errors import ConfigurationError, CountersignError, InvalidKey, Refused, Undecided
from provider.executor import parse_key
from provider.gatekeeper import protocol
from provider.gatekeeper.settings import RequestLimits
from provider.notation import crl, ocsp
from provider.notation.certificates import Certificate, parse_certificates
from provider.notation.envelope import inspect_envelope, open_envelope
from provider.notation.identities import TrustedIdentity
from provider.notation.payload import parse_payload
from provider.notation.timestamp import inspect_timestamp, verify_timestamp
from provider.notation.trust_policy import TrustPolicyDocument
from provider.oci import Index, Manifest, Reference
from provider.stores.referrers import next_page
from tests.simulators import revocation_data as authorities
from tests.simulators.registry import index_of
from tests.simulators.signer import COSE, JWS, PAYLOAD, SIGNED_AT, TARGET, Signer
from tests.simulators.timestamp_authority import GEN_TIME, TimestampAuthority

_SIGNER: Final = Signer.make()
_CLOCK: Final = TimestampAuthority.set_up()
_MESSAGE: Final = b"a signature"
_ROOT: Final = authorities.Entity.root()
_REVOKED: Final = _ROOT.issue("revoked", ocsp=["http://ocsp.test/"], crl=["http://crl.test/"])
_PAGE: Final = URL("https://registry.test/v2/app/referrers/sha256:0")
_LIMITS: Final = RequestLimits()


@dataclass(frozen=True)
class Target:
    """One thing to fuzz.

    Attributes:
        check: takes any bytes; fails when a promise is broken.
        seeds: good inputs.
        refusals: the errors that may come out of it.
    """

    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    refusals: tuple[type[CountersignError], ...] = (Refused,)

    def run(self, data: bytes) -> bool:
        """Run it once; whether the bytes were accepted.

        Raises:
            Exception: whatever is a bug.
        """
        try:
            self.check(data)
        except self.refusals:
            return False
        return True


def _text(data: bytes) -> str:
    """Bytes as a key, a header field or a setting would bring them."""
    return data.decode("utf-8", "replace")


def _reference(data: bytes) -> None:
    _check_reference(Reference.parse(_text(data)))


def _key(data: bytes) -> None:
    _, reference = parse_key(_text(data))
    _check_reference(reference)


def _check_reference(reference: Reference) -> None:
    """What is told of a reference leads to the same image. The tag beside a digest is for people, and is not told."""
    again = Reference.parse(str(reference))
    assert (again.repository, again.digest) == (reference.repository, reference.digest)
    assert again.tag == (None if reference.digest else reference.tag)


def _manifest(data: bytes) -> None:
    Manifest.parse(data)


def _index(data: bytes) -> None:
    Index.parse(data)


def _envelope(media_type: str) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        with contextlib.suppress(Refused):
            inspect_envelope(data, media_type)
        envelope = open_envelope(data, media_type)
        assert (envelope.payload, envelope.signing_time) == (PAYLOAD, SIGNED_AT)
        assert tuple(certificate.der for certificate in envelope.chain) == _SIGNER.chain

    return check


def _payload(data: bytes) -> None:
    parse_payload(data)


def _certificate(data: bytes) -> None:
    Certificate.parse(data)


def _certificates(data: bytes) -> None:
    assert parse_certificates(data)


def _identity(data: bytes) -> None:
    TrustedIdentity.parse(_text(data))


def _trust_policy(data: bytes) -> None:
    assert TrustPolicyDocument.parse(data).statements


def _time_stamp(data: bytes) -> None:
    with contextlib.suppress(Refused):
        inspect_timestamp(data)
    found = verify_timestamp(data, _MESSAGE, [_CLOCK.root])
    assert found.gen_time == GEN_TIME


def _ocsp(data: bytes) -> None:
    response = ocsp.OcspResponse.parse(data)
    finding = ocsp.judge(response, _REVOKED.certificate, _ROOT.certificate, at=authorities.NOW, signing_time=None)
    assert finding.status is ocsp.CertStatus.REVOKED


def _crl(data: bytes) -> None:
    parsed = crl.RevocationList.parse(data)
    crl.check_complete_list(parsed, _REVOKED.certificate, _ROOT.certificate, authorities.NOW)
    assert crl.find_revocation(parsed, _REVOKED.certificate, None) is not None


def _request(data: bytes) -> None:
    keys = protocol.parse_request(data, _LIMITS)
    assert len(set(keys)) == len(keys) <= _LIMITS.max_keys


def _docker_config(data: bytes) -> None:
    DockerConfig.parse(data).lookup("registry.test", "team/app")


def _challenge(data: bytes) -> None:
    parse_challenges(_text(data).splitlines())


def _link(data: bytes) -> None:
    following = next_page(_PAGE, _text(data).splitlines())
    assert following is None or (following.host == _PAGE.host and following.raw_path.startswith("/v2/"))


def _json(data: bytes) -> None:
    with contextlib.suppress(strict_json.MalformedJSONError):
        strict_json.loads(data, max_bytes=1 << 20)


def _yaml(data: bytes) -> None:
    load_documents(data)


_POLICY: Final = json.dumps(
    {
        "version": "1.0",
        "trustPolicies": [
            {
                "name": "all",
                "registryScopes": ["registry.test/app"],
                "signatureVerification": {"level": "strict", "override": {"expiry": "log"}},
                "trustStores": ["ca:company"],
                "trustedIdentities": ["x509.subject: C=US, ST=WA, O=Contoso"],
            }
        ],
    }
).encode()
_DESCRIPTOR: Final = json.dumps(TARGET).encode()
_MANIFEST: Final = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%b,"layers":[%b],"subject":%b}'
    % ((_DESCRIPTOR,) * 3)
)
_BUNDLE: Final = b"".join(
    b"-----BEGIN CERTIFICATE-----\n%b-----END CERTIFICATE-----\n" % base64.encodebytes(der) for der in _SIGNER.chain
)
_REQUEST: Final = b'{"apiVersion":"%b","kind":"ProviderRequest","request":{"keys":["a","b:v1"]}}'

TARGETS: Final[dict[str, Target]] = {
    "reference": Target(_reference, (b"registry.test:5000/team/app:v1@sha256:" + b"a" * 64,), (InvalidKey,)),
    "key": Target(_key, (b"[team-a]registry.test/app:v1", b"docker.io/library/x"), (InvalidKey,)),
    "manifest": Target(_manifest, (_MANIFEST,)),
    "index": Target(_index, (index_of([TARGET, {**TARGET, "artifactType": "a/b", "annotations": {"a": "b"}}]),)),
    "jws": Target(_envelope(JWS), (_SIGNER.jws(),)),
    "cose": Target(_envelope(COSE), (_SIGNER.cose(),)),
    "payload": Target(_payload, (PAYLOAD,)),
    "certificate": Target(_certificate, _SIGNER.chain),
    "bundle": Target(_certificates, (_BUNDLE,), (ConfigurationError,)),
    "dn": Target(_identity, (rb"x509.subject: C=US, ST=WA, O=Contoso\, Inc., CN=a\2Cb",), (ConfigurationError,)),
    "trust-policy": Target(_trust_policy, (_POLICY,), (ConfigurationError,)),
    "tstinfo": Target(_time_stamp, (_CLOCK.token(_MESSAGE),)),
    "ocsp": Target(
        _ocsp,
        (_ROOT.ocsp(_REVOKED.certificate, says="revoked"), authorities.ocsp_response(3, "1.2.3", b"")),
        (Refused, Undecided),
    ),
    "crl": Target(_crl, (_ROOT.crl(authorities.entry(3), authorities.entry(_REVOKED.certificate.serial, reason=1)),)),
    "provider-request": Target(_request, (_REQUEST % protocol.API_VERSION.encode(),), (Undecided,)),
    "docker-config": Target(
        _docker_config,
        (b'{"auths":{"registry.test":{"auth":"YTpi"}},"credHelpers":{"a.test":"pass"},"credsStore":"desktop"}',),
        (ConfigurationError, Undecided),
    ),
    "challenge": Target(
        _challenge, (b'Bearer realm="https://a.test/token",service="a",scope="b:c:pull", Basic realm=x',)
    ),
    "link": Target(_link, (b'</v2/app/referrers/sha256:0?last=1&n=2>; rel="next"',), (Undecided,)),
    "json": Target(_json, (_POLICY, b'[1.5e3,-0,true,null,"\\ud83d\\ude00"]')),
    "yaml": Target(_yaml, (b"a: &x [1, 'b', {c: d}]\n---\ne: |\n  f\n",), ()),
}
