"""The command line: `countersign COMMAND`. One file a command; this one holds what they share.

Rules:
- Exit codes: 0 verified or done, 1 refused or a demo that went wrong, 2 could not decide, bad configuration or bad
  usage, 130 interrupted, 143 terminated (serve ends with 0: it is meant to be).
- Results go to standard output, everything else to standard error. Colour only on a terminal, never in a pipe.
- A command's modules are imported when it runs, so that `--help` is quick.
- Every option can be set by an environment variable `COUNTERSIGN_<OPTION>`, and no option repeats what a resource says.

What does not belong here: decisions. A command reads options, calls the floors below, prints.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from provider import __version__
from provider.errors import ConfigurationError, CountersignError, Refused

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_UNDECIDED: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143

# Where each command is, and what the overview says of it without importing it.
_COMMANDS: Final = {
    "serve": ("provider.cli.serve:serve", "Answer Gatekeeper over TLS."),
    "verify": ("provider.cli.verify:verify", "Verify images as admission would, and say why."),
    "inspect": ("provider.cli.inspect:inspect", "Show what is attached to an image, decoded and not trusted."),
    "check-config": ("provider.cli.check_config:check_config", "Check manifests: every fault with its place."),
    "apply-crds": (
        "provider.cli.apply_crds:apply_crds",
        "Bring the custom resource definitions of a cluster up to date.",
    ),
    "demo": ("provider.cli.demo:demo", "Show who is admitted and who is denied, on an embedded registry."),
    "version": ("provider.cli.version:version", "Print the versions that matter."),
}


class _Commands(click.Group):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target[0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above names commands
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    epilog="Documentation: docs/getting-started.md, docs/operations.md, docs/errors.md.",
)
@click.version_option(__version__, prog_name="countersign", message="%(prog)s %(version)s")
def commands() -> None:
    """Admit only container images signed by someone you trust.

    Countersign is a Gatekeeper external data provider. `serve` answers Gatekeeper; `verify`, `inspect` and
    `check-config` do the same work on a laptop or in CI; `demo` shows all of it on an embedded registry.
    """


def fail(error: CountersignError) -> None:
    """Say what is wrong on standard error, every fault on a line of its own, and what to do."""
    print(f"countersign: {error}", file=sys.stderr)
    faults = error.faults if isinstance(error, ConfigurationError) else ()
    for fault in faults:
        if str(fault) != error.reason:
            print(f"  {fault}", file=sys.stderr)
    print(f"  {error.remediation}", file=sys.stderr)


def main() -> None:
    """Run the command line; the console script. Does not return."""
    try:
        code = commands.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_UNDECIDED)
    except (click.Abort, KeyboardInterrupt):
        print("countersign: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except CountersignError as error:
        fail(error)
        sys.exit(EXIT_REFUSED if isinstance(error, Refused) else EXIT_UNDECIDED)
    sys.exit(code if isinstance(code, int) else EXIT_OK)
