"""Options that several commands share, and the one way to declare an option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from provider.telemetry import LEVELS, LogFormat

C = TypeVar("C", bound=Callable[..., Any])


def option(name: str, *names: str, **attributes: Any) -> Callable[[C], C]:
    """A click option that `COUNTERSIGN_<NAME>` sets too, with the variable shown in --help."""
    attributes.setdefault("envvar", "COUNTERSIGN_" + name.removeprefix("--").replace("-", "_").upper())
    return click.option(name, *names, show_envvar=True, **attributes)


def config_option(*, required: bool) -> Callable[[C], C]:
    """--config."""
    return option(
        "--config",
        "-c",
        type=click.Path(path_type=Path),
        required=required,
        metavar="PATH",
        help="File or folder of manifests: Store, Verifier, KeyManagementProvider, Policy (config.ratify.deislabs.io).",
    )


def log_options(*, level: str) -> Callable[[C], C]:
    """--log-level and --log-format."""

    def decorate(command: C) -> C:
        for decorator in (
            option(
                "--log-format",
                type=click.Choice([log_format.value for log_format in LogFormat]),
                default=LogFormat.JSON.value,
                help="How log lines look on standard error.",
            ),
            option(
                "--log-level",
                type=click.Choice([*LEVELS, "warn"]),
                default=level,
                help="The least important level logged.",
            ),
        ):
            command = decorator(command)
        return command

    return decorate


output_option = click.option(
    "--output", "-o", type=click.Choice(["text", "json"]), default="text", help="A tree for people, or data."
)
