"""`countersign demo`: the whole product at work on an embedded registry, as a table that anyone can check."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from provider.cli import EXIT_OK, EXIT_REFUSED, EXIT_TERMINATED
from provider.cli.options import log_options, output_option
from provider.cli.rendering import console, line
from provider.demo.scenario import Demo, DemoSettings, Row, open_demo
from provider.telemetry import LogFormat, configure_logging

_PORT = click.IntRange(0, 65535)


@click.command()
@click.option("--serve", is_flag=True, help="Keep registry and server running afterwards and print commands to try.")
@click.option(
    "--registry-port",
    type=_PORT,
    default=0,
    show_default=False,
    help="Port of the embedded registry.  [default: a free one]",
)
@click.option(
    "--server-port",
    type=_PORT,
    default=0,
    show_default=False,
    help="Port of the verification server.  [default: a free one]",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for manifests and throw-away keys, made and left behind.  [default: a temporary one]",
)
@output_option
@log_options(level="error")
def demo(
    serve: bool,
    registry_port: int,
    server_port: int,
    folder: Path | None,
    output: str,
    log_level: str,
    log_format: str,
) -> int:
    """Show who is admitted and who is denied, and why.

    Starts an OCI registry with signed, unsigned, untrusted, expired, time-stamped, revoked and tampered images, the
    real TLS server on manifests as a user would write them, sends what Gatekeeper sends, and evaluates the shipped
    ConstraintTemplate on pod manifests. Everything stays on this machine's loopback and vanishes at the end.

    \b
    Exit codes: 0 everything came out as it should, 1 something did not.
    """
    configure_logging(log_level, LogFormat(log_format))
    try:
        return asyncio.run(_demo(DemoSettings(registry_port, server_port, folder), output, serve=serve))
    except asyncio.CancelledError:  # SIGTERM: everything was cleaned up on the way here
        return EXIT_TERMINATED


async def _demo(settings: DemoSettings, output: str, *, serve: bool) -> int:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine that runs is a task's
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with open_demo(lambda step: click.echo(step, err=True), settings) as running:
        rows = [row async for row in running.rows()]
        if output == "json":
            click.echo(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2))
        else:
            _print(rows)
        wrong = [row for row in rows if not row.as_expected]
        for row in wrong:
            click.echo(f"not as it should be: pod {row.pod}, expected {row.expected or 'admission'}", err=True)
        if serve:
            await _keep_running(running)
        return EXIT_REFUSED if wrong else EXIT_OK


def _print(rows: Sequence[Row]) -> None:
    """The table, and beneath it the exact words that a user of kubectl reads."""
    out = console()
    table = Table(title="What becomes of each pod", title_justify="left", expand=False)
    for heading in ("pod", "Deny", "Audit", "why"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(
            Text(row.pod),
            Text("admitted", style="green") if row.admitted else Text("denied", style="red"),
            Text("compliant", style="green") if row.compliant else Text("non-compliant", style="yellow"),
            Text(row.why),
        )
    if not out.is_terminal:
        out.width = 160
    out.print(table)
    out.print()
    out.print(line("What kubectl says under Deny:"))
    for row in rows:
        out.print()
        out.print(line(f"$ kubectl apply -f {row.pod}.yaml"))
        for text in row.message.splitlines():
            out.print(line(text))
    good = sum(row.as_expected for row in rows)
    admitted = sum(row.admitted for row in rows)
    out.print()
    out.print(line(f"{len(rows)} pods: {admitted} admitted, {len(rows) - admitted} denied; {good} as they should be"))


async def _keep_running(running: Demo) -> None:
    """Print what to try, and wait for Ctrl-C."""
    click.echo("\nStill running; Ctrl-C ends it. To try:", err=True)
    for command in running.commands():
        click.echo(f"  {command}", err=True)
    await asyncio.Event().wait()
