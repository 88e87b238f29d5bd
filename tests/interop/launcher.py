"""Runs `countersign` many times quickly: imports it once, then forks a process for each run.

    python -m tests.interop.launcher < requests

Rules:
- A request is a line of JSON, `{"arguments": [...], "stdout": FILE, "stderr": FILE}`; the answer is a line with the
  exit code. Closing standard input ends it.
- Each run is a process of its own that starts in the command's entry point with its own arguments, output files and
  exit code, as from a shell; only the second that the imports take is spared. No thread runs when it forks.

What does not belong here: anything about what is run; countersign.py writes the requests.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import provider.cli.verify  # noqa: F401 - so that each run finds it imported
from provider.cli import main

BROKEN = 70  # exit code of a run that ended in an exception, as sysexits.h has it


def run(request: Mapping[str, Any]) -> int:
    """Run the command in a child process; its exit code, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        os._exit(become(request))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def become(request: Mapping[str, Any]) -> int:
    """Be the command."""
    code: Any = BROKEN
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["countersign", *request["arguments"]]
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else BROKEN


if __name__ == "__main__":
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)
