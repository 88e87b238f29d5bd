"""The demo's configuration: the custom resources that a user would write, as YAML text.

Rules: nothing here is special to the demo. The server reads these files as `countersign serve --config DIR` does, and
the same text could be applied to a cluster.

What does not belong here: what the resources mean (provider/configuration).
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from provider.demo.images import OLD_REPOSITORY, REPOSITORY, Authorities
from provider.demo.pki import pem

_STORE: Final = """\
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Store
metadata:
  name: store-oras
spec:
  name: oras
  parameters:
    registries:
      - host: "{host}"
        plainHttp: true
      - host: "{closed_host}"
        plainHttp: true
    timeoutSeconds: 2
"""

_KEYS: Final = """\
apiVersion: config.ratify.deislabs.io/v1beta1
kind: KeyManagementProvider
metadata:
  name: {name}
spec:
  type: inline
  parameters:
    contentType: certificate
    value: |
{pem}"""

_VERIFIER: Final = """\
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
        company: [company-root]
      tsa:
        clock: [clock-root]
    revocation:
      allowPrivateAddresses: true
      allowedHosts: ["{responder}"]
    trustPolicyDoc:
      version: "1.0"
      trustPolicies:
        - name: shop
          registryScopes:
            - "{host}/{repository}"
            - "{closed_host}/{repository}"
          signatureVerification:
            level: strict
            verifyTimestamp: afterCertExpiry
          trustStores: ["ca:company", "tsa:clock"]
          trustedIdentities:
            - "x509.subject: {subject}"
        - name: archive
          registryScopes:
            - "{host}/{old_repository}"
          signatureVerification:
            level: strict
          trustStores: ["ca:company"]
          trustedIdentities:
            - "x509.subject: {subject}"
"""

_POLICY: Final = """\
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Policy
metadata:
  name: ratify-policy
spec:
  type: config-policy
  parameters:
    artifactVerificationPolicies:
      application/vnd.cncf.notary.signature: any
"""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything is, each as `address:port`.

    Attributes:
        registry: the embedded registry.
        closed: a registry that does not answer.
        responder: OCSP responder and CRL.
    """

    registry: str
    closed: str
    responder: str


def manifests(addresses: Addresses, authorities: Authorities) -> dict[str, str]:
    """The manifests by file name.

    Args:
        addresses: where everything is.
        authorities: whose roots are trusted, and which identity.
    """
    return {
        "store.yaml": _STORE.format(host=addresses.registry, closed_host=addresses.closed),
        "company-root.yaml": _keys("company-root", authorities.issuer.root),
        "clock-root.yaml": _keys("clock-root", authorities.timestampers["tsa"].root),
        "verifier.yaml": _VERIFIER.format(
            host=addresses.registry,
            closed_host=addresses.closed,
            responder=addresses.responder,
            repository=REPOSITORY,
            old_repository=OLD_REPOSITORY,
            subject=authorities.trusted_subject,
        ),
        "policy.yaml": _POLICY,
    }


def write_manifests(folder: Path, addresses: Addresses, authorities: Authorities) -> None:
    """Write the manifests into an existing folder."""
    for name, text in manifests(addresses, authorities).items():
        (folder / name).write_text(text, encoding="utf-8")


def _keys(name: str, certificate: x509.Certificate) -> str:
    return _KEYS.format(name=name, pem=textwrap.indent(pem(certificate).decode(), " " * 6))
