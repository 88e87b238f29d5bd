"""The demo's configuration: the custom resources that a user would write, as YAML text.

Rules: nothing here is special to the demo. The server reads these files as `countersign serve --config DIR` does, and
the same text could be applied to a cluster.

What does not belong here: what the resources mean (provider/configuration).
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

from cryptography import x509

from provider.demo.images import REPOSITORY, Authorities
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


def manifests(host: str, closed_host: str, authorities: Authorities) -> dict[str, str]:
    """The manifests by file name.

    Args:
        host: the embedded registry, `address:port`.
        closed_host: a registry that does not answer.
        authorities: whose roots are trusted, and which identity.
    """
    return {
        "store.yaml": _STORE.format(host=host, closed_host=closed_host),
        "company-root.yaml": _keys("company-root", authorities.issuer.root),
        "clock-root.yaml": _keys("clock-root", authorities.timestampers["tsa"].root),
        "verifier.yaml": _VERIFIER.format(
            host=host, closed_host=closed_host, repository=REPOSITORY, subject=authorities.trusted_subject
        ),
        "policy.yaml": _POLICY,
    }


def write_manifests(folder: Path, host: str, closed_host: str, authorities: Authorities) -> None:
    """Write the manifests into an existing folder."""
    for name, text in manifests(host, closed_host, authorities).items():
        (folder / name).write_text(text, encoding="utf-8")


def _keys(name: str, certificate: x509.Certificate) -> str:
    return _KEYS.format(name=name, pem=textwrap.indent(pem(certificate).decode(), " " * 6))
