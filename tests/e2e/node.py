"""Stands in for a node and its controllers: the Deployments of one namespace run as processes.

    Deployment -> ReplicaSet -> Pod -> process        status back up again, so that `helm install --atomic` has an end
    Service    -> the pods that are ready             logs as `kubectl logs` gets them from a kubelet

Rules:
- It does what controllers, kubelet and kube-proxy would do for the chart's one Deployment and no more: pods come and go
  with `replicas`, a new template replaces them one by one without a gap, what is owned goes with its owner.
- A pod leaves the Service before it is told to end. One that ended by itself is started again.
- It looks every TICK_SECONDS. What goes wrong in it is kept and told when it is closed, and in its log.

What does not belong here: how one pod runs (pod_process.py), the provider (countersign.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import secrets
import ssl
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.e2e.cluster import NAMESPACE, Json
from tests.e2e.control_plane import ControlPlane
from tests.e2e.forwarding import PORT, Service, free_address
from tests.e2e.pod_process import PodProcess, SignedIn, Surroundings
from tests.e2e.processes import ADDRESS, wait_for

TICK_SECONDS: Final = 0.2
CALL_SECONDS: Final = 20.0  # one call of the API
CRASH_SECONDS: Final = 1.0  # until a pod that ended is started again
TOKEN_SECONDS: Final = 7200  # nothing renews it; the tests take minutes
NAME: Final = "rig"
SERVICE_ACCOUNT: Final = "/run/secrets/kubernetes.io/serviceaccount"  # where in-cluster clients look
APPS: Final = f"/apis/apps/v1/namespaces/{NAMESPACE}"
CORE: Final = f"/api/v1/namespaces/{NAMESPACE}"
HASH: Final = "pod-template-hash"


class Api:
    """The API server, over one connection, as an administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        context = ssl.create_default_context(cafile=plane.keys("kubernetes-ca.crt"))
        context.load_cert_chain(plane.keys("administrator.crt"), plane.keys("administrator.key"))
        self._connection = http.client.HTTPSConnection(ADDRESS, plane.api_port, timeout=CALL_SECONDS, context=context)

    def call(self, method: str, path: str, body: Json | None = None) -> Json | None:
        """One call; None for an object that is not there.

        Raises:
            RuntimeError: it was refused; with the API's words.
        """
        patch = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            self._connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": patch})
            response = self._connection.getresponse()
            data = response.read()
        except BaseException:
            self._connection.close()
            raise
        if response.status == 404:
            return None
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {response.status} {data.decode(errors='replace')}")
        answer: Json = json.loads(data)
        return answer

    def close(self) -> None:
        self._connection.close()

    def items(self, path: str) -> list[Json]:
        """A list."""
        return list((self.call("GET", path) or {}).get("items") or ())


@dataclass
class Running:
    """A pod that was created here.

    Attributes:
        template: hash of the template that it was made of.
        stopping: since when it has been ending, by the monotonic clock.
        crashed: when it was last found to have ended by itself.
        status: what was written as its status last.
    """

    process: PodProcess
    template: str
    stopping: float | None = None
    crashed: float = 0.0
    status: Json | None = None


