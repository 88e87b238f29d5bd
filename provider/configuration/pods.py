"""The images of the pods that run in the cluster, listed once: what a warm start is to look at (prewarming.py).

Rules:
- Pods are listed in small pages, of bounded bytes and number, each within a time limit; nothing is watched or kept.
- What a pod says is taken for a name and nothing else: that an image runs says nothing about its signature.

RBAC needed, for the service account of the provider (a ClusterRole), and only with `serve --prewarm-pods`:

    ""  pods  list

What does not belong here: custom resources (cluster.py).
Source: Kubernetes API concepts, "Retrieving large results sets in chunks".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx2
from lightkube import AsyncClient
from lightkube.config.client_adapter import AsyncClient as HttpClient
from lightkube.config.client_adapter import ConnectionParams
from lightkube.core.exceptions import ConfigError

from provider.prewarming import ListError

PAGE: Final = 20  # pods of one answer, some 15 kB each: read in a few milliseconds
MAX_PAGES: Final = 500  # 10,000 pods
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024  # of one page: PAGE times the 1.5 MiB that etcd lets each have, and some
ANSWER_SECONDS: Final = 15.0  # until a page is there

_LISTS: Final = ("initContainers", "containers", "ephemeralContainers")


async def running_images(client: AsyncClient, *, trust_env: bool = True) -> AsyncGenerator[tuple[str, str], None]:
    """Yield the images of the running pods of all namespaces, each with its namespace, as containers name them.

    An image may come again.

    Args:
        client: of the Kubernetes API; only its configuration is used.
        trust_env: obey proxy variables of the environment, as `client` does.

    Raises:
        ListError: they cannot be listed, or not to the end.
    """
    parameters = {"limit": str(PAGE), "fieldSelector": "status.phase=Running"}
    connection = ConnectionParams(timeout=httpx2.Timeout(ANSWER_SECONDS), trust_env=trust_env)
    try:
        async with HttpClient(client.config, connection) as http:
            for _ in range(MAX_PAGES):
                page = await _get(http, parameters)
                for found in images(page):
                    yield found
                metadata = page.get("metadata")
                if not isinstance(metadata, dict) or not metadata.get("continue"):
                    return
                parameters["continue"] = str(metadata["continue"])
    except TimeoutError:
        raise ListError("the API server does not answer") from None
    except (httpx2.HTTPError, httpx2.StreamError, ConfigError, OSError) as error:
        raise ListError(f"the API server is out of reach ({type(error).__name__})") from None


def images(page: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Namespace and image of every container in a list of pods; what is not where it should be is passed over."""
    for pod in _list(page, "items"):
        spec, metadata = (pod.get("spec"), pod.get("metadata")) if isinstance(pod, dict) else (None, None)
        namespace = str(metadata.get("namespace", "")) if isinstance(metadata, dict) else ""
        for name in _LISTS:
            for container in _list(spec, name):
                image = container.get("image") if isinstance(container, dict) else None
                # No image begins with a bracket: the executor would read a namespace there.
                if isinstance(image, str) and image and not image.startswith("["):
                    yield namespace, image


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


async def _get(http: httpx2.AsyncClient, parameters: Mapping[str, str]) -> dict[str, Any]:
    async with (
        asyncio.timeout(ANSWER_SECONDS),
        http.stream("GET", "api/v1/pods", params=dict(parameters)) as response,
    ):
        if response.status_code == 403:
            raise ListError("the service account may not list pods")
        if response.status_code != 200:
            raise ListError(f"the API server answered {response.status_code}")
        body = bytearray()
        async with aclosing(response.aiter_bytes()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise ListError(f"a page has more than {MAX_ANSWER_BYTES} bytes")
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        page = None
    if not isinstance(page, dict) or not isinstance(page.get("items"), list | None):
        raise ListError("the API server's answer is no list of pods")
    return page
