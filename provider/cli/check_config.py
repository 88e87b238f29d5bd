"""`countersign check-config`: every fault of a configuration, before a cluster finds it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from provider.cli import EXIT_OK, EXIT_UNDECIDED, fail
from provider.cli.options import config_option, output_option
from provider.cli.running import executor_for
from provider.configuration.manifests import load
from provider.configuration.resources import ResourceSet
from provider.errors import ConfigurationError
from provider.executor import ExecutorSettings
from provider.telemetry import LogFormat, configure_logging


@click.command("check-config")
@config_option(required=True)
@output_option
def check_config(config: Path, output: str) -> int:
    """Check manifests: each fault with file, resource, key path and what was expected.

    Everything is checked that serve would do at start, up to loading certificates; registries are not asked.

    \b
    Exit codes: 0 good (there may be warnings), 2 faults.
    """
    configure_logging("error", LogFormat.TEXT)
    try:
        resources = asyncio.run(_build(config))
    except ConfigurationError as error:
        if output == "json":
            click.echo(json.dumps({"good": False, "faults": [_as_data(fault) for fault in error.faults]}, indent=2))
        else:
            fail(error)
        return EXIT_UNDECIDED
    if output == "json":
        click.echo(json.dumps({"good": True, "warnings": [_as_data(fault) for fault in resources.warnings]}, indent=2))
        return EXIT_OK
    for resource in resources:
        click.echo(f"{resource.label}: {resource.type}")
    click.echo("good")
    return EXIT_OK


async def _build(config: Path) -> ResourceSet:
    async with executor_for(config, ExecutorSettings()):
        return load(config)


def _as_data(fault: object) -> dict[str, str]:
    return {name: str(getattr(fault, name)) for name in ("source", "resource", "path", "message")}
