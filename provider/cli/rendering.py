"""How verdicts and decoded signatures look to a person: trees of text, coloured on a terminal.

Rules: foreign text is data, never markup, and never more than one line. Words carry the meaning, colour repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from provider.errors import CountersignError, InvalidKey, printable
from provider.executor import RenderedVerdict
from provider.reports import VerifierReport

_STYLES = {
    "verified": "green",
    "refused": "red",
    "undecided": "yellow",
    "invalid": "red",
    "ok": "green",
    "failed": "red",
    "logged": "yellow",
}


def line(*parts: str) -> Text:
    """One line; a part that is a known word of outcome gets its colour."""
    text = Text()
    for number, part in enumerate(parts):
        if number:
            text.append(" ")
        text.append(printable(part), style=_STYLES.get(part.rstrip(":"), ""))
    return text


def verdict_tree(image: str, answer: RenderedVerdict) -> Tree:
    """A verdict: the image, each signature, each check."""
    verdict = answer.verdict
    tree = Tree(line("verified" if verdict.is_success else "refused", image))
    if str(answer.reference) != image:
        tree.add(line("reference", str(answer.reference)))
    if verdict.digest is not None:
        tree.add(line("digest", str(verdict.digest)))
    if not verdict.is_success:
        tree.add(line("code", verdict.code))
        tree.add(line("reason", verdict.reason))
    for report in verdict.reports:
        _add_report(tree, report)
    if not verdict.is_success and verdict.reports:
        tree.add(line("what to do:", verdict.reports[-1].remediation))
    return tree


def failure_tree(image: str, error: CountersignError) -> Tree:
    """A key that could not be decided, or is none."""
    tree = Tree(line(decision_of(error), image))
    tree.add(line("code", error.code))
    tree.add(line("reason", error.detail))
    tree.add(line("what to do:", error.remediation))
    return tree


def decision_of(error: CountersignError) -> str:
    """The word for what came of a key without a verdict."""
    return "invalid" if isinstance(error, InvalidKey) else "undecided"


def _add_report(tree: Tree, report: VerifierReport) -> None:
    outcome = "ok" if report.is_success else "failed"
    what = str(report.reference_digest) if report.reference_digest else report.message
    branch = tree.add(line(outcome, report.artifact_type or "artifact", what))
    if report.name:
        branch.add(line("verifier", report.name))
    facts = report.extensions
    for label, key in (
        ("signer", "SN"),
        ("issuer", "Issuer"),
        ("certificate ends", "notAfter"),
        ("time-stamp", "timestamp"),
    ):
        if facts.get(key):
            branch.add(line(label, str(facts[key])))
    if facts.get("trustPolicy"):
        branch.add(line("trust policy", str(facts["trustPolicy"])))
    checks: Sequence[Mapping[str, Any]] = facts.get("checks", ())
    for check in checks:
        if check["result"] == "success":
            branch.add(line("ok", str(check["type"])))
        else:
            word = "failed" if check["action"] == "enforce" else "logged"
            branch.add(line(word, str(check["type"]), f"{check['code']}: {check['reason']}"))
    if not report.is_success and not checks:
        branch.add(line("failed", f"{report.code}: {report.error_reason}"))


def console() -> Console:
    """Standard output: colour and the terminal's width on a terminal, plain long lines in a pipe."""
    out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = 10_000
    return out


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say on standard error what is going on while it lasts; nothing when that is no terminal."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        yield
        return
    with errors.status(what):
        yield
