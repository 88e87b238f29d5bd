"""`countersign apply-crds`: the custom resource definitions of a folder, put into a cluster or brought up to date.

Helm installs the definitions of a chart once and never again; the chart's Job upgradeCRDs runs this before each
upgrade, with the provider's own image.

Rules: server-side apply, whatever another tool says of the same fields; nothing is ever deleted. Only definitions of
our own group are applied, and none before all files were read. It ends well when every definition is in force:
resources that are created next are accepted. Running it again changes nothing.

What does not belong here: what is in the definitions (provider/configuration/schemas.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from provider.cli import EXIT_OK
from provider.cli.options import option
from provider.configuration.manifests import read_manifests
from provider.configuration.resources import GROUP
from provider.configuration.strict_yaml import load_documents
from provider.errors import ConfigurationError, Fault, UsageError, printable

DEFINITION: Final = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")
POLL_SECONDS: Final = 0.2  # between two looks at a definition that is not in force yet
MAX_REASON: Final = 2000  # characters of an API server's words; a refused schema is explained at length
RIGHTS: Final = (
    "Give the service account get, create and patch on customresourcedefinitions, as the chart's Job has them."
)

_GOOD: Final = ("NamesAccepted", "Established")
_BAD: Final = ("NonStructuralSchema", "Terminating")


@click.command("apply-crds")
@click.argument("folder", type=click.Path(path_type=Path), metavar="PATH")
@option(
    "--timeout",
    envvar="COUNTERSIGN_APPLY_TIMEOUT",
    type=click.FloatRange(min=1.0),
    default=120.0,
    help="Seconds for everything, until every definition is in force.",
)
def apply_crds(folder: Path, timeout: float) -> int:
    """Apply the custom resource definitions of a file or folder to the cluster of the pod, or of KUBECONFIG.

    Definitions that are there already are brought up to date; nothing is deleted.

    \b
    Exit codes: 0 all in force, 2 a definition is wrong, or the cluster refused it or did not answer.
    """
    definitions = read_definitions(folder)
    asyncio.run(_apply_in_time(definitions, timeout))
    click.echo(f"{len(definitions)} definitions are in force")
    return EXIT_OK


def read_definitions(path: Path) -> dict[str, dict[str, Any]]:
    """The definitions of a file or folder, by name.

    Raises:
        ConfigurationError: CONFIG_INVALID with every fault: a file cannot be read, or holds anything else than
            definitions of our group.
    """
    definitions: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    for manifest in read_manifests(path):
        documents, problems = load_documents(manifest.data)
        faults += (Fault(manifest.name, "", one.path, f"line {one.line}: {one.message}") for one in problems)
        for document in documents:
            source = f"{manifest.name}#{document.number}"
            if document.value is None:
                continue
            name = _name(document.value)
            if name is None:
                faults.append(Fault(source, "", "", f"is no CustomResourceDefinition of {GROUP}"))
            elif name in definitions:
                faults.append(Fault(source, name, "metadata.name", "stands here a second time"))
            else:
                definitions[name] = document.value
    if not faults and not definitions:
        faults.append(Fault(str(path), "", "", "holds no CustomResourceDefinition"))
    if faults:
        raise ConfigurationError("CONFIG_INVALID", str(faults[0]), faults=tuple(faults))
    return definitions


def _name(value: Any) -> str | None:
    """The name of a definition of our group, or None for anything else."""
    if not isinstance(value, dict) or (value.get("apiVersion"), value.get("kind")) != DEFINITION:
        return None
    metadata, spec = value.get("metadata"), value.get("spec")
    if not isinstance(metadata, dict) or not isinstance(spec, dict) or spec.get("group") != GROUP:
        return None
    name = metadata.get("name")
    return name if isinstance(name, str) and name.endswith(f".{GROUP}") else None


async def _apply_in_time(definitions: dict[str, dict[str, Any]], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await _apply(definitions)
    except TimeoutError:
        raise UsageError(
            "USAGE",
            f"the definitions were not in force within {seconds:g} s",
            remediation=("Look at the conditions in `kubectl get crd -o yaml`, and at the API server."),
        ) from None


async def _apply(definitions: dict[str, dict[str, Any]]) -> None:
    """Apply each, then wait until each is in force.

    Raises:
        UsageError: there is no way to a cluster, or it refused.
    """
    from lightkube import AsyncClient
    from lightkube.core.exceptions import ConfigError
    from lightkube.generic_resource import create_global_resource

    from provider.configuration.statuses import FIELD_MANAGER

    logging.getLogger("httpx2").setLevel(logging.WARNING)
    resource: Any = create_global_resource(
        "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"
    )
    try:
        client = AsyncClient(field_manager=FIELD_MANAGER)
    except (ConfigError, OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        reason = str(error) if isinstance(error, ConfigError) else type(error).__name__
        raise UsageError(
            "USAGE",
            f"there is no way to a Kubernetes API server: {printable(reason)}",
            expected="a pod with a service account's token, or KUBECONFIG",
        ) from None
    try:
        for name, definition in definitions.items():
            before = await _look(client, resource, name)
            after = await _call(f"applying {name}", client.apply(resource(definition), name, force=True))
            click.echo(f"customresourcedefinition/{name} {_outcome(before, after)}")
        for name in definitions:
            await _wait(name, partial(_look, client, resource, name))
    finally:
        await client.close()


async def _look(client: Any, resource: Any, name: str) -> Any:
    """The definition as it is, or None."""
    return await _call(f"reading {name}", client.get(resource, name), absent_is_none=True)


async def _wait(name: str, look: Callable[[], Awaitable[Any]]) -> None:
    """Look at a definition until it is in force."""
    while not _is_in_force(name, await look()):  # noqa: ASYNC110 - the API server has no event for us
        await asyncio.sleep(POLL_SECONDS)


async def _call(what: str, call: Any, *, absent_is_none: bool = False) -> Any:
    """One call of the API; its failure in words."""
    import httpx2
    import msgspec
    from lightkube.core.exceptions import ApiError

    try:
        return await call
    except ApiError as error:
        if absent_is_none and error.status.code == 404:
            return None
        remediation = RIGHTS if error.status.code in (401, 403) else "Read what the API server says."
        reason = printable(error.status.message or "no reason given", MAX_REASON)
        raise UsageError("USAGE", f"{what}: the API server refused: {reason}", remediation=remediation) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, msgspec.MsgspecError, OSError, ValueError) as error:
        reason = printable(str(error) or type(error).__name__, MAX_REASON)
        raise UsageError(
            "USAGE",
            f"{what}: the API server did not answer: {reason}",
            remediation="Check that the API server can be reached, and try again.",
        ) from None


def _outcome(before: Any, after: Any) -> str:
    """What was done, by the generation that changes with the spec."""
    if before is None:
        return "created"
    return "unchanged" if before.metadata.generation == after.metadata.generation else "changed"


def _is_in_force(name: str, definition: Any) -> bool:
    """Whether the API server serves the kind.

    Raises:
        UsageError: it says why it never will.
    """
    if definition is None:
        raise UsageError(
            "USAGE", f"{name} was deleted meanwhile", remediation="Find out who deletes it, and try again."
        )
    conditions = dict(_conditions(definition))
    for kind in _BAD:
        status, message = conditions.get(kind, ("", ""))
        if status == "True":
            raise UsageError("USAGE", f"{name} is not in force, {kind}: {message}")
    status, message = conditions.get("NamesAccepted", ("", ""))
    if status == "False":
        raise UsageError(
            "USAGE",
            f"{name} is not in force: {message}",
            remediation="Delete the definition that has these names, if it is not needed.",
        )
    return all(conditions.get(kind, ("", ""))[0] == "True" for kind in _GOOD)


def _conditions(definition: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    for condition in (definition.status or {}).get("conditions") or ():
        yield (
            condition.get("type", ""),
            (condition.get("status", ""), printable(condition.get("message", ""), MAX_REASON)),
        )
