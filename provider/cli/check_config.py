"""`countersign check-config`: every fault of a configuration, before a cluster finds it.

    countersign check-config --config DIR                    manifests, as `serve --config` would use them here
    helm template ... | countersign check-config -           resources as a cluster would be given them

Rules: what comes from standard input is judged as in a cluster: paths must be absolute, files and key services are
those of the pods and are not looked at, and whatever else a chart renders is passed over.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from provider.cli import EXIT_OK, EXIT_UNDECIDED, fail
from provider.cli.options import config_option, output_option
from provider.cli.running import executor_for
from provider.configuration.consistency import check_set
from provider.configuration.documents import Findings, Place, read_document
from provider.configuration.manifests import load
from provider.configuration.resources import Resource, ResourceSet, assemble_set
from provider.configuration.strict_yaml import MAX_BYTES, load_documents
from provider.errors import ConfigurationError, Fault, UsageError
from provider.executor import ExecutorSettings
from provider.telemetry import LogFormat, configure_logging

STDIN: Final = Path("-")
SOURCE: Final = "standard input"
_FOREIGN: Final = "is ignored: it is of group "


@click.command("check-config")
@click.argument("path", type=click.Path(path_type=Path, allow_dash=True), required=False)
@config_option(required=False)
@output_option
def check_config(path: Path | None, config: Path | None, output: str) -> int:
    """Check manifests: each fault with file, resource, key path and what was expected.

    PATH (or --config) is a file or folder; everything is checked that serve would do at start, up to loading
    certificates. `-` is standard input, checked as resources of a cluster: objects of other kinds are passed over, and
    files and key services, which are those of the pods, are not looked at. Registries are not asked.

    \b
    Examples:
      countersign check-config --config /etc/countersign
      helm template ratify charts/countersign --values values.yaml | countersign check-config -

    \b
    Exit codes: 0 good (there may be warnings), 2 faults.
    """
    if path is not None and click.get_current_context().get_parameter_source("config") is ParameterSource.ENVIRONMENT:
        config = None  # what is said here goes before the variable of somewhere else
    if (path is None) == (config is None):
        raise UsageError("USAGE", "one place to read from is needed", expected="PATH, --config PATH, or - (stdin)")
    configure_logging("error", LogFormat.TEXT)
    source = path or config
    assert source is not None  # noqa: S101 - one of the two is given
    try:
        resources = (
            read_cluster(sys.stdin.buffer.read(MAX_BYTES + 1)) if source == STDIN else asyncio.run(_build(source))
        )
    except ConfigurationError as error:
        if output == "json":
            click.echo(json.dumps({"good": False, "faults": [_as_data(fault) for fault in error.faults]}, indent=2))
        else:
            fail(error)
        return EXIT_UNDECIDED
    if output == "json":
        click.echo(json.dumps({"good": True, "warnings": [_as_data(fault) for fault in resources.warnings]}, indent=2))
        return EXIT_OK
    if source == STDIN:  # else they were told when the resources were put to use
        for warning in resources.warnings:
            click.echo(f"warning: {warning}", err=True)
    for resource in resources:
        click.echo(f"{resource.label}: {resource.type}")
    click.echo("good")
    return EXIT_OK


def read_cluster(data: bytes) -> ResourceSet:
    """Read resources as a cluster would be given them. A pure function.

    Args:
        data: YAML of any objects, untrusted; those of other groups are passed over.

    Raises:
        ConfigurationError: CONFIG_INVALID, with every fault found.
    """
    findings = Findings()
    if not data.strip():  # what was to write it has failed, and has said why
        empty = Fault(SOURCE, "", "", "there is nothing to read: standard input is empty")
        raise ConfigurationError("CONFIG_INVALID", str(empty), faults=(empty,))
    documents, problems = load_documents(data)
    for problem in problems:
        message = f"line {problem.line}: {problem.message}" if problem.line else problem.message
        findings.faults.append(Fault(f"{SOURCE}#{problem.document}", "", problem.path, message))
    resources: list[Resource] = []
    for document in documents:
        resources += read_document(document.value, Place(f"{SOURCE}#{document.number}"), findings)
    if not problems:  # what a resource refers to may be in what could not be read
        check_set(assemble_set(resources), findings)
    if findings.faults:
        more = f" (and {len(findings.faults) - 1} more)" if len(findings.faults) > 1 else ""
        raise ConfigurationError("CONFIG_INVALID", f"{findings.faults[0]}{more}", faults=tuple(findings.faults))
    return assemble_set(resources, warnings=(one for one in findings.warnings if not _is_foreign(one)))


def _is_foreign(warning: Fault) -> bool:
    """It says that an object is none of ours, and nothing that one might have meant otherwise."""
    return warning.message.startswith(_FOREIGN) and "although" not in warning.message


async def _build(config: Path) -> ResourceSet:
    async with executor_for(config, ExecutorSettings()):
        return load(config)


def _as_data(fault: object) -> dict[str, str]:
    return {name: str(getattr(fault, name)) for name in ("source", "resource", "path", "message")}
