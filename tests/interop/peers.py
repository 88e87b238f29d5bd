"""Find the real programs, run them, and start those that are servers.

Rules:
- A program is named by its environment variable (`COUNTERSIGN_NOTATION=/path`), else taken from `.peers/bin`
  (`make peers` fills it), else from the PATH. A variable that names nothing runnable is a mistake of the person who set
  it, so it fails; a program that is nowhere is a skip with the reason.
- Servers listen on 127.0.0.1 only, keep what they store in memory or in the test's folder, and end with the fixture.
- Every call has a time limit, and its words are in the failure when it fails.

What does not belong here: keys and certificates (authorities.py), images (registries.py), expectations (the tests).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
NOT_INSTALLABLE = frozenset({"zot"})  # tests/interop/README.md says why
CALL_SECONDS = 60.0  # one call; the slowest, making an RSA-4096 key, takes some seconds on a busy machine
Command = Sequence[str | Path]
START_SECONDS = 30.0  # a server's first words
STOP_SECONDS = 5.0

# program -> the variable that names one
VARIABLES = {
    "notation": "COUNTERSIGN_NOTATION",
    "zot": "COUNTERSIGN_ZOT",
    "docker-registry": "COUNTERSIGN_REGISTRY",
    "ggcr-registry": "COUNTERSIGN_GGCR",
    "openssl": "COUNTERSIGN_OPENSSL",
    "oras": "COUNTERSIGN_ORAS",
    "opa": "COUNTERSIGN_OPA",
    "gator": "COUNTERSIGN_GATOR",
    "helm": "COUNTERSIGN_HELM",
}


def find(name: str) -> Path:
    """The program to run.

    Raises:
        pytest.skip.Exception: it is not on this machine.
        pytest.fail.Exception: its variable names something that cannot be run.
    """
    variable = VARIABLES[name]
    named = os.environ.get(variable)
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            pytest.fail(f"{variable} names {named!r}, which cannot be run", pytrace=False)
        return Path(named)
    built = CLONE / ".peers" / "bin" / name
    if os.access(built, os.X_OK):
        return built
    found = shutil.which(name)
    if found is None:
        way = "" if name in NOT_INSTALLABLE else "run `make peers`, or "
        pytest.skip(f"no {name} here: {way}name one with {variable}")
    return Path(found)


def run(
    command: Command,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, whatever its exit code.

    Args:
        command: program and arguments.
        env: what is added to the environment.
        cwd: folder to run in.
        stdin: what it reads; nothing by default.

    Raises:
        subprocess.TimeoutExpired: it took longer than CALL_SECONDS.
    """
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        input=stdin if stdin is not None else b"",
        capture_output=True,
        timeout=CALL_SECONDS,
        check=False,
    )


def must(
    command: Command,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
) -> bytes:
    """Run a program that has to succeed; its standard output.

    Raises:
        AssertionError: with the program's own words.
    """
    done = run(command, env=env, cwd=cwd, stdin=stdin)
    said = (done.stderr + b"\n" + done.stdout).decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(str(word) for word in command)} exited {done.returncode}: {said}"
    return done.stdout


@contextlib.contextmanager
def serving(command: Command, *, address: re.Pattern[str], env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server for the time of a `with` block and give the address it says it listens on.

    The server chooses a free port itself, so two test runs never race for one.

    Args:
        command: program and arguments.
        address: matches a line of its output; group 1 is `host:port`.
        env: what is added to the environment.

    Raises:
        AssertionError: it ended, or did not name its address within START_SECONDS.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines: list[str] = []
    found: list[str] = []
    heard = threading.Event()

    def listen() -> None:
        # Reads to the end, so that a talkative server never blocks on a full pipe.
        assert process.stdout is not None
        for line in process.stdout:
            if found:
                continue
            lines.append(line)
            match = address.search(line)
            if match:
                found.append(match.group(1))
                heard.set()
        heard.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        heard.wait(START_SECONDS)
        assert found, f"{command[0]} named no address: {''.join(lines)[-2000:]}"
        yield found[0]
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        listener.join(STOP_SECONDS)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def wait_until(moment: float) -> None:
    """Sleep until a moment of the wall clock (seconds since 1970), for certificates that have to run out."""
    while (left := moment - time.time()) > 0:
        time.sleep(min(left, 1.0))