class Node:
    """Runs Deployments for the time of a `with` block.

    Attributes:
        service: the Service in front of the pods.
        folder: where pods and their logs are.
    """

    def __init__(self, plane: ControlPlane, service_address: str) -> None:
        self._plane = plane
        self.folder = plane.folder / "pods"
        self.folder.mkdir()
        self.service = Service(service_address)
        self._running: dict[str, Running] = {}
        self._closed = threading.Event()
        self._faults: list[str] = []
        self._looks = 0  # that were begun and ended
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._kubelet = _Kubelet(plane, self.folder)

    def __enter__(self) -> Node:
        self._kubelet.open()
        endpoint = {"kubeletEndpoint": {"Port": self._kubelet.port}}
        status = {"addresses": [{"type": "InternalIP", "address": ADDRESS}], "daemonEndpoints": endpoint}
        with contextlib.closing(Api(self._plane)) as api:
            api.call("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}})
            api.call("PATCH", f"/api/v1/nodes/{NAME}/status", {"status": status})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(CALL_SECONDS)
        self.service.close()
        for each in self._running.values():
            each.process.stop()
        self._kubelet.close()
        assert not self._faults, "\n".join(self._faults)

    @property
    def pods(self) -> list[PodProcess]:
        """Those that run and were not told to end, in the order of their start."""
        return [each.process for each in list(self._running.values()) if each.stopping is None]

    def settle(self) -> None:
        """Wait until what is wanted now was looked at, and what it ends is gone."""
        begun = self._looks

        def settled() -> bool:
            quiet = all(each.stopping is None for each in list(self._running.values()))
            return bool(self._faults) or (self._looks >= begun + 2 and quiet)

        wait_for("pods that are not wanted any more to be gone", settled)
        assert not self._faults, "\n".join(self._faults)

    # ---- The loop ----

    def _run(self) -> None:
        with contextlib.closing(Api(self._plane)) as api:
            self._look_again_and_again(api)

    def _look_again_and_again(self, api: Api) -> None:
        surroundings = Surroundings(
            namespace=NAMESPACE,
            sign_in=lambda account, folder: self._sign_in(api, account, folder),
            read=lambda plural, name: api.call("GET", f"{CORE}/{plural}/{name}"),
        )
        while not self._closed.wait(TICK_SECONDS):
            try:
                self._look(api, surroundings)
                self._looks += 1
            except (RuntimeError, OSError, http.client.HTTPException):
                # An object may vanish between two calls, and the API server may be busy; the next look tells.
                with (self.folder / "node.log").open("a") as log:
                    log.write(traceback.format_exc())
            except Exception:
                self._faults.append(traceback.format_exc())
                return

    def _sign_in(self, api: Api, account: str, folder: Path) -> SignedIn:
        """What a kubelet lays down for a service account, and what it tells of the API server."""
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        request = {**kind, "spec": {"expirationSeconds": TOKEN_SECONDS}}
        answer = api.call("POST", f"{CORE}/serviceaccounts/{account}/token", request)
        if answer is None:
            raise RuntimeError(f"there is no service account {account}")
        mount = folder / "serviceaccount"
        mount.mkdir(exist_ok=True)
        (mount / "token").write_text(answer["status"]["token"])
        (mount / "ca.crt").write_bytes(self._plane.keys("kubernetes-ca.crt").read_bytes())
        (mount / "namespace").write_text(NAMESPACE)
        env = {"KUBERNETES_SERVICE_HOST": ADDRESS, "KUBERNETES_SERVICE_PORT": str(self._plane.api_port)}
        return SignedIn(env, {SERVICE_ACCOUNT: mount})

    def _look(self, api: Api, surroundings: Surroundings) -> None:
        deployments = api.items(f"{APPS}/deployments")
        there = {pod["metadata"]["name"]: pod for pod in api.items(f"{CORE}/pods")}
        wanted: set[str] = set()
        for deployment in deployments:
            wanted |= self._pods_of(api, deployment, surroundings)
        for name, running in list(self._running.items()):
            pod = there.get(name)
            if name not in wanted or (pod is not None and "deletionTimestamp" in pod["metadata"]):
                self._end(running)
            self._tend(api, name, running)
        self._collect(api, deployments)
        served = bool(deployments) and api.call("GET", f"{CORE}/services/{deployments[0]['metadata']['name']}")
        ready = [(pod.address, PORT) for pod in self.pods if pod.ready and pod.running]
        self.service.lead_to(ready if served else ())

    def _pods_of(self, api: Api, deployment: Json, surroundings: Surroundings) -> set[str]:
        """Make the pods that a Deployment wants; names of those that it wants now."""
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        template = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:10]
        replica_set = self._replica_set(api, deployment, f"{name}-{template}", template)
        mine = {each: pod for each, pod in self._running.items() if each.startswith(f"{name}-") and not pod.stopping}
        new = [each for each, pod in mine.items() if pod.template == template]
        old = [each for each, pod in mine.items() if pod.template != template]
        for _ in range(spec["replicas"] - len(new)):
            new.append(self._make(api, replica_set, template, surroundings))
        new = new[: spec["replicas"]]
        ready = sum(self._running[each].process.ready for each in new)
        self._report(api, deployment, replica_set, ready, len(new) + len(old))
        return {*new, *(old if ready < spec["replicas"] else ())}

    def _replica_set(self, api: Api, deployment: Json, name: str, template: str) -> Json:
        found = api.call("GET", f"{APPS}/replicasets/{name}")
        spec = deployment["spec"]
        if found is None:
            body = {
                "metadata": {
                    "name": name,
                    "labels": {**spec["template"]["metadata"]["labels"], HASH: template},
                    "ownerReferences": [_owner("apps/v1", "Deployment", deployment)],
                },
                "spec": {
                    "replicas": spec["replicas"],
                    "selector": {"matchLabels": {**spec["selector"]["matchLabels"], HASH: template}},
                    "template": _labelled(spec["template"], template),
                },
            }
            found = api.call("POST", f"{APPS}/replicasets", {"apiVersion": "apps/v1", "kind": "ReplicaSet", **body})
            assert found
        return found

    def _make(self, api: Api, replica_set: Json, template: str, surroundings: Surroundings) -> str:
        name = f"{replica_set['metadata']['name']}-{secrets.token_hex(3)[:5]}"
        made = replica_set["spec"]["template"]
        metadata = {
            **made["metadata"],
            "name": name,
            "ownerReferences": [_owner("apps/v1", "ReplicaSet", replica_set)],
        }
        body = {"metadata": metadata, "spec": {**made["spec"], "nodeName": NAME}}
        api.call("POST", f"{CORE}/pods", {"apiVersion": "v1", "kind": "Pod", **body})
        process = PodProcess(name, made["spec"], free_address(), self.folder, surroundings)
        self._running[name] = Running(process, template)
        return name

    def _end(self, running: Running) -> None:
        """Take a pod out of the Service and tell it to end, once."""
        if running.stopping is None:
            running.stopping = time.monotonic()
            self.service.lead_to([(pod.address, PORT) for pod in self.pods if pod.ready and pod.running])
            if running.process.running:
                running.process.process.terminate()

    def _tend(self, api: Api, name: str, running: Running) -> None:
        """One look at a pod: start it, ask it, write what it is, or clear it away."""
        process = running.process
        if running.stopping is not None:
            if process.running and time.monotonic() - running.stopping > CALL_SECONDS:
                process.stop()
            if not process.running:
                gone = {"gracePeriodSeconds": 0}
                api.call("DELETE", f"{CORE}/pods/{name}", {"apiVersion": "v1", "kind": "DeleteOptions", **gone})
                del self._running[name]
            return
        if process.running:
            process.refresh()
            process.probe()
        elif time.monotonic() - running.crashed > CRASH_SECONDS:
            process.ready = False
            running.crashed = time.monotonic()
            process.start()
        state: Json = {
            "phase": "Running" if process.running else "Pending",
            "podIP": process.address,
            "podIPs": [{"ip": process.address}],
            "conditions": [{"type": "Ready", "status": str(process.ready)}],
            "containerStatuses": [_container_status(process)],
        }
        if state != running.status and api.call("PATCH", f"{CORE}/pods/{name}/status", {"status": state}):
            running.status = state

    def _report(self, api: Api, deployment: Json, replica_set: Json, ready: int, pods: int) -> None:
        """Write the status of a Deployment and of its present ReplicaSet, if it changed."""
        counts = {"replicas": pods, "readyReplicas": ready, "availableReplicas": ready}
        for plural, thing, more in (
            ("replicasets", replica_set, {}),
            ("deployments", deployment, {"updatedReplicas": pods}),
        ):
            status = {**counts, **more, "observedGeneration": thing["metadata"]["generation"]}
            before = thing.get("status") or {}
            if any(before.get(key, 0) != value for key, value in status.items()):
                api.call("PATCH", f"{APPS}/{plural}/{thing['metadata']['name']}/status", {"status": status})

    def _collect(self, api: Api, deployments: list[Json]) -> None:
        """Delete what has no owner or nothing to do any more: ReplicaSets of former templates."""
        present = {each["metadata"]["uid"] for each in deployments}
        used = {each.process.name.rpartition("-")[0] for each in self._running.values()}
        for each in api.items(f"{APPS}/replicasets"):
            owner = each["metadata"]["ownerReferences"][0]["uid"]
            if owner not in present and each["metadata"]["name"] not in used:
                api.call("DELETE", f"{APPS}/replicasets/{each['metadata']['name']}")


