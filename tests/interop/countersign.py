"""Countersign as its users run it: manifests in a folder and `countersign verify` as a process of its own.

Rules:
- The trust that a test means goes through the same custom resources that a cluster has; there is no back door into the
  product's code, so configuration, assembly, store, verifier, policy and command line are all under test.
- Undecided (exit code 2) is neither a yes nor a no: a test that gets it fails, with the report.

What does not belong here: the real `notation` (notation.py) and expectations (the tests).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.interop import peers
from tests.interop.notation import Trust, Verdict
from tests.interop.registries import NOTATION_SIGNATURE

GROUP: Final = "config.ratify.deislabs.io/v1beta1"
VERIFIED, REFUSED = 0, 1  # exit codes of `countersign verify`; 2 is: could not decide


def resource(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A cluster-scoped custom resource."""
    return {"apiVersion": GROUP, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}


def manifests(trust: Trust, registry: str) -> list[dict[str, Any]]:
    """The resources that mean a trust, for images of one registry that speaks plain HTTP."""
    stores: dict[str, dict[str, list[str]]] = {}
    providers = []
    for store, files in trust.stores().items():
        for number, file in enumerate(files):
            name = f"{store}-{number}".lower()
            value = {"contentType": "certificate", "value": file.read_text()}
            providers.append(resource("KeyManagementProvider", name, {"type": "inline", "parameters": value}))
            stores.setdefault(store, {}).setdefault("interop", []).append(name)
    verifier = {
        "trustPolicyDoc": trust.policy(),
        "verificationCertStores": stores,
        # The authorities of these tests answer on loopback, where a certificate may not point by default.
        "revocation": {"allowPrivateAddresses": True, "allowedHosts": ["127.0.0.1"]},
    }
    access = {"registries": [{"host": registry, "plainHttp": True}]}
    rule = {"artifactVerificationPolicies": {NOTATION_SIGNATURE: "any"}}
    return [
        *providers,
        resource("Store", "store-oras", {"name": "oras", "parameters": access}),
        resource(
            "Verifier",
            "verifier-notation",
            {"name": "notation", "artifactTypes": NOTATION_SIGNATURE, "parameters": verifier},
        ),
        resource("Policy", "ratify-policy", {"type": "config-policy", "parameters": rule}),
    ]


class Countersign:
    """The command, with a folder of manifests for each use."""

    name = "countersign"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uses = 0

    def verify(self, reference: str, trust: Trust) -> Verdict:
        """Judge an image of a registry that speaks plain HTTP.

        Raises:
            AssertionError: it could not decide, broke down, or its report is no JSON.
        """
        self._uses += 1
        folder = self._folder / f"use-{self._uses}"
        folder.mkdir(parents=True)
        resources = manifests(trust, reference.partition("/")[0])
        (folder / "resources.yaml").write_text(yaml.safe_dump_all(resources))
        command: peers.Command = [
            sys.executable,
            "-m",
            "provider",
            "verify",
            "--config",
            folder,
            "--output",
            "json",
            reference,
        ]
        done = peers.run(command, cwd=peers.CLONE)
        said = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
        assert done.returncode in (VERIFIED, REFUSED), f"countersign verify exited {done.returncode}: {said}"
        assert b"Traceback" not in done.stderr, said
        codes = frozenset(_codes(json.loads(done.stdout)))
        return Verdict(done.returncode == VERIFIED, said, codes)


def _codes(report: Any) -> Iterator[str]:
    """Every `code` anywhere in a report: that of the refusal and those of the single checks."""
    if isinstance(report, dict):
        if isinstance(report.get("code"), str):
            yield report["code"]
        for value in report.values():
            yield from _codes(value)
    elif isinstance(report, list):
        for value in report:
            yield from _codes(value)
