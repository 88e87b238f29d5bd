"""Throw-away keys and certificates of a rig, and the kubeconfigs that use them.

What does not belong here: keys that sign images (tests/interop/authorities.py) and the provider's own (it makes them).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from provider.demo import pki
from tests.e2e.cluster import WEBHOOK_NAME
from tests.e2e.processes import ADDRESS

GATEKEEPER_USER: Final = "gatekeeper-rig"
RIG_CONTEXT: Final = "countersign-e2e"


@dataclass(frozen=True)
class Keys:
    """Throw-away keys of a rig, in files.

    Attributes:
        folder: `<name>.crt` and `<name>.key` for each name, `kubernetes-ca.crt`, and `webhook/` for Gatekeeper.
    """

    folder: Path

    def __call__(self, name: str) -> Path:
        return self.folder / name


def make_keys(folder: Path) -> Keys:
    """Make all of them."""
    folder.mkdir()
    now = datetime.now(UTC)

    def issue(name: str, subject: dict[str, str], extensions: pki.Extensions, issuer: pki.CertifiedKey | None) -> Any:
        made = pki.issue(
            subject,
            extensions,
            issuer=issuer,
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(days=7),
        )
        (folder / f"{name}.crt").write_bytes(made.chain_pem())
        (folder / f"{name}.key").write_bytes(made.key_pem())
        return made

    kubernetes = issue("kubernetes-ca", {"CN": "kubernetes-ca"}, pki.authority(), None)
    issue("apiserver", {"CN": "kube-apiserver"}, pki.tls_server([ADDRESS, "localhost"]), kubernetes)
    issue("service-accounts", {"CN": "service-accounts"}, pki.authority(), None)
    issue("kubelet", {"CN": "kubelet"}, pki.tls_server([ADDRESS]), kubernetes)
    administrator = {"O": "system:masters", "CN": "administrator"}
    issue("administrator", administrator, pki.tls_client(["administrator"]), kubernetes)
    issue("gatekeeper-user", {"CN": GATEKEEPER_USER}, pki.tls_client([GATEKEEPER_USER]), kubernetes)
    make_webhook_keys(folder / "webhook")
    return Keys(folder)


def make_webhook_keys(folder: Path) -> None:
    """Make a CA and a certificate for Gatekeeper, in the files that it knows; others of before are replaced."""
    folder.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    begin, end = now - timedelta(hours=1), now + timedelta(days=7)
    subject = {"O": "gatekeeper", "CN": "gatekeeper-ca"}
    authority = pki.issue(subject, pki.authority(), issuer=None, not_before=begin, not_after=end)
    names = _server_and_client([ADDRESS, WEBHOOK_NAME])
    webhook = pki.issue({"CN": WEBHOOK_NAME}, names, issuer=authority, not_before=begin, not_after=end)
    (folder / "tls.crt").write_bytes(webhook.chain_pem())
    (folder / "tls.key").write_bytes(webhook.key_pem())
    (folder / "ca.crt").write_bytes(pki.pem(authority.certificate))


def _server_and_client(hosts: Sequence[str]) -> pki.Extensions:
    """Gatekeeper's certificate serves its webhook and is shown to providers."""
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return tuple(
        (purposes, critical) if isinstance(extension, x509.ExtendedKeyUsage) else (extension, critical)
        for extension, critical in pki.tls_server(hosts)
    )


def write_kubeconfig(file: Path, server: str, authority: Path, user: Mapping[str, str]) -> Path:
    """A kubeconfig with one context; `user` has the members of its user."""
    cluster = {"server": server, "certificate-authority": str(authority)}
    context = {"cluster": RIG_CONTEXT, "user": RIG_CONTEXT}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": RIG_CONTEXT,
        "clusters": [{"name": RIG_CONTEXT, "cluster": cluster}],
        "users": [{"name": RIG_CONTEXT, "user": dict(user)}],
        "contexts": [{"name": RIG_CONTEXT, "context": context}],
    }
    file.write_text(json.dumps(document))
    file.chmod(0o600)
    return file
