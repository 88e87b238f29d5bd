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
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from provider import strict_json
from provider.configuration.consistency import check_set
from provider.configuration.documents import Findings, Place, read_document
from provider.configuration.resources import PROVIDER_NAMESPACE, Resource, ResourceSet, assemble_set
from provider.configuration.strict_yaml import MAX_BYTES, Document, Problem, load_documents
from provider.errors import ConfigurationError, Fault
from provider.key_management.folders import current_generation, read_file, reason

MAX_FILES: Final = 1000  # manifests of one folder
MAX_TOTAL_BYTES: Final = 32 * 1024 * 1024  # of one folder
MAX_TOLD: Final = 1000  # faults and warnings that are kept of one set; nobody reads more
ENDINGS: Final = frozenset({".yaml", ".yml", ".json"})
POLL_SECONDS: Final = 2.0  # a look costs well under a millisecond; kubelet swaps a volume within about a minute

_KUSTOMIZATION: Final = frozenset({"kustomization.yaml", "kustomization.yml"})  # another tool's, often without a group


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
    poll_seconds: float = POLL_SECONDS,
) -> AsyncGenerator[ResourceSet, ConfigurationError | None]:
    """Yield the good sets of a file or folder, the first as soon as there is one, then each that differs.

    Whoever sends the ConfigurationError back that a set led to (`asend`) has it reported.

    Args:
        path: a manifest, or a folder of them.
        report: told each bad content once, with every fault.
        home: the provider's own namespace.
        poll_seconds: time between two looks. Polling, because links that Kubernetes swaps and network file systems
            raise no dependable events.
    """
    good = judged = seen = ""
    while True:
        look = await asyncio.to_thread(_look, path)
        # The first look counts at once: at the start there is nothing in force that could be better.
        if look.digest != judged and (look.digest == seen or not judged):
            judged = look.digest
            try:
                resources = await asyncio.to_thread(look.resources, home)
            except ConfigurationError as error:
                report(error)
            else:
                if resources.digest != good:
                    good = resources.digest
                    outcome = yield resources
                    if outcome is not None:
                        report(outcome)
        seen = look.digest
        await asyncio.sleep(poll_seconds)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the files saw: their content, or why it could not be had."""

    digest: str
    manifests: tuple[Manifest, ...] = ()
    error: ConfigurationError | None = None

    def resources(self, home: str) -> ResourceSet:
        if self.error is not None:
            raise self.error
        return read_set(self.manifests, home=home)


def _look(path: Path) -> _Look:
    try:
        manifests = read_manifests(path)
    except ConfigurationError as error:
        return _Look("; ".join(map(str, error.faults)), error=error)
    return _Look(digest_of(manifests), manifests)


def read_manifests(path: Path) -> tuple[Manifest, ...]:
    """Read the files, not yet what is in them.

    Raises:
        ConfigurationError: CONFIG_INVALID: a file or the folder cannot be read, or holds no manifest, or too much.
    """
    faults: list[Fault] = []
    manifests: list[Manifest] = []
    size = 0
    try:
        folder, files = _files(path)
    except OSError as error:
        raise _invalid([Fault(str(path), "", "", f"cannot be read: {reason(error)}")]) from None
    for name, file in files:
        try:
            data = read_file(file, max_bytes=MAX_BYTES, follow_links=True)
        except OSError as error:
            faults.append(Fault(name, "", "", f"cannot be read: {reason(error)}"))
        else:
            manifests.append(Manifest(name, folder, data))
            size += len(data)
        if size > MAX_TOTAL_BYTES:
            raise _invalid([Fault(str(path), "", "", f"the manifests together have more than {MAX_TOTAL_BYTES} bytes")])
    if not files:
        faults.append(Fault(str(path), "", "", "holds no manifest (*.yaml, *.yml, *.json)"))
    if faults:
        raise _invalid(faults)
    return tuple(manifests)


def _files(path: Path) -> tuple[Path, list[tuple[str, Path]]]:
    """The folder where relative paths begin, and the files to read, each with the name that faults give it."""
    if not path.is_dir():
        return path.parent.absolute(), [(str(path), path)]
    entries = sorted(
        entry
        for entry in current_generation(path).iterdir()
        if entry.suffix in ENDINGS
        and not entry.name.startswith(".")
        and entry.name not in _KUSTOMIZATION
        and not entry.is_dir()
    )
    if len(entries) > MAX_FILES:
        raise OSError(f"more than {MAX_FILES} manifests")
    return path.absolute(), [(str(path / entry.name), entry) for entry in entries]


def digest_of(manifests: Iterable[Manifest]) -> str:
    """SHA-256 of names and contents, in hex."""
    digest = hashlib.sha256()
    for manifest in manifests:
        for part in (manifest.name.encode("utf-8", "surrogateescape"), manifest.data):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()


def read_set(manifests: Sequence[Manifest], *, home: str = PROVIDER_NAMESPACE) -> ResourceSet:
    """Read what is in the files, and check it as a whole. A pure function.

    Args:
        manifests: the files.
        home: the provider's own namespace.

    Raises:
        ConfigurationError: CONFIG_INVALID, with every fault found.
    """
    findings = Findings()
    resources: list[Resource] = []
    legible = True
    for manifest in manifests:
        documents, problems = _documents(manifest)
        for problem in problems:
            source = f"{manifest.name}#{problem.document}"
            message = f"line {problem.line}: {problem.message}" if problem.line else problem.message
            findings.faults.append(Fault(source, "", problem.path, message))
        legible = legible and not problems
        for document in documents:
            place = Place(f"{manifest.name}#{document.number}", manifest.folder)
            resources.extend(read_document(document.value, place, findings, home=home))
    if legible:  # what a resource refers to may be in what could not be read
        check_set(assemble_set(resources, home=home), findings)
    if findings.faults:
        raise _invalid(findings.faults)
    return assemble_set(resources, home=home, warnings=findings.warnings[:MAX_TOLD], digest=digest_of(manifests))


def _documents(manifest: Manifest) -> tuple[tuple[Document, ...], tuple[Problem, ...]]:
    if not manifest.name.endswith(".json"):
        return load_documents(manifest.data)
    try:
        value = strict_json.loads(manifest.data, max_bytes=MAX_BYTES)
    except strict_json.MalformedJSONError as error:
        return (), (Problem(1, 0, "", f"is not strict JSON: {error}"),)
    return (Document(1, 1, value),), ()


def _invalid(faults: Sequence[Fault]) -> ConfigurationError:
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return ConfigurationError("CONFIG_INVALID", f"{faults[0]}{more}", faults=faults[:MAX_TOLD])
