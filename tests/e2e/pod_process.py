"""One pod of the chart as a process: what a kubelet makes of a pod's spec, without a container.

Rules:
- The command line and the environment are those of the rendered container, word for word; only paths of mounted volumes
  become paths below a folder. Of this machine's environment nothing is handed on but the PATH.
- Secrets and ConfigMaps are files, replaced when the objects change.
- It signs in with a token of the TokenRequest API for its service account, never as an administrator.
- Each pod has an address of loopback of its own, so the ports are the rendered ones. `COUNTERSIGN_HOST` is what keeps
  them apart, in place of a network namespace.
- Not done: the image, the user, the read-only root file system, limits. A spec that asks for something unknown fails.

What does not belong here: which pods there should be (node.py).
"""

from __future__ import annotations

import re
import sys
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.cluster import Json
from tests.e2e.processes import Process, healthy

ENTRYPOINT: Final = (sys.executable, "-m", "provider")  # the image's
Read = Callable[[str, str], Json | None]  # an object of the pod's namespace: plural and name


@dataclass(frozen=True)
class SignedIn:
    """How a process signs in to the API server.

    Attributes:
        env: variables that it needs.
        mounts: files that it sees.
    """

    env: Mapping[str, str]
    mounts: Mapping[str, Path]


@dataclass(frozen=True)
class Surroundings:
    """What a pod finds in its cluster.

    Attributes:
        namespace: the pod's.
        sign_in: makes a token of a service account, in a folder of the pod.
        read: reads Secrets and ConfigMaps.
    """

    namespace: str
    sign_in: Callable[[str, Path], SignedIn]
    read: Read


class PodProcess:
    """A pod, from the first `start` to `stop`.

    Attributes:
        name: of the pod.
        address: its IP address.
        log: file of its log.
        ready: it answered its readiness probe since it was started.
    """

    def __init__(self, name: str, spec: Json, address: str, folder: Path, surroundings: Surroundings) -> None:
        (container,) = spec["containers"]
        self.name = name
        self.address = address
        self.log = folder / f"{name}.log"
        self.log.touch()
        self.ready = False
        self.container: Json = container
        self._spec = spec
        self._folder = folder / name
        self._folder.mkdir()
        self._surroundings = surroundings
        self._process: Process | None = None

    # ---- Running ----

    def start(self) -> bool:
        """Start it, if every volume that it needs is there.

        Returns:
            Whether it was started.
        """
        if not self.refresh():
            return False
        signed_in = self._surroundings.sign_in(self._spec["serviceAccountName"], self._folder)
        command = [*ENTRYPOINT, *(self._here(word) for word in self.container["args"])]
        self.ready = False
        self._process = Process(
            self.name,
            command,
            self.log,
            {**signed_in.env, **self.environment()},
            signed_in.mounts,
            inherit=("PATH",),
        )
        return True

    @property
    def process(self) -> Process:
        assert self._process is not None, f"{self.name} was not started: a Secret or ConfigMap is missing"
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def probe(self) -> None:
        """Ask its readiness probe until it is ready once. Later a frozen pod must not hold up those who ask."""
        if self.running and not self.ready:
            get = self.container["readinessProbe"]["httpGet"]
            self.ready = healthy(self._port(get["port"]), get["path"], address=self.address)

    def stop(self) -> None:
        """End it and wait until it is gone."""
        if self._process is not None:
            self._process.stop()
        self.ready = False

    def _port(self, name: str) -> int:
        return next(int(port["containerPort"]) for port in self.container["ports"] if port["name"] == name)

    # ---- What the spec says ----

    def environment(self) -> dict[str, str]:
        """Its environment variables."""
        fields = {"metadata.namespace": self._surroundings.namespace, "metadata.name": self.name}
        said = {
            each["name"]: self._here(each["value"])
            if "value" in each
            else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in self.container.get("env") or ()
        }
        return {
            "TMPDIR": self._here("/tmp"),
            "COUNTERSIGN_HOST": self.address,
            **said,
        }

    def _here(self, text: str) -> str:
        """A path of the pod as one of this machine, alone or as the value of an option."""
        places = {mount["mountPath"]: self._volume(mount["name"]) for mount in self.container["volumeMounts"]}
        longest_first = sorted(map(re.escape, places), key=len, reverse=True)
        return re.sub(rf"(^|=)({'|'.join(longest_first)})(?=/|$)", lambda found: found[1] + str(places[found[2]]), text)

    def _volume(self, name: str) -> Path:
        return self._folder / "volumes" / name

    def refresh(self) -> bool:
        """Write the volumes as the cluster has them now; False when one that is needed is missing."""
        complete = True
        for volume in self._spec["volumes"]:
            folder = self._volume(volume["name"])
            folder.mkdir(parents=True, exist_ok=True)
            if "emptyDir" in volume:
                continue
            (kind,) = {"secret", "configMap"} & set(volume)
            source = volume[kind]
            plural, name = ("secrets", source["secretName"]) if kind == "secret" else ("configmaps", source["name"])
            found = self._surroundings.read(plural, name)
            content = _content(found or {})
            wanted = [(item["key"], item["path"]) for item in source.get("items") or ()] or [(k, k) for k in content]
            present = {path: content[key] for key, path in wanted if key in content}
            complete &= bool(source.get("optional")) or (found is not None and len(present) == len(wanted))
            _lay(folder, present)
        return complete


def _content(thing: Json) -> dict[str, bytes]:
    """What a Secret or a ConfigMap holds."""
    data = thing.get("data") or {}
    if thing.get("kind") == "ConfigMap":
        return {key: text.encode() for key, text in data.items()}
    return {key: b64decode(text, validate=True) for key, text in data.items()}


def _lay(folder: Path, content: Mapping[str, bytes]) -> None:
    """Make these the files of a folder, each replaced at once."""
    for file in folder.iterdir():
        if file.name not in content:
            file.unlink()
    for name, data in content.items():
        file = folder / name
        if not file.exists() or file.read_bytes() != data:
            scratch = folder / f".{name}"
            scratch.touch(mode=0o600)
            scratch.write_bytes(data)
            scratch.replace(file)
