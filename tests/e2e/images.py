"""Images in a real registry with signatures of the real `notation`, and a gate (forwarding.py) in front of it.

Rules:
- Every test has images of its own: verdicts are kept for some seconds by Gatekeeper and by the provider.
- The trust that tests mean is written as custom resources, like any user's.

What does not belong here: the registries and the notation command (tests/interop), expectations (the tests).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.e2e.forwarding import Gate
from tests.interop import authorities
from tests.interop.authorities import Identity, TimestampAuthority
from tests.interop.notation import Notation
from tests.interop.registries import IMAGE_MANIFEST, NOTATION_SIGNATURE, Registry

Json = dict[str, Any]

GROUP: Final = "config.ratify.deislabs.io/v1beta1"
SCOPE: Final = "shop"  # repositories that the trust policy covers begin with it

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
        tagged: reference by tag.
        digest: `sha256:...`.
    """

    tagged: str
    digest: str

    @property
    def pinned(self) -> str:
        """Reference by digest."""
        return f"{self.tagged.rpartition(':')[0]}@{self.digest}"

    def __str__(self) -> str:
        return self.tagged


@dataclass(frozen=True)
class Shop:
    """A registry, a signer whom the configuration trusts, and one whom it does not.

    Attributes:
        registry: where the images are.
        gate: the same registry, behind a gate.
        signer: the trusted one.
        stranger: has an authority of his own.
    """

    registry: Registry
    gate: Gate
    signer: Identity
    stranger: Identity
    _notation: Notation = field(repr=False)

    def image(self, *signers: Identity, gated: bool = False) -> Image:
        """A new image with a signature of each signer.

        Args:
            signers: who signs it.
            gated: whether its reference leads through the gate.
        """
        number = next(_numbers)
        repository = self.registry.repository(f"{SCOPE}/app-{number}")
        digest = repository.push_image(f"image {number}", "v1")
        image = Image(repository.at("v1"), digest)
        for signer in signers:
            self.sign(image, signer)
        if gated:
            return Image(image.tagged.replace(self.registry.address, self.gate.address), digest)
        return image

    def tags(self, image: Image, count: int) -> list[Image]:
        """The same image under more tags. Neither Gatekeeper nor the provider has been asked about any of them."""
        host, _, path = image.tagged.partition("/")
        repository = self.registry.repository(path.partition(":")[0])
        manifest = repository.manifest(image.digest)
        tags = [f"t{next(_numbers)}" for _ in range(count)]
        for tag in tags:
            repository.push_manifest(manifest, IMAGE_MANIFEST, tag)
        return [Image(f"{host}/{repository.name}:{tag}", image.digest) for tag in tags]

    def sign(self, image: Image, signer: Identity, *, timestamp: TimestampAuthority | None = None) -> None:
        """Sign an image that is there, with a time-stamp if an authority is given."""
        reference = image.pinned.replace(self.gate.address, self.registry.address)
        self._notation.sign(reference, signer, timestamp=timestamp)

    def signed(self, *, gated: bool = False) -> Image:
        """An image that the configuration trusts."""
        return self.image(self.signer, gated=gated)

    def unsigned(self, *, gated: bool = False) -> Image:
        """An image without a signature."""
        return self.image(gated=gated)

    def untrusted(self) -> Image:
        """An image that only the stranger signed."""
        return self.image(self.stranger)

    def resources(self) -> list[Json]:
        """The custom resources that trust the signer for every image of the registry."""
        hosts = [self.registry.address, self.gate.address]
        registries = [{"host": host, "plainHttp": True} for host in hosts]
        rule = {"artifactVerificationPolicies": {NOTATION_SIGNATURE: "any"}}
        store = {"name": "oras", "parameters": {"registries": registries}}
        return [
            resource("Store", "store-oras", store),
            self.key_resource("KeyManagementProvider", "company-root", self.signer),
            self.verifier_resource("Verifier", "verifier-notation", "company-root", self.signer),
            resource("Policy", "ratify-policy", {"type": "config-policy", "parameters": rule}),
        ]

    def key_resource(self, kind: str, name: str, identity: Identity, namespace: str | None = None) -> Json:
        """A key management provider that holds an identity's root."""
        value = {"contentType": "certificate", "value": identity.root.read_text()}
        return resource(kind, name, {"type": "inline", "parameters": value}, namespace)

    def verifier_resource(
        self, kind: str, name: str, keys: str, identity: Identity, namespace: str | None = None
    ) -> Json:
        """A Notation verifier that trusts one identity below the root in a key management provider."""
        statement = {
            "name": "shop",
            "registryScopes": ["*"],
            "signatureVerification": {"level": "strict"},
            "trustStores": ["ca:company"],
            "trustedIdentities": [f"x509.subject: {identity.subject}"],
        }
        parameters = {
            "verificationCertStores": {"ca": {"company": [keys]}},
            "trustPolicyDoc": {"version": "1.0", "trustPolicies": [statement]},
        }
        spec = {"name": "notation", "artifactTypes": NOTATION_SIGNATURE, "parameters": parameters}
        return resource(kind, name, spec, namespace)


def resource(kind: str, name: str, spec: Mapping[str, Any], namespace: str | None = None) -> Json:
    """A custom resource."""
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": GROUP, "kind": kind, "metadata": metadata, "spec": dict(spec)}


@contextlib.contextmanager
def open_shop(folder: Path, registry: Registry) -> Iterator[Shop]:
    """Make the signers, in a folder, and open a gate to a registry."""
    signer = authorities.root_authority(folder / "company", "company-root").issue("release")
    stranger = authorities.root_authority(folder / "stranger", "stranger-root").issue("stranger")
    (folder / "notation").mkdir()
    with Gate(registry.address) as gate:
        yield Shop(registry, gate, signer, stranger, Notation(folder / "notation"))
