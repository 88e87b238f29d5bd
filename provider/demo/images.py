"""The demo's images and pods as data: what is signed how, by whom, and what should come of it.

Rules:
- A story is a row: whoever wants another one adds a row, not code. `build` makes the bytes.
- Every denied image names the code that must be the reason; a denial for another reason is a fault of the demo.
- Times are relative to the moment that the caller gives.

What does not belong here: pushing (publishing.py), the resources that decide (configuration.py), running (scenario.py).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from provider.demo import pki
from provider.demo.pki import CertifiedKey
from provider.demo.publishing import Push, image, signature
from provider.demo.signing import EnvelopeFormat, SignOptions, payload_of, sign, signature_manifest
from provider.demo.timestamping import issue_token
from provider.oci import Descriptor

REPOSITORY: Final = "shop/cart"  # what the trust policy covers, with a time-stamp authority
OLD_REPOSITORY: Final = "archive/cart"  # what it covers without a time-stamp authority
OTHER_REPOSITORY: Final = "elsewhere/cart"  # what it does not

_DAY: Final = timedelta(days=1)
_COMPANY: Final = {"C": "US", "ST": "WA", "L": "Seattle", "O": "Example Corp"}
_STRANGER: Final = {"C": "US", "ST": "WA", "L": "Seattle", "O": "Somebody Else"}
_RELEASE: Final = {**_COMPANY, "CN": "Release"}


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of an image.

    Attributes:
        signer: key of Authorities.signers.
        format: format of the envelope.
        age: how long ago it was made.
        timestamped_by: key of Authorities.timestampers; empty for no time-stamp.
        lifetime: expiry of the signature after its making; None for none.
        made_for: name of the image that was really signed; empty for this one.
        rewritten: the payload was changed to this image afterwards.
        legacy: the manifest has the form of notation before 1.4.
    """

    signer: str = "release"
    format: EnvelopeFormat = EnvelopeFormat.JWS
    age: timedelta = timedelta(hours=1)
    timestamped_by: str = ""
    lifetime: timedelta | None = None
    made_for: str = ""
    rewritten: bool = False
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class DemoImage:
    """One image and what should become of it.

    Attributes:
        name: tag of the image, and name of its pod.
        why: what there is to see.
        signatures: in the order in which they are attached.
        code: code of the refusal, empty when it is admitted.
        repository: where it is.
        pushed: whether it is in the registry at all.
        reachable: whether its registry answers.
    """

    name: str
    why: str
    signatures: tuple[Signature, ...] = ()
    code: str = ""
    repository: str = REPOSITORY
    pushed: bool = True
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class DemoPod:
    """One pod; containers by the names of their images.

    Attributes:
        name: name of the pod.
        why: what there is to see.
        containers: images of its containers.
        init: images of its init containers.
        ephemeral: images of its ephemeral containers, which kubectl debug adds to a running pod.
    """

    name: str
    why: str
    containers: tuple[str, ...]
    init: tuple[str, ...] = ()
    ephemeral: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """All of them, each once, in order."""
        return tuple(dict.fromkeys((*self.containers, *self.init, *self.ephemeral)))


