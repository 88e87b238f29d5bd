"""`countersign verify`: the decision that admission would take, without a cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from provider.cli import EXIT_OK, EXIT_REFUSED, EXIT_UNDECIDED
from provider.cli.options import config_option, log_options, option, output_option
from provider.cli.rendering import console, decision_of, failure_tree, progress, verdict_tree
from provider.cli.running import executor_for
from provider.errors import CountersignError
from provider.executor import Executor, ExecutorSettings, RenderedVerdict
from provider.telemetry import LogFormat, configure_logging


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@config_option(required=True)
@output_option
@option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=60.0,
    metavar="SECONDS",
    help="The most that one image may take.",
)
@log_options(level="warning")
def verify(images: Sequence[str], config: Path, output: str, timeout: float, log_level: str, log_format: str) -> int:
    """Verify images as admission would, and say why.

    IMAGE is a reference such as registry.example.com/team/app:1.4.2, or [namespace]reference to decide as for a
    namespace.

    \b
    Exit codes: 0 all verified; 1 some refused; 2 some could not be decided, or the configuration or usage is wrong.
    """
    configure_logging(log_level, LogFormat(log_format))
    outcomes = asyncio.run(_verify(images, config, timeout))
    if output == "json":
        click.echo(json.dumps({"results": [_as_data(image, outcome) for image, outcome in outcomes]}, indent=2))
    else:
        out = console()
        for image, outcome in outcomes:
            out.print(
                failure_tree(image, outcome) if isinstance(outcome, CountersignError) else verdict_tree(image, outcome)
            )
    return _exit_code([outcome for _, outcome in outcomes])


_Outcome = RenderedVerdict | CountersignError


async def _verify(images: Sequence[str], config: Path, seconds: float) -> list[tuple[str, _Outcome]]:
    settings = ExecutorSettings(verification_timeout_seconds=seconds)
    async with executor_for(config, settings) as executor:
        with progress(f"verifying {len(images)} image{'s' if len(images) > 1 else ''}"):
            return list(zip(images, await asyncio.gather(*(_decide(executor, image) for image in images)), strict=True))


async def _decide(executor: Executor, image: str) -> _Outcome:
    try:
        return await executor.verify(image)
    except CountersignError as error:
        return error


def _as_data(image: str, outcome: _Outcome) -> Mapping[str, Any]:
    """The value that Gatekeeper would get, with the image; for an undecided one its error."""
    if isinstance(outcome, CountersignError):
        error = {"code": outcome.code, "reason": outcome.detail, "remediation": outcome.remediation}
        return {"image": image, "decision": decision_of(outcome), "error": error}
    decision = "verified" if outcome.is_success else "refused"
    value = json.loads(b"{" + outcome.fragment + b"}")
    return {"image": image, "decision": decision, "reference": str(outcome.reference), **value}


def _exit_code(outcomes: Sequence[_Outcome]) -> int:
    if any(isinstance(outcome, CountersignError) for outcome in outcomes):
        return EXIT_UNDECIDED
    return (
        EXIT_OK
        if all(outcome.is_success for outcome in outcomes if not isinstance(outcome, CountersignError))
        else EXIT_REFUSED
    )
