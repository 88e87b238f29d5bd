"""A cluster as kubectl sees it: running kubectl, reading objects, waiting for Gatekeeper to act on them.

Rules:
- What is read and written goes through the real kubectl, as an administrator's does.
- Waiting is for a state that the API shows, never for a time.

What does not belong here: starting a cluster (control_plane.py, rig.py), the provider (countersign.py), expectations.
"""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.e2e import programs
from tests.e2e.processes import ADDRESS, wait_for

Json = dict[str, Any]

NAMESPACE: Final = "gatekeeper-system"
WEBHOOK_NAME: Final = "gatekeeper-webhook-service.gatekeeper-system.svc"  # what Gatekeeper's certificate says
WEBHOOK_SECRET: Final = "gatekeeper-webhook-server-cert"
CALL_SECONDS: Final = 60.0  # one kubectl


@dataclass(frozen=True)
class Said:
    """What a run of kubectl said."""

    code: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out}{self.err}"


class Cluster:
    """A cluster as kubectl sees it.

    Attributes:
        kubeconfig: of an administrator.
        provider_address: address of this machine for Gatekeeper.
    """

    def __init__(self, kubeconfig: Path, folder: Path, *, provider_address: str = ADDRESS) -> None:
        self.kubeconfig = kubeconfig
        self.provider_address = provider_address
        self._kubectl = programs.find("kubectl")
        self._cache = folder / "kubectl-cache"  # nothing is kept in the home of whoever runs the tests

    def kubectl(self, *words: str, stdin: str | None = None, kubeconfig: Path | None = None) -> Said:
        """Run kubectl to its end, whatever its exit code.

        Args:
            words: its arguments.
            stdin: what it reads from `-f -`.
            kubeconfig: somebody else's; the administrator's by default.
        """
        done = subprocess.run(
            [str(self._kubectl), f"--cache-dir={self._cache}", *words],
            env={**os.environ, "KUBECONFIG": str(kubeconfig or self.kubeconfig)},
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def must(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl, which has to succeed; its standard output.

        Raises:
            AssertionError: with its own words.
        """
        said = self.kubectl(*words, stdin=stdin)
        assert said.ok, f"kubectl {' '.join(words)}: {said}"
        return said.out

    def apply(self, *objects: Json, server_side: bool = False) -> None:
        """Apply objects."""
        options = ["--server-side", "--force-conflicts"] if server_side else []
        self.must(
            "apply", *options, "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def get(self, *words: str) -> Json | None:
        """An object, or a list of them that is not empty; None where there is none."""
        said = self.kubectl("get", *words, "--ignore-not-found", "--output=json")
        if not said.ok:
            # The kind itself is not there yet, or discovery does not know it yet.
            assert "the server doesn't have a resource type" in said.err or "NotFound" in said.err, str(said)
            return None
        found: Json | None = json.loads(said.out) if said.out.strip() else None
        return found

    def delete(self, *words: str, wait: bool = True) -> None:
        """Delete objects, those that are there, and wait until they are gone unless told not to."""
        said = self.kubectl("delete", *words, "--ignore-not-found", f"--wait={str(wait).lower()}")
        assert said.ok or "the server doesn't have a resource type" in said.err, str(said)

    def wait(self, what: str, *words: str, until: Callable[[Json], bool]) -> Json:
        """Wait until an object is there and as it should be; the object.

        Raises:
            AssertionError: it was not in time; with how it was last.
        """
        last: Json = {}

        def ready() -> bool:
            nonlocal last
            last = self.get(*words) or {}
            return bool(last) and until(last)

        try:
            wait_for(what, ready)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {json.dumps(last.get('status', last))}") from None
        return last

    def gatekeeper_ca(self) -> bytes:
        """The CA of Gatekeeper's own certificate, which it shows to providers (PEM)."""
        secret = self.wait("Gatekeeper's certificate", "secret", WEBHOOK_SECRET, f"--namespace={NAMESPACE}", until=bool)
        return bytes_of(secret["data"]["ca.crt"])

    def write_service_account(self, file: Path, name: str, namespace: str = NAMESPACE) -> None:
        """A kubeconfig of a service account that is there, with a token as its pods would get."""
        token = self.must("create", "token", name, f"--namespace={namespace}", "--duration=24h").strip()
        mine = json.loads(self.must("config", "view", "--raw", "--flatten", "--minify", "--output=json"))
        mine["users"] = [{"name": each["name"], "user": {"token": token}} for each in mine["users"]]
        file.touch(mode=0o600)
        file.write_text(json.dumps(mine))

    # ---- Waiting for Gatekeeper ----

    def wait_template(self, name: str = "ratifyverification") -> None:
        """Wait until Gatekeeper compiled the present version of a template.

        Raises:
            AssertionError: it cannot be compiled, or took too long.
        """
        template = self.wait(f"template {name} to be compiled", "constrainttemplate", name, until=_seen)
        faults = [error for pod in template["status"]["byPod"] for error in pod.get("errors", [])]
        assert not faults, faults
        assert template["status"]["created"] is True
        kind = template["spec"]["crd"]["spec"]["names"]["kind"]
        crd = f"{kind.lower()}.constraints.gatekeeper.sh"
        self.wait(
            f"the kind {kind}", "customresourcedefinition", crd, until=lambda it: has_condition(it, "Established")
        )

    def wait_constraint(self, name: str = "ratify-constraint", kind: str = "ratifyverification") -> None:
        """Wait until Gatekeeper enforces the present version of a constraint."""

        def enforced(constraint: Json) -> bool:
            return _seen(constraint) and all(pod.get("enforced") for pod in constraint["status"]["byPod"])

        self.wait(f"constraint {name} to be enforced", kind, name, until=enforced)

    def wait_provider(self, name: str = "ratify-provider") -> None:
        """Wait until Gatekeeper knows the present version of a Provider."""

        def active(provider: Json) -> bool:
            return _seen(provider) and all(pod.get("active") for pod in provider["status"]["byPod"])

        self.wait(f"provider {name} to be active", "provider.externaldata.gatekeeper.sh", name, until=active)

    def wait_mutators(self, kind: str = "assign") -> None:
        """Wait until Gatekeeper enforces all mutators of a kind."""

        def enforced(listed: Json) -> bool:
            return all(
                _seen(each) and all(pod.get("enforced") for pod in each["status"]["byPod"]) for each in listed["items"]
            )

        self.wait(f"the {kind} objects to be enforced", f"{kind}.mutations.gatekeeper.sh", until=enforced)


def _seen(thing: Json) -> bool:
    """Every pod of Gatekeeper reports on the present generation of an object."""
    pods = thing.get("status", {}).get("byPod", [])
    return bool(pods) and all(pod.get("observedGeneration") == thing["metadata"]["generation"] for pod in pods)


def has_condition(thing: Json, kind: str) -> bool:
    """A condition of an object's status is True."""
    conditions = thing.get("status", {}).get("conditions", [])
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def bytes_of(text: str) -> bytes:
    """What a Secret's data stands for."""
    return b64decode(text, validate=True)
