"""Options that several commands share, and the one way to declare an option."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from provider.telemetry import LEVELS, LogFormat

C = TypeVar("C", bound=Callable[..., Any])


class NumberRange(click.FloatRange):
    """A number between limits; what is none ("nan") is not between any."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class HeaderName(click.types.StringParamType):
    """Name of an HTTP header field that says something about a request and nothing to the one who carries it."""

    name = "name"
    _TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")  # RFC 9110 section 5.6.2
    # Fields that requests to registries have a use for, or that change what a request is.
    _TAKEN = re.compile(r"(?i)accept.*|authorization|connection|content-.*|cookie|expect|host|proxy-.*|range|te|"
                        r"transfer-encoding|upgrade|user-agent")  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if self._TOKEN.fullmatch(value) is None:
            self.fail(f"{value!r} is no name of a header.", param, ctx)
        if self._TAKEN.fullmatch(value) is not None:
            self.fail(f"{value!r} is a header with a meaning of its own.", param, ctx)
        return str(value)


class Option(click.Option):
    """An option that stands under a heading of --help; see SectionedCommand."""

    def __init__(self, *arguments: Any, section: str | None = None, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


class SectionedCommand(click.Command):
    """A command with so many options that --help shows them under headings, in the order of their declaration."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                section = parameter.section if isinstance(parameter, Option) else None
                sections.setdefault(section or "Other options", []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


def option(name: str, *names: str, section: str | None = None, **attributes: Any) -> Callable[[C], C]:
    """A click option that `COUNTERSIGN_<NAME>` sets too, with the variable shown in --help."""
    attributes.setdefault("envvar", "COUNTERSIGN_" + name.removeprefix("--").replace("-", "_").upper())
    return click.option(name, *names, show_envvar=True, cls=Option, section=section, **attributes)


def config_option(*, required: bool, section: str | None = None) -> Callable[[C], C]:
    """--config."""
    return option(
        "--config",
        "-c",
        section=section,
        type=click.Path(path_type=Path),
        required=required,
        metavar="PATH",
        help="File or folder of manifests: Store, Verifier, KeyManagementProvider, Policy (config.ratify.deislabs.io).",
    )


def log_options(*, level: str, section: str | None = None) -> Callable[[C], C]:
    """--log-level and --log-format."""

    def decorate(command: C) -> C:
        for decorator in (
            option(
                "--log-format",
                section=section,
                type=click.Choice([log_format.value for log_format in LogFormat]),
                default=LogFormat.JSON.value,
                help="How log lines look on standard error.",
            ),
            option(
                "--log-level",
                section=section,
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
