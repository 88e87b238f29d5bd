"""The options of `countersign serve` for a warm start: what they mean, and what is made of them.

Rules: without a list the options that say how have no effect and are refused. Everything is off by default.

What does not belong here: what a warm start does (prewarming.py), which pods there are (configuration/pods.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from provider.cli.options import NumberRange, option
from provider.errors import UsageError
from provider.executor import Executor
from provider.prewarming import Prewarming, PrewarmSettings, Recent, Source, file_source

if TYPE_CHECKING:
    from lightkube import AsyncClient

C = TypeVar("C", bound=Callable[..., Any])

SECTION: Final = "Warm start"
MAX_WAIT_SECONDS: Final = 300.0  # a rollout waits for readiness; Kubernetes gives up on one after ten minutes

_PATH: Final = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class PrewarmFlags:
    """What the options say.

    Attributes:
        file: a list of images; None for none.
        pods: whether the images of running pods are listed.
        snapshot: where the images last admitted are kept for the next start; None for nowhere.
        settings: limits.
    """

    file: Path | None
    pods: bool
    snapshot: Path | None
    settings: PrewarmSettings

    def prewarming(
        self, executor: Executor, client: AsyncClient | None, recent: Recent, *, busy: Callable[[], bool]
    ) -> Prewarming:
        """What verifies the images.

        Args:
            executor: decides.
            client: of the Kubernetes API; needed for pods.
            recent: what the snapshot holds is put in there, and what is refused is taken out.
            busy: whether somebody waits who comes first.
        """
        sources = []
        if self.file is not None:
            sources.append(file_source("--prewarm-file", self.file))
        if self.snapshot is not None:
            sources.append(file_source("--prewarm-snapshot", self.snapshot, recent=recent, may_be_missing=True))
        if self.pods and client is not None:
            sources.append(_pods(client, executor))
        return Prewarming(executor.verify, sources, settings=self.settings, busy=busy, refused=recent.forget)


def _pods(client: AsyncClient, executor: Executor) -> Source:
    from provider.configuration.pods import running_images  # a quarter second, for those in need

    async def keys() -> AsyncGenerator[str, None]:
        async with aclosing(running_images(client)) as found:
            async for namespace, image in found:
                own = executor.snapshot is not None and namespace in executor.snapshot.scopes
                # A namespace with a configuration of its own is asked about by its name (multi-tenancy-template.yaml).
                yield f"[{namespace}]{image}" if own and namespace else image

    return Source("--prewarm-pods", keys)


def prewarm_options(command: C) -> C:
    """--prewarm-*."""
    for decorator in reversed(
        (
            option(
                "--prewarm-file",
                section=SECTION,
                type=_PATH,
                metavar="FILE",
                help="List of images to verify after the start, one a line, `#` begins a comment. At most 10,000 lines,"
                " 2 MiB, 2,000 images.",
            ),
            option(
                "--prewarm-pods",
                section=SECTION,
                is_flag=True,
                help="With --cluster: verify the images of the running pods after the start. Needs the right to list"
                " pods.",
            ),
            option(
                "--prewarm-snapshot",
                section=SECTION,
                type=_PATH,
                metavar="FILE",
                help="Keep a list of the images last admitted in this file, and verify those in it after the start. No"
                " verdict is in it.",
            ),
            option(
                "--prewarm-concurrency",
                section=SECTION,
                type=click.IntRange(1, 64),
                default=PrewarmSettings().concurrency,
                help="Images that are verified at once to that end.",
            ),
            option(
                "--prewarm-wait-seconds",
                section=SECTION,
                type=NumberRange(min=0.0, max=MAX_WAIT_SECONDS),
                default=0.0,
                help="Seconds for which readiness (/readyz) waits for that at most, from when a good configuration is"
                " in use.",
            ),
        )
    ):
        command = decorator(command)
    return command


def prewarm_flags(
    *,
    cluster: bool,
    prewarm_file: Path | None,
    prewarm_pods: bool,
    prewarm_snapshot: Path | None,
    prewarm_concurrency: int,
    prewarm_wait_seconds: float,
) -> PrewarmFlags | None:
    """What the options say; None when there is nothing to begin with.

    Raises:
        UsageError: --prewarm-pods without --cluster, or --prewarm-wait-seconds without a list.
    """
    if prewarm_pods and not cluster:
        raise UsageError("USAGE", "--prewarm-pods has a meaning with --cluster only", expected="--prewarm-file")
    if prewarm_file is None and prewarm_snapshot is None and not prewarm_pods:
        if prewarm_wait_seconds:
            raise UsageError(
                "USAGE",
                "--prewarm-wait-seconds has nothing to wait for",
                expected="--prewarm-file, --prewarm-pods or --prewarm-snapshot beside it",
            )
        return None
    settings = PrewarmSettings(concurrency=prewarm_concurrency, wait_seconds=prewarm_wait_seconds)
    return PrewarmFlags(prewarm_file, prewarm_pods, prewarm_snapshot, settings)