def _owner(version: str, kind: str, thing: Json) -> Json:
    name, uid = thing["metadata"]["name"], thing["metadata"]["uid"]
    return {"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": True}


def _labelled(template: Json, value: str) -> Json:
    """A pod template with the label of its ReplicaSet."""
    metadata = template["metadata"]
    return {**template, "metadata": {**metadata, "labels": {**metadata["labels"], HASH: value}}}


def _container_status(process: PodProcess) -> Json:
    state: dict[str, Any] = {"running": {}} if process.running else {"waiting": {"reason": "ContainerCreating"}}
    image = process.container["image"]
    name = process.container["name"]
    counted = {"ready": process.ready, "started": process.running, "restartCount": 0}
    return {"name": name, "image": image, "imageID": image, "state": state, **counted}


class _Kubelet:
    """The one thing that the API server asks of a kubelet here: the log of a container."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                part, _, rest = self.path.partition("?")[0].strip("/").partition("/")
                name = rest.split("/")[1] if part == "containerLogs" and rest.count("/") == 2 else ""
                file = folder / f"{name}.log"
                body = file.read_bytes() if name and file.is_file() else b""
                self.send_response(200 if file.is_file() else 404)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = http.server.ThreadingHTTPServer((ADDRESS, 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(plane.keys("kubelet.crt"), plane.keys("kubelet.key"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]

    def open(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown()
            self._server.server_close()
