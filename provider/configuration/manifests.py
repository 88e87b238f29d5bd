"""Manifests: the custom resources as YAML or JSON files, read once or watched.

Rules:
- A folder is read whole: its *.yaml, *.yml and *.json in the order of their names, hidden files and folders inside not.
  A Kubernetes volume is read in one generation (key_management/folders.py).
- A set is good as a whole or not at all, and then every fault is told. While a folder is watched, the last good set
  stays in force until the next good one (attack N65).
- A change counts when two looks in a row see the same: a file that is being written is not read half.

What does not belong here: what documents mean (documents.py), the Kubernetes API (cluster.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from provider.configuration.resources import PROVIDER_NAMESPACE, ResourceSet
from provider.errors import ConfigurationError, Fault
from provider.key_management.folders import reason

MAX_FILES: Final = 1000  # manifests of one folder
MAX_TOTAL_BYTES: Final = 64 * 1024 * 1024  # of one folder
MAX_TOLD: Final = 1000  # faults and warnings that are kept of one set; nobody reads more
ENDINGS: Final = frozenset({".yaml", ".yml", ".json"})

_KUSTOMIZATION: Final = frozenset(
    {"kustomization.yaml", "kustomization.yml"}
)  # a tool's own file, often without a group


@dataclass(frozen=True, slots=True)
class Manifest:
    """One file.

    Attributes:
        name: as faults name it.
        folder: where relative paths in it begin.
        data: its bytes.
    """

    name: str
    folder: Path
    data: bytes


def load(path: Path, *, home: str = PROVIDER_NAMESPACE) -> ResourceSet:
    """Read the manifests of a file or folder.

    Args:
        path: a manifest, or a folder of them.
        home: the provider's own namespace.

    Raises:
        ConfigurationError: CONFIG_INVALID, with every fault found.
    """
    return read_set(read_manifests(path), home=home)


async def watch(
    path: Path,
    report: Callable[[ConfigurationError], None],
    *,
    home: str = PROVIDER_NAMESPACE,
    poll_seconds: float = 2.0,
) -> AsyncIterator[ResourceSet]:
    """Yield the good sets of a file or folder, the first as soon as there is one, then each that differs.

    Args:
        path: a manifest, or a folder of them.
        report: told each bad content once, with every fault.
        home: the provider's own namespace.
        poll_seconds: time between two looks. Polling, because links that Kubernetes swaps and network file systems raise
            no dependable events.
    """
    seen = settled = ""
    while True:
        try:
            manifests = await asyncio.to_thread(read_manifests, path)
            digest = digest_of(manifests)
        except ConfigurationError as error:
            manifests, digest, failure = (), f"unreadable: {error}", error
        else:
            failure = None
        # The first look counts at once: at the start there is nothing in force that could be better.
        if digest != settled and (digest == seen or not settled):
            settled = digest
            try:
                if failure is not None:
                    raise failure
                resources = await asyncio.to_thread(read_set, manifests, home=home)
            except ConfigurationError as error:
                report(error)
            else:
                yield resources
        seen = digest
        await asyncio.sleep(poll_seconds)


def read_manifests(path: Path) -> tuple[Manifest, ...]:
    """Read the files, not yet what is in them.

    Raises:
        ConfigurationError: CONFIG_INVALID: a file or the folder cannot be read, or holds no manifest.
    """
    faults: list[Fault] = []
    manifests: list[Manifest] = []
    size = 0
    try:
        files = tuple(_files(path))
    except OSError as error:
        raise _invalid([Fault(str(path), "", "", f"cannot be read: {reason(error)}")]) from None
    for name, file in files:
        try:
            manifest = Manifest(name, path if path.is_dir() else path.parent, _read(file))
        except OSError as error:
            faults.append(Fault(name, "", "", f"cannot be read: {reason(error)}"))
            continue
        manifests.append(manifest)
        size += len(manifest.data)
        if size > MAX_TOTAL_BYTES:
            raise _invalid([Fault(str(path), "", "", f"the manifests have more than {MAX_TOTAL_BYTES} bytes")])
    if not files:
        faults.append(Fault(str(path), "", "", "holds no manifest (*.yaml, *.yml, *.json)"))
    if len(files) > MAX_FILES:
        faults = [Fault(str(path), "", "", f"holds more than {MAX_FILES} manifests")]
    if faults:
        raise _invalid(faults)
    return tuple(manifests)
