"""Manifests for the tests of configuration: a good set, certificates, and ways to change one thing in it."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from provider.configuration.manifests import Manifest, read_set
from provider.configuration.resources import ResourceSet
from tests.simulators.signer import Signer

SIGNER: Final = Signer.make()
LEAF_PEM, ROOT_PEM = (ssl.DER_cert_to_PEM_cert(der) for der in SIGNER.chain)

_KEY: Final = ec.generate_private_key(ec.SECP256R1())
PRIVATE_KEY_PEM: Final = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC_KEY_PEM: Final = _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

PLACEHOLDERS: Final = {
    "@ROOT@": ROOT_PEM,
    "@LEAF@": LEAF_PEM,
    "@CHAIN@": LEAF_PEM + ROOT_PEM,
    "@TRUNCATED@": ROOT_PEM[: len(ROOT_PEM) // 2],
    "@PRIVATE@": ROOT_PEM + PRIVATE_KEY_PEM,
    "@PUBLIC@": PUBLIC_KEY_PEM,
}

STORE: Final = """
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Store
metadata:
  name: store-oras
spec:
  name: oras
  parameters:
    cacheEnabled: true
    ttl: 10
"""

VERIFIER: Final = """
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Verifier
metadata:
  name: verifier-notation
spec:
  name: notation
  artifactTypes: application/vnd.cncf.notary.signature
  parameters:
    verificationCertStores:
      ca:
        certs: [ratify-notation-inline-cert-0]
    trustPolicyDoc:
      version: "1.0"
      trustPolicies:
        - name: default
          registryScopes: ["*"]
          signatureVerification:
            level: strict
          trustStores: ["ca:certs"]
          trustedIdentities: ["*"]
"""

KEY_PROVIDER: Final = """
apiVersion: config.ratify.deislabs.io/v1beta1
kind: KeyManagementProvider
metadata:
  name: ratify-notation-inline-cert-0
spec:
  type: inline
  parameters:
    contentType: certificate
    value: @ROOT@
"""

POLICY: Final = """
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Policy
metadata:
  name: ratify-policy
spec:
  type: config-policy
  parameters:
    artifactVerificationPolicies:
      application/vnd.cncf.notary.signature: any
      default: all
"""

GOOD: Final = {"Store": STORE, "Verifier": VERIFIER, "KeyManagementProvider": KEY_PROVIDER, "Policy": POLICY}


def fill(text: str) -> str:
    """Put certificates and keys in the place of their placeholders, as one-line YAML texts."""
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, json.dumps(value))
    return text


def manifest(text: str, name: str = "manifest.yaml") -> Manifest:
    """A manifest as read from a file of the folder /etc/countersign."""
    return Manifest(name, Path("/etc/countersign"), fill(text).encode())


def read(*texts: str) -> ResourceSet:
    """Read manifests as one set, one file each: manifest-1.yaml and so on."""
    return read_set([manifest(text, f"manifest-{number}.yaml") for number, text in enumerate(texts, 1)])


def good(**replaced: str) -> tuple[str, ...]:
    """The good set, with the manifests of some kinds replaced; an empty text takes one away."""
    return tuple(text for text in {**GOOD, **replaced}.values() if text)
