"""Countersign as its users run it: manifests in a folder and `countersign verify` as a process of its own.

Rules:
- The trust that a test means goes through the same custom resources that a cluster has; there is no back door into the
  product's code, so configuration, assembly, store, verifier, policy and command line are all under test.
- Undecided (exit code 2) is neither a yes nor a no: a test that expects one of these fails, with the report.

What does not belong here: the real `notation` (notation.py) and expectations (the tests).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import yaml

from tests.interop import peers
from tests.interop.notation import Decision, Trust, Verdict
from tests.interop.registries import NOTATION_SIGNATURE

GROUP: Final = "config.ratify.deislabs.io/v1beta1"
DECISIONS: Final = {0: Decision.VERIFIED, 1: Decision.REFUSED, 2: Decision.UNDECIDED}  # by exit code


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
    """The command, with a folder of manifests for each use.

    Use it as a context manager: it keeps a process that forks the runs (launcher.py).
    """

    name = "countersign"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uses = 0
        self._launcher = subprocess.Popen(
            [sys.executable, "-m", "tests.interop.launcher"],
            cwd=peers.CLONE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._launcher.stdin is not None
        assert self._launcher.stdout is not None
        self._launcher.stdin.close()
        self._launcher.wait(peers.STOP_SECONDS)
        self._launcher.stdout.close()

    def verify(self, reference: str, trust: Trust) -> Verdict:
        """Judge an image of a registry that speaks plain HTTP.

        Raises:
            AssertionError: it broke down, or its report contradicts its exit code.
        """
        return read(*self._run(trust, reference))

    def verify_many(self, references: Sequence[str], trust: Trust) -> dict[str, Decision]:
        """Judge many images of one registry in one run, side by side; the decision on each."""
        code, output, errors = self._run(trust, *references)
        assert code in DECISIONS, errors.decode(errors="replace")
        return {one["image"]: Decision(one["decision"]) for one in json.loads(output)["results"]}

    def _run(self, trust: Trust, *references: str) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and standard error of a run over images of one registry."""
        self._uses += 1
        folder = self._folder / f"use-{self._uses}"
        (folder / "manifests").mkdir(parents=True)
        resources = manifests(trust, references[0].partition("/")[0])
        (folder / "manifests" / "resources.yaml").write_text(yaml.safe_dump_all(resources))
        files = {name: folder / name for name in ("stdout", "stderr")}
        words = arguments(folder / "manifests", *references)
        request = {"arguments": words, **{name: str(file) for name, file in files.items()}}
        assert self._launcher.stdin is not None
        assert self._launcher.stdout is not None
        self._launcher.stdin.write(json.dumps(request) + "\n")
        self._launcher.stdin.flush()
        code = int(self._launcher.stdout.readline())
        return code, files["stdout"].read_bytes(), files["stderr"].read_bytes()


def arguments(configuration: Path, *references: str) -> list[str]:
    """The words after `countersign` that judge images."""
    return ["verify", "--config", str(configuration), "--output", "json", "--timeout", "20", *references]


def read(code: int, output: bytes, errors: bytes) -> Verdict:
    """What a run of `countersign verify --output json` for one image said.

    Raises:
        AssertionError: it broke down, or its report contradicts its exit code.
    """
    said = (output + b"\n" + errors).decode(errors="replace")
    assert code in DECISIONS, f"countersign verify exited {code}: {said}"
    assert b"Traceback" not in errors, said
    if not output:  # the configuration is wrong, which standard error says
        assert DECISIONS[code] is Decision.UNDECIDED, said
        return Verdict(Decision.UNDECIDED, said, frozenset(re.findall(r"^countersign: ([A-Z_]+):", said, re.MULTILINE)))
    report = json.loads(output)
    assert [one["decision"] for one in report["results"]] == [DECISIONS[code].value], said
    return Verdict(DECISIONS[code], said, frozenset(_codes(report)))


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
