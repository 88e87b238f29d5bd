"""A Kubernetes API server on loopback: objects in memory, list, watch, get, create, update, patch, delete.

    async with KubernetesSimulator() as server:
        server.apply(yaml_text)                      # what `kubectl apply -f` does
        async with server.client() as client: ...    # a lightkube.AsyncClient that talks to it
        server.object("stores", "store-oras")["status"]
        server.compact(); server.end_watches(); server.bookmark(); server.forbid("get", "secrets")
    server.spoil("list", "stores", status(500), times=2); server.say(b'{"type": ')

It knows what a client can stumble over: resourceVersion and its conflicts (409), paged lists, watches that replay what
was missed, bookmarks, histories that are gone (410), the status subresource, merge patches, bearer tokens (401), rights
(403), the list of what is served. Everything else of listener.py applies: a log of requests, and faults by path, for
watches too; `spoil` switches them on by verb.

What it does not: admission, schemas, server-side apply (a patch of that type is merged), finalizers. Any plural of any
group exists; a plural in `missing` does not, as if its CustomResourceDefinition were not installed.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import lightkube
import trustme
import yaml
from aiohttp import web
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User

from tests.simulators.listener import Fault, Listener, Reply

Object = dict[str, Any]

_PLURALS = {"Policy": "policies", "NamespacedPolicy": "namespacedpolicies"}
_APPLY = "application/apply-patch+yaml"
_MERGE = {"application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}
_ENDED = None  # what a watcher's queue gives when its stream is to end
_BROKEN = b""  # and when its connection is to break
_SERVED = {
    "config.ratify.deislabs.io": (
        *("stores", "verifiers", "keymanagementproviders", "policies", "certificatestores"),
        *("namespacedstores", "namespacedverifiers", "namespacedkeymanagementproviders", "namespacedpolicies"),
    )
}


@dataclass(frozen=True)
class _Path:
    """Where a request goes: /api/v1/... or /apis/<group>/<version>/..., as Kubernetes lays it out."""

    version: str
    namespace: str
    plural: str
    name: str
    subresource: str

    @classmethod
    def of(cls, path: str) -> _Path | None:
        parts = path.strip("/").split("/")
        if parts[0] == "api" and len(parts) > 2:
            version, rest = parts[1], parts[2:]
        elif parts[0] == "apis" and len(parts) > 3:
            version, rest = "/".join(parts[1:3]), parts[3:]
        else:
            return None
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource = (*rest, "", "")[:3]
        return cls(version, namespace, plural, name, subresource)


@dataclass(eq=False)
class _Watcher:
    plural: str
    namespace: str
    bookmarks: bool
    queue: asyncio.Queue[Object | bytes | None] = field(default_factory=asyncio.Queue)

    def wants(self, plural: str, value: Object) -> bool:
        namespace = value["metadata"].get("namespace", "")
        return plural == self.plural and self.namespace in ("", namespace)


@dataclass
class _Spoilt:
    verb: str
    plural: str
    fault: Fault
    times: int | None


class KubernetesSimulator(Listener):
    """The server.

    Args:
        tls: authority of its certificate; None for plain HTTP.

    Attributes:
        token: the bearer token that is good; None lets everybody in.
        missing: plurals that do not exist.
        verbs: every request as `verb plural`, such as `watch stores` or `patch stores/status`.
    """

    def __init__(self, *, tls: trustme.CA | None = None) -> None:
        super().__init__(tls=tls)
        self._authority = tls
        self.token: str | None = None
        self.missing: set[str] = set()
        self.verbs: list[str] = []
        self._objects: dict[tuple[str, str, str], Object] = {}  # by plural, namespace, name
        self._version = 100
        self._compacted = 0
        self._history: list[tuple[int, str, Object]] = []  # version, plural, watch event
        self._watchers: set[_Watcher] = set()
        self._forbidden: set[tuple[str, str]] = set()
        self._spoilt: list[_Spoilt] = []

    # -- what tests do to it --------------------------------------------------------------------------------------

    def apply(self, *texts: str | Mapping[str, Any]) -> None:
        """Create or update objects, each a mapping or YAML text of one or several documents. Status stays."""
        for text in texts:
            for value in yaml.safe_load_all(text) if isinstance(text, str) else (text,):
                if value is not None:
                    self._apply(copy.deepcopy(dict(value)))

    def delete(self, plural: str, name: str, namespace: str = "") -> None:
        """Delete an object."""
        value = self._objects.pop((plural, namespace, name))
        value["metadata"]["resourceVersion"] = self._next()
        self._tell("DELETED", plural, value)

    def object(self, plural: str, name: str, namespace: str = "") -> Object:
        """An object as it is now."""
        return self._objects[plural, namespace, name]

    def status(self, plural: str, name: str, namespace: str = "") -> Object:
        """An object's status, empty when it has none."""
        return dict(self.object(plural, name, namespace).get("status") or {})

    def secret(self, name: str, namespace: str, data: Mapping[str, bytes], kind: str = "Opaque") -> None:
        """Create or update a Secret."""
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        metadata = {"name": name, "namespace": namespace}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": encoded})

    def service_account(self, name: str, namespace: str, pull_secrets: Sequence[Any] = ()) -> None:
        """Create or update a ServiceAccount with these imagePullSecrets, names or whatever a tenant writes there."""
        references = [{"name": secret} for secret in pull_secrets]
        metadata = {"name": name, "namespace": namespace}
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
        self.apply({**account, "imagePullSecrets": references})

    def compact(self) -> None:
        """Forget the history: a watch or a page that begins before now is gone (410)."""
        self._history.clear()
        self._compacted = self._version

    def end_watches(self, event: Object | None = None) -> None:
        """End every watch as a server does that is restarted, after an event such as an ERROR if one is given."""
        for watcher in tuple(self._watchers):
            if event is not None:
                watcher.queue.put_nowait(event)
            watcher.queue.put_nowait(_ENDED)

    def say(self, data: bytes) -> None:
        """Send every watcher these bytes as they are."""
        for watcher in self._watchers:
            watcher.queue.put_nowait(data)

    def break_watches(self) -> None:
        """Break the connection of every watch, wherever it is."""
        for watcher in tuple(self._watchers):
            watcher.queue.put_nowait(_BROKEN)

    def spoil(self, verb: str, plural: str, fault: Fault, *, times: int | None = None) -> None:
        """Switch on a fault for a verb, as in `forbid`, on a plural or `*`: the next `times`, or always."""
        self._spoilt.insert(0, _Spoilt(verb, plural, fault, times))

    def heal(self) -> None:
        super().heal()
        self._spoilt.clear()

    def bookmark(self) -> None:
        """Tell the watchers that asked for it which version they have reached."""
        for watcher in self._watchers:
            if watcher.bookmarks:
                metadata = {"resourceVersion": self._next()}
                watcher.queue.put_nowait({"type": "BOOKMARK", "object": {"metadata": metadata}})

    @property
    def watches(self) -> int:
        """Watches under way."""
        return len(self._watchers)

    def forbid(self, verb: str, plural: str) -> None:
        """Refuse a verb (get, list, watch, create, update, patch, delete) on a plural, `stores/status` too."""
        self._forbidden.add((verb, plural))

    def permit(self) -> None:
        """Every right is given again."""
        self._forbidden.clear()

    # -- clients --------------------------------------------------------------------------------------------------

    def client(self, *, namespace: str = "gatekeeper-system", **settings: Any) -> lightkube.AsyncClient:
        """A client of this server. With `token_file`, its token is read from there."""
        user = User(token=self.token or "anybody", token_file=settings.pop("token_file", None))
        cluster = Cluster(server=str(self.url))
        if self._authority is not None:
            cluster.certificate_auth_data = base64.b64encode(self._authority.cert_pem.bytes()).decode()
        config = KubeConfig.from_one(cluster=cluster, user=user, namespace=namespace)
        return lightkube.AsyncClient(config, field_manager="countersign", trust_env=False, **settings)

    def kubeconfig(self, path: Path, *, namespace: str = "gatekeeper-system") -> Path:
        """Write a configuration file for kubectl and its kin."""
        context = {"cluster": "here", "user": "me", "namespace": namespace}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": str(self.url)}}],
            "users": [{"name": "me", "user": {"token": self.token or "anybody"}}],
            "contexts": [{"name": "here", "context": context}],
            "current-context": "here",
        }
        path.write_text(yaml.safe_dump(document))
        return path

    # -- answers --------------------------------------------------------------------------------------------------

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        if self.token is not None and seen.authorization != f"Bearer {self.token}":
            return _problem(401, "Unauthorized", "Unauthorized")
        if request.path.startswith("/apis") and request.path.count("/") < 4:
            return self._discover(request.path.strip("/").split("/")[1:])
        path = _Path.of(request.path)
        if path is None or path.plural in self.missing:
            return _problem(404, "NotFound", "the server could not find the requested resource")
        watching = seen.query.get("watch") in ("true", "1")
        verb = _verb(seen.method, named=bool(path.name), watching=watching)
        plural = f"{path.plural}/{path.subresource}" if path.subresource else path.plural
        self.verbs.append(f"{verb} {plural}")
        if (verb, plural) in self._forbidden:
            return _problem(403, "Forbidden", f'{plural} is forbidden: User "ratify-admin" cannot {verb} resource')
        for spoilt in self._spoilt:
            if spoilt.verb == verb and spoilt.plural in ("*", plural) and spoilt.times != 0:
                spoilt.times = None if spoilt.times is None else spoilt.times - 1
                # What is to be changed is not: a fault says that it was refused, or lost.
                reads = verb in ("list", "get")
                answer = self._serve(verb, path) if reads else Reply(200, {"Content-Type": "application/json"})
                return await spoilt.fault(request, answer)  # type: ignore[return-value]
        if verb == "watch":
            # A fault replaces the stream, or there would be nothing that it could be put into.
            return Reply() if self._is_faulty(request) else await self._watch(request, path)  # type: ignore[return-value]
        return self._serve(verb, path)

    def _serve(self, verb: str, path: _Path) -> Reply:
        seen = self.requests[-1]
        body = json.loads(seen.body) if seen.body else {}
        answers: dict[str, Callable[[], Reply]] = {
            "list": lambda: self._list(path, seen.query),
            "get": lambda: self._get(path),
            "create": lambda: self._create(path, body),
            "update": lambda: self._change(path, body, replace=True),
            "patch": lambda: self._change(path, body, replace=False, kind=seen.headers.get("Content-Type", "")),
            "delete": lambda: self._delete(path),
        }
        return answers[verb]()

    def _is_faulty(self, request: web.Request) -> bool:
        return any(switched.applies(request) for switched in self._faults)

    def _discover(self, path: list[str]) -> Reply:
        """What is served: groups, or the kinds of one."""
        served = {group: [one for one in plurals if one not in self.missing] for group, plurals in _SERVED.items()}
        if not path:
            groups = [{"name": group} for group, plurals in served.items() if plurals]
            return _answer({"kind": "APIGroupList", "groups": groups})
        if len(path) != 2 or not served.get(path[0]):
            return Reply(404, {"Content-Type": "text/plain"}, b"404 page not found\n")
        kinds = [{"name": name} for plural in served[path[0]] for name in (plural, f"{plural}/status")]
        return _answer({"kind": "APIResourceList", "groupVersion": "/".join(path), "resources": kinds})

    def _list(self, path: _Path, query: Mapping[str, str]) -> Reply:
        matching = [
            value
            for (plural, namespace, _), value in sorted(self._objects.items())
            if plural == path.plural and path.namespace in ("", namespace)
        ]
        version, start = str(self._version), 0
        if "continue" in query:
            version, _, place = query["continue"].partition(":")
            if int(version) < self._compacted:
                return _problem(410, "Expired", "The provided continue parameter is too old")
            start = int(place)
        limit = int(query.get("limit", 0)) or len(matching)
        metadata: Object = {"resourceVersion": version}
        if start + limit < len(matching):
            metadata["continue"] = f"{version}:{start + limit}"
        items = matching[start : start + limit]
        return _answer({"apiVersion": path.version, "kind": "List", "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request, path: _Path) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        bookmarks = request.query.get("allowWatchBookmarks") == "true"
        watcher = _Watcher(path.plural, path.namespace, bookmarks)
        if since and since < self._compacted:
            watcher.queue.put_nowait({"type": "ERROR", "object": _status(410, "Expired", "too old resource version")})
            watcher.queue.put_nowait(_ENDED)
        elif not since:
            for event in self._as_added(watcher):
                watcher.queue.put_nowait(event)
        for version, plural, event in self._history:
            if since and version > since and watcher.wants(plural, event["object"]):
                watcher.queue.put_nowait(event)
        self._watchers.add(watcher)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds") or 3600)):
                await response.prepare(request)
                while (said := await watcher.queue.get()) is not _ENDED:
                    if said == _BROKEN and request.transport is not None:
                        request.transport.abort()
                        break
                    await response.write(said if isinstance(said, bytes) else json.dumps(said).encode() + b"\n")
        except TimeoutError:
            pass
        finally:
            self._watchers.discard(watcher)
        return response

    def _as_added(self, watcher: _Watcher) -> Iterator[Object]:
        for (plural, _, _), value in sorted(self._objects.items()):
            if watcher.wants(plural, value):
                yield {"type": "ADDED", "object": copy.deepcopy(value)}

    def _get(self, path: _Path) -> Reply:
        value = self._objects.get((path.plural, path.namespace, path.name))
        return _not_found(path) if value is None else _answer(value)

    def _create(self, path: _Path, body: Object) -> Reply:
        metadata = body.setdefault("metadata", {})
        if path.namespace:
            metadata["namespace"] = path.namespace
        if (path.plural, path.namespace, metadata["name"]) in self._objects:
            return _problem(409, "AlreadyExists", f'{path.plural} "{metadata["name"]}" already exists')
        return _answer(self._store(path.plural, body, None), 201)

    def _change(self, path: _Path, body: Object, *, replace: bool, kind: str = "") -> Reply:
        old = self._objects.get((path.plural, path.namespace, path.name))
        if old is None and kind.startswith(_APPLY):
            return self._create(path, body)
        if old is None:
            return _not_found(path)
        if not replace and kind.partition(";")[0] not in _MERGE:
            return _problem(415, "UnsupportedMediaType", f"the simulator does not know patches of type {kind}")
        wanted = (body.get("metadata") or {}).get("resourceVersion")
        if wanted is not None and wanted != old["metadata"]["resourceVersion"]:
            return _problem(409, "Conflict", "the object has been modified; please apply your changes to the latest")
        new = copy.deepcopy(body) if replace else merge_patch(old, body)
        if path.subresource == "status":
            new = {**copy.deepcopy(old), "status": new.get("status")}
        elif "status" in old:
            new["status"] = old["status"]
        return _answer(self._store(path.plural, new, old))

    def _delete(self, path: _Path) -> Reply:
        if (path.plural, path.namespace, path.name) not in self._objects:
            return _not_found(path)
        self.delete(path.plural, path.name, path.namespace)
        return _answer({"apiVersion": "v1", "kind": "Status", "status": "Success"})

    # -- objects --------------------------------------------------------------------------------------------------

    def _apply(self, value: Object) -> None:
        kind = value["kind"]
        plural = _PLURALS.get(kind, kind.lower() + "s")
        metadata = value["metadata"]
        old = self._objects.get((plural, metadata.get("namespace", ""), metadata["name"]))
        if old is not None and "status" in old:
            value.setdefault("status", old["status"])
        self._store(plural, value, old)

    def _store(self, plural: str, value: Object, old: Object | None) -> Object:
        """Keep an object with the metadata that a server gives, and tell the watchers, unless nothing changed."""
        metadata = value["metadata"]
        before: Object = {"uid": str(uuid.uuid4()), "generation": 0, "resourceVersion": "0"}
        before |= {key: old["metadata"][key] for key in before} if old is not None else {}
        metadata.update(before)
        if old == value:
            return old  # a write that changes nothing gives no event
        if old is None or _content(old) != _content(value):
            metadata["generation"] = before["generation"] + 1
        metadata["resourceVersion"] = self._next()
        self._objects[plural, metadata.get("namespace", ""), metadata["name"]] = value
        self._tell("ADDED" if old is None else "MODIFIED", plural, value)
        return value

    def _next(self) -> str:
        self._version += 1
        return str(self._version)

    def _tell(self, kind: str, plural: str, value: Object) -> None:
        event = {"type": kind, "object": copy.deepcopy(value)}
        self._history.append((self._version, plural, event))
        for watcher in self._watchers:
            if watcher.wants(plural, value):
                watcher.queue.put_nowait(event)


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _content(value: Object) -> Object:
    """What a generation counts: everything but metadata and status."""
    return {key: part for key, part in value.items() if key not in ("metadata", "status")}


def _verb(method: str, *, named: bool, watching: bool) -> str:
    if method == "GET":
        return "watch" if watching else "get" if named else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]


def _status(code: int, reason: str, message: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _problem(code: int, reason: str, message: str) -> Reply:
    return _answer(_status(code, reason, message), code)


def _not_found(path: _Path) -> Reply:
    return _problem(404, "NotFound", f'{path.plural} "{path.name}" not found')


def _answer(value: Object, code: int = HTTPStatus.OK) -> Reply:
    return Reply(int(code), {"Content-Type": "application/json"}, json.dumps(value).encode())
