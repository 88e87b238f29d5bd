"""What is measured on: a signer, any number of signed images, and the configuration that trusts them.

Rules:
- Everything follows from a number of images, an algorithm and a time; keys are thrown away with the process.
- Chains have three certificates (leaf, intermediate, root), as real ones have.
- Images differ in content, so that nothing can be shared between them but what real images of one signer share.

What does not belong here: serving images (registry.py), measuring.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from provider.demo import pki, publishing, signing, timestamping
from provider.demo.pki import CertifiedKey
from provider.oci import MEDIA_TYPE_MANIFEST, Descriptor, Digest

Algorithm = Literal["p256", "rsa3072", "p384"]
REPOSITORY: Final = "bench/app"
IDENTITY: Final = "C=US, ST=WA, O=Bench, CN=signer"


def _key(algorithm: Algorithm, *, root: bool = False) -> pki.PrivateKey:
    if algorithm == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == "p384":
        return ec.generate_private_key(ec.SECP384R1())
    return rsa.generate_private_key(65537, 4096 if root else 3072)


@dataclass(frozen=True)
class Signer:
    """A signer with its chain, and a time-stamp authority.

    Attributes:
        leaf: the key that signs.
        issuer: who issued its certificate.
        stamper: the authority's key, with its chain.
        at: when everything was signed and stamped (aware).
    """

    leaf: CertifiedKey
    issuer: CertifiedKey
    stamper: CertifiedKey
    at: datetime

    @classmethod
    def make(cls, algorithm: Algorithm, *, at: datetime | None = None, leaf: pki.Extensions | None = None) -> Signer:
        """A signer of an algorithm; RSA as the facts measure it: 3072 for leaf and intermediate, 4096 for the root."""
        at = at or datetime.now(UTC) - timedelta(hours=1)
        issue = partial(pki.issue, not_before=at - timedelta(days=30), not_after=at + timedelta(days=365))

        def chain(purpose: str, extensions: pki.Extensions) -> tuple[CertifiedKey, CertifiedKey]:
            organisation = {"C": "US", "ST": "WA", "O": "Bench"}
            root = issue(
                organisation | {"CN": f"{purpose} root"},
                pki.authority(),
                issuer=None,
                key=_key(algorithm, root=True),
            )
            middle = issue(
                organisation | {"CN": f"{purpose} CA"},
                pki.authority(path_length=0),
                issuer=root,
                key=_key(algorithm),
            )
            name = organisation | {"CN": "signer" if purpose == "signing" else "stamper"}
            return issue(name, extensions, issuer=middle, key=_key(algorithm)), middle

        signer, issuer = chain("signing", leaf or pki.code_signing())
        return cls(signer, issuer, chain("clock", pki.timestamping())[0], at)

    def stamp(self, signature: bytes) -> bytes:
        """A time-stamp token of a signature value."""
        from hashlib import sha256

        return timestamping.issue_token(
            message_imprint=sha256(signature).digest(),
            hash_algorithm="sha256",
            signer_key=self.stamper.key,
            signer_certificate=self.stamper.certificate,
            certificates=self.stamper.chain,
            gen_time=self.at + timedelta(seconds=1),
            accuracy_seconds=1,
        )

    def sign(
        self,
        target: Descriptor,
        *,
        stamped: bool = False,
        envelope: signing.EnvelopeFormat = signing.EnvelopeFormat.JWS,
    ) -> bytes:
        """An envelope around a target."""
        options = signing.SignOptions(format=envelope, timestamp=self.stamp if stamped else None)
        return signing.sign(target, self.leaf, self.at, options)


@dataclass(frozen=True)
class SignedImage:
    """One image with its one signature, as a registry holds them.

    Attributes:
        number: counts from 0; the tag is `v<number>`.
        manifest: of the image.
        image: what the signature names.
        signature_manifest: of the signature.
        signature: its descriptor, as the referrers API lists it.
        envelope: the signature.
        layer: descriptor of the envelope.
    """

    number: int
    manifest: bytes
    image: Descriptor
    signature_manifest: bytes
    signature: dict[str, object]
    envelope: bytes = field(repr=False)
    layer: Digest = field(repr=False)


def image_manifest(number: int) -> tuple[bytes, Descriptor]:
    """The manifest of image `number`, and its descriptor."""
    push, descriptor = publishing.image(REPOSITORY, f"v{number}", f"image {number}")
    return push.manifest, descriptor


def signed_images(signer: Signer, count: int) -> Iterator[SignedImage]:
    """Images 0 to `count`, each signed."""
    for number in range(count):
        manifest, descriptor = image_manifest(number)
        envelope = signer.sign(descriptor)
        carrier = signing.signature_manifest(
            descriptor, envelope, signing.EnvelopeFormat.JWS.value, signer.leaf.chain, created=signer.at
        )
        entry = {
            "mediaType": MEDIA_TYPE_MANIFEST,
            "digest": str(Digest.of(carrier)),
            "size": len(carrier),
            "artifactType": signing.ARTIFACT_TYPE,
        }
        yield SignedImage(number, manifest, descriptor, carrier, entry, envelope, Digest.of(envelope))


@lru_cache(maxsize=4096)
def digest_of(number: int) -> str:
    """The digest of image `number`, which a caller can name without asking the registry."""
    return str(image_manifest(number)[1].digest)


def tags(host: str, start: int, count: int) -> list[str]:
    """Keys by tag."""
    return [f"{host}/{REPOSITORY}:v{number}" for number in range(start, start + count)]


def digests(host: str, start: int, count: int) -> list[str]:
    """Keys by digest."""
    return [f"{host}/{REPOSITORY}@{digest_of(number)}" for number in range(start, start + count)]


_RESOURCES: Final = """\
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Store
metadata: {{name: store-oras}}
spec:
  name: oras
  parameters:
    maxConnectionsPerHost: {connections}
    registries:
      - {{host: "{host}", plainHttp: true}}
---
apiVersion: config.ratify.deislabs.io/v1beta1
kind: KeyManagementProvider
metadata: {{name: signers}}
spec:
  type: inline
  parameters:
    contentType: certificate
    value: {root}
---
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Verifier
metadata: {{name: verifier-notation}}
spec:
  name: notation
  artifactTypes: application/vnd.cncf.notary.signature
  parameters:
    verificationCertStores: {{ca: {{signers: [signers]}}}}
    revocation: {{allowPrivateAddresses: true, allowedHosts: ["{host}"]}}
    trustPolicyDoc:
      version: "1.0"
      trustPolicies:
        - name: bench
          registryScopes: ["{host}/{repository}"]
          signatureVerification: {{level: strict}}
          trustStores: ["ca:signers"]
          trustedIdentities: ["x509.subject: {identity}"]
---
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Policy
metadata: {{name: ratify-policy}}
spec:
  type: config-policy
  parameters:
    artifactVerificationPolicies:
      application/vnd.cncf.notary.signature: any
"""


def write_resources(folder: Path, host: str, root_pem: str, *, connections: int = 100) -> Path:
    """Write the custom resources that trust the signer; returns the folder."""
    text = _RESOURCES.format(
        host=host, root=json.dumps(root_pem), repository=REPOSITORY, identity=IDENTITY, connections=connections
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resources.yaml").write_text(text)
    return folder