IMAGES: Final = (
    DemoImage("signed", "signed by the release team, JWS envelope", (Signature(),)),
    DemoImage(
        "signed-cose",
        "signed by the release team, COSE envelope",
        (Signature(format=EnvelopeFormat.COSE, legacy=True),),
    ),
    DemoImage("unsigned", "nobody signed it", code="UNSIGNED"),
    DemoImage(
        "untrusted-identity", "signed by a colleague whom the policy does not name", (Signature("intern"),),
        code="UNTRUSTED_IDENTITY",
    ),
    DemoImage(
        "untrusted-root", "signed with a certificate of an authority of the attacker's own", (Signature("stranger"),),
        code="UNTRUSTED_ROOT",
    ),
    DemoImage(
        "expired", "the signing certificate has expired, and the policy knows no time-stamp authority",
        (Signature("former", age=200 * _DAY),), code="CERTIFICATE_EXPIRED", repository=OLD_REPOSITORY,
    ),
    DemoImage(
        "expired-unstamped", "the certificate has expired, and no time-stamp shows when it was used",
        (Signature("former", age=200 * _DAY),), code="TIMESTAMP_MISSING",
    ),
    DemoImage(
        "expired-timestamped", "the certificate has expired; a time-stamp shows that it was valid when used",
        (Signature("former", age=200 * _DAY, timestamped_by="tsa"),),
    ),
    DemoImage(
        "expired-backdated", "an expired certificate, and a time-stamp by the attacker's own authority",
        (Signature("former", age=200 * _DAY, timestamped_by="stranger"),), code="TIMESTAMP_UNTRUSTED",
    ),
    DemoImage(
        "signature-expired", "the signature was made for thirty days, forty days ago",
        (Signature(age=40 * _DAY, lifetime=30 * _DAY),), code="SIGNATURE_EXPIRED",
    ),
    DemoImage(
        "revoked", "the signing certificate was revoked, says its authority's OCSP responder", (Signature("stolen"),),
        code="CERTIFICATE_REVOKED",
    ),
    DemoImage(
        "tampered", "a good signature whose payload was rewritten to this image",
        (Signature(made_for="signed", rewritten=True),), code="SIGNATURE_INVALID",
    ),
    DemoImage(
        "moved", "a good signature of another image, attached to this one", (Signature(made_for="signed"),),
        code="PAYLOAD_MISMATCH",
    ),
    DemoImage(
        "signed-again", "an expired signature, and a good one beside it",
        (Signature(age=40 * _DAY, lifetime=30 * _DAY), Signature()),
    ),
    DemoImage(
        "out-of-scope", "well signed, in a repository that the policy does not cover", (Signature(),),
        code="NO_TRUST_POLICY", repository=OTHER_REPOSITORY,
    ),
    DemoImage("missing", "the registry has no such tag", code="IMAGE_NOT_FOUND", pushed=False),
    DemoImage(
        "unreachable", "its registry does not answer: no verdict, and nothing that would be kept as one",
        code="REGISTRY_UNAVAILABLE", pushed=False, reachable=False,
    ),
)  # fmt: skip

PODS: Final = (
    *(DemoPod(entry.name, entry.why, (entry.name,)) for entry in IMAGES),
    DemoPod("bad-sidecar", "a good container and an unsigned one", ("signed", "unsigned")),
    DemoPod("bad-init", "an unsigned init container before a good one", ("signed",), init=("unsigned",)),
    DemoPod("debugged", "an unsigned ephemeral container in a good pod", ("signed",), ephemeral=("unsigned",)),
    DemoPod("all-good", "good containers of every sort", ("signed",), init=("signed-cose",), ephemeral=("signed",)),
)


@dataclass(frozen=True, slots=True)
class Authorities:
    """The throw-away PKI of the demo.

    Attributes:
        issuer: the company's signing authority, which can revoke.
        signers: keys that sign images.
        timestampers: keys that sign time-stamps.
        revoked: serial numbers that the issuer revoked, with the dates.
        trusted_subject: the identity that the trust policy names.
    """

    issuer: CertifiedKey
    signers: Mapping[str, CertifiedKey]
    timestampers: Mapping[str, CertifiedKey]
    revoked: Mapping[int, datetime]
    trusted_subject: str


def establish(at: datetime, *, ocsp_url: str, crl_url: str) -> Authorities:
    """Make all keys and certificates.

    Args:
        at: now (aware).
        ocsp_url: where the issuer answers OCSP; stands in the certificate that will be revoked.
        crl_url: where the issuer's CRL is; stands in the certificate of the release team.
    """
    at = at.replace(microsecond=0)
    era, now = (at - 800 * _DAY, at + 800 * _DAY), (at - 100 * _DAY, at + 100 * _DAY)
    past = (at - 400 * _DAY, at - 30 * _DAY)

    def issue(
        subject: Mapping[str, str],
        extensions: pki.Extensions,
        issuer: CertifiedKey | None,
        span: tuple[datetime, datetime],
    ) -> CertifiedKey:
        return pki.issue(subject, extensions, issuer=issuer, not_before=span[0], not_after=span[1])

    root = issue({**_COMPANY, "CN": "Root"}, pki.authority(), None, era)
    issuer = issue({**_COMPANY, "CN": "Signing"}, pki.authority(path_length=0), root, era)
    foreign = issue({**_STRANGER, "CN": "Root"}, pki.authority(), None, era)
    clock = issue({"O": "Time Services", "CN": "Root"}, pki.authority(), None, era)
    stolen = issue(_RELEASE, pki.code_signing(ocsp_url=ocsp_url), issuer, now)
    signers = {
        "release": issue(_RELEASE, pki.code_signing(crl_url=crl_url), issuer, now),
        "former": issue(_RELEASE, pki.code_signing(), issuer, past),
        "stolen": stolen,
        "intern": issue({**_COMPANY, "CN": "Intern"}, pki.code_signing(), issuer, now),
        "stranger": issue(_RELEASE, pki.code_signing(), foreign, now),
    }
    timestampers = {
        "tsa": issue({"O": "Time Services", "CN": "Stamp"}, pki.timestamping(), clock, era),
        "stranger": issue({**_STRANGER, "CN": "Stamp"}, pki.timestamping(), foreign, era),
    }
    return Authorities(
        issuer=issuer,
        signers=signers,
        timestampers=timestampers,
        revoked={stolen.certificate.serial_number: at - 10 * _DAY},
        trusted_subject=pki.subject_of(signers["release"].certificate),
    )


