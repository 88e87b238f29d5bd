"""Who hears everything that is logged, and sees every error, to find secrets where they must not be (attack N11).

with witness() as heard:
    ...
    heard.see(caught.value)
heard.check(azure.secrets)
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import structlog

from provider.telemetry import LogFormat, configure_logging

LEAST = 8  # characters of a secret; shorter ones are found by chance


@dataclass
class Witness:
    """What was said. To be made by `witness`."""

    log: io.StringIO = field(default_factory=io.StringIO)
    _seen: list[str] = field(default_factory=list)

    def see(self, *things: object) -> None:
        """Note how things look to people: their text, their repr, and of an exception all that led to it."""
        for thing in things:
            self._seen += [str(thing), repr(thing)]
            if isinstance(thing, BaseException):
                self._seen.append("".join(traceback.format_exception(thing)))
                self._seen.append(repr(vars(thing)))

    def check(self, secrets: Iterable[str]) -> None:
        """Fail when one of the secrets was said, or its signature or payload alone."""
        said = self.log.getvalue() + "\n".join(self._seen)
        parts = {part for secret in secrets for part in (secret, *secret.split(".")[1:]) if len(part) >= LEAST}
        assert parts, "there were no secrets to look for"
        assert [part for part in parts if part in said] == []


@contextlib.contextmanager
def witness() -> Iterator[Witness]:
    """Listen to every logger at its most talkative."""
    heard = Witness()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("debug", LogFormat.JSON, heard.log)
    structlog.configure(cache_logger_on_first_use=False)  # or loggers would go on talking to this witness
    root.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stderr(heard.log), contextlib.redirect_stdout(heard.log):
            yield heard
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
