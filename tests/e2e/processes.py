"""Servers as child processes: free ports, a log file each, readiness, and an end that is waited for.

Rules:
- Everything listens on 127.0.0.1. These servers cannot choose a port and say which, so free ones are chosen for them.
- A server that does not get ready, or ends early, fails with the last words of its log.
- No process outlives the tests: each is ended and waited for, and dies with its parent where `setpriv` is at hand.
- A process may see files of ours in the place of the machine's (`Mounts`), in a mount namespace of its own; nothing of
  the machine is changed.

What does not belong here: what is started (control_plane.py, rig.py, node.py).
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

ADDRESS: Final = "127.0.0.1"
START_SECONDS: Final = 60.0  # of any server; the API server takes 4 s alone and more on a busy machine
STOP_SECONDS: Final = 15.0  # from the polite signal to the other one; the API server drains for 3 to 5 s
LOOK_SECONDS: Final = 0.05  # between two looks at something that is waited for
LAST_WORDS: Final = 4000  # characters of a log that a failure shows
REQUEST_SECONDS: Final = 5.0  # one look at a health end point

# $1 $2 and so on to `--` are what is mounted and where, the rest is the command. A place below /run that is not there
# is made in an empty /run, so that the machine's stays as it is.
MOUNT: Final = """
set -e
while [ "$1" != -- ]; do
    if [ ! -e "$2" ]; then mount -t tmpfs none /run; mkdir -p "$2"; fi
    mount --bind "$1" "$2"; shift 2
done
shift
exec "$@"
"""
Mounts = Mapping[str, Path]  # by the place where each is seen


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((ADDRESS, 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what: str, ready: Callable[[], bool], *, seconds: float = START_SECONDS) -> None:
    """Look again and again until something is so.

    Raises:
        AssertionError: it was not within the time; `what` says what was waited for.
    """
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(LOOK_SECONDS)


def healthy(port: int, path: str, context: ssl.SSLContext | None = None, *, address: str = ADDRESS) -> bool:
    """A server on loopback answers 200."""
    connection = (
        http.client.HTTPConnection(address, port, timeout=REQUEST_SECONDS)
        if context is None
        else http.client.HTTPSConnection(address, port, timeout=REQUEST_SECONDS, context=context)
    )
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _mounted(mounts: Mounts) -> list[str]:
    """What a command begins with, to see files of ours; a user namespace gives the right to whoever is not root."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    where = [word for place, what in mounts.items() for word in (str(what), place)]
    return ["unshare", *user, "--mount", "sh", "-c", MOUNT, "sh", *where, "--"] if mounts else []


@functools.cache
def can_mount() -> bool:
    """Whether this machine lets a process have mounts of its own."""
    command = [*_mounted({"/etc/hosts": Path("/etc/hosts")}), "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=START_SECONDS, check=False).returncode == 0
    except OSError:
        return False


class Process:
    """One running server.

    Attributes:
        log: file that has everything it said.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        env: Mapping[str, str],
        mounts: Mounts | None = None,
        *,
        inherit: Iterable[str] | None = None,
    ) -> None:
        """Start it. Its words are added to the log, so a restarted server has one log.

        Args:
            name: for people.
            command: program and arguments.
            log: where its words go.
            env: what is added to the environment.
            mounts: files of ours that it sees.
            inherit: variables of our environment that it gets; all by default.
        """
        self.name = name
        self.log = log
        guard = shutil.which("setpriv")
        inherited = {each: os.environ[each] for each in os.environ if inherit is None or each in set(inherit)}
        prefix = [guard, "--pdeathsig", "KILL", "--"] if guard else []
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*_mounted(mounts or {}), *prefix, *(str(word) for word in command)],
                env={**inherited, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready.

        Raises:
            AssertionError: it ended or took too long; with its last words.
        """

        def ready_or_over() -> bool:
            return not self.running or ready()

        try:
            wait_for(f"{self.name} to be ready", ready_or_over)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_words()}") from None
        assert self.running, f"{self.name} ended with exit code {self._process.returncode}\n{self.last_words()}"

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-LAST_WORDS:]

    def freeze(self) -> None:
        """Make it hang: connections are accepted by the kernel and never answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        if self.running:
            self.thaw()
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until it ended by itself.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        self._process.wait(seconds)

    def stop(self) -> None:
        """End it and wait until it is gone, with its ports."""
        self.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