def build(authorities: Authorities, at: datetime, images: Sequence[DemoImage] = IMAGES) -> tuple[Push, ...]:
    """Everything to push: first the images, then their signatures.

    Args:
        authorities: who signs.
        at: now (aware).
        images: which images; those that `made_for` names must be among them.
    """
    pushes: list[Push] = []
    targets: dict[str, Descriptor] = {}
    for entry in images:
        if entry.pushed:
            push, targets[entry.name] = image(entry.repository, entry.name, f"the image {entry.name}\n")
            pushes.append(push)
    for entry in images:
        for made in entry.signatures:
            target = targets[entry.name]
            envelope = _envelope(made, target, targets.get(made.made_for, target), authorities, at)
            chain = authorities.signers[made.signer].chain
            manifest = signature_manifest(
                target, envelope, made.format.value, chain, created=at - made.age, legacy=made.legacy
            )
            pushes.append(signature(entry.repository, manifest, envelope))
    return tuple(pushes)


def _envelope(made: Signature, target: Descriptor, signed: Descriptor, authorities: Authorities, at: datetime) -> bytes:
    made_at = at - made.age

    def timestamp(octets: bytes) -> bytes:
        authority = authorities.timestampers[made.timestamped_by]
        return issue_token(
            message_imprint=sha256(octets).digest(),
            hash_algorithm="sha256",
            signer_key=authority.key,
            signer_certificate=authority.certificate,
            certificates=[authority.certificate],
            gen_time=made_at,
            accuracy_seconds=1,
        )

    options = SignOptions(
        format=made.format,
        expiry=None if made.lifetime is None else made_at + made.lifetime,
        timestamp=timestamp if made.timestamped_by else None,
    )
    envelope = sign(signed, authorities.signers[made.signer], made_at, options)
    return _rewritten(envelope, target) if made.rewritten else envelope


def _rewritten(envelope: bytes, target: Descriptor) -> bytes:
    """A JWS envelope that now describes another target, under the signature it had."""
    document: dict[str, Any] = json.loads(envelope)
    document["payload"] = base64.urlsafe_b64encode(payload_of(target)).rstrip(b"=").decode()
    return json.dumps(document).encode()


def reference(entry: DemoImage, host: str, closed_host: str) -> str:
    """The image reference that a pod names.

    Args:
        entry: the image.
        host: the embedded registry.
        closed_host: `address:port` where nothing listens.
    """
    return f"{host if entry.reachable else closed_host}/{entry.repository}:{entry.name}"


def pod_manifest(pod: DemoPod, references: Mapping[str, str]) -> dict[str, Any]:
    """The pod as somebody would apply it."""

    def containers(names: Sequence[str], prefix: str) -> list[dict[str, str]]:
        return [{"name": f"{prefix}-{number}", "image": references[name]} for number, name in enumerate(names)]

    spec: dict[str, Any] = {"containers": containers(pod.containers, "app")}
    if pod.init:
        spec["initContainers"] = containers(pod.init, "init")
    if pod.ephemeral:
        spec["ephemeralContainers"] = containers(pod.ephemeral, "debug")
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"demo-{pod.name}"}, "spec": spec}
