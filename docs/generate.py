"""Writes the parts of docs/ that are made from code: `python -m docs.generate [--check]`.

Rules: output depends on the code alone; `--check` writes nothing and exits 1 when a file differs from what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from provider.errors import CODES, Kind

HERE = Path(__file__).parent

_KINDS = {
    Kind.INVALID_KEY: ("The key is wrong", "Answered as the item's `error`. Gatekeeper keeps it: it will not heal."),
    Kind.REFUSED: (
        "Refused",
        "A decision: `isSuccess` is false, `code` and the reports say why. Gatekeeper keeps it for its cache's time.",
    ),
    Kind.UNDECIDED: (
        "Could not decide",
        "The image is denied this time. The key is left out of the answer and `systemError` names the cause; nobody keeps "
        "it, so the next attempt asks again.",
    ),
    Kind.CONFIGURATION: (
        "Configuration",
        "Reported by `countersign check-config`, in the log, and at start. The last good configuration stays active.",
    ),
    Kind.USAGE: ("Command line", "Exit code 2."),
}


def errors_page() -> str:
    """docs/errors.md."""
    lines = [
        "# Error codes",
        "",
        "Made from `provider/errors.py` by `make docs`. A code never changes its meaning.",
        "",
        "Every refusal says its code, what happened, what was expected and found, and what to do. The code is in the verdict's",
        "`code` and in each report's `code`, in the message of a denied pod, in the log and in `countersign verify`.",
    ]
    for kind, (title, meaning) in _KINDS.items():
        lines += ["", f"## {title}", "", meaning, "", "| code | meaning | what to do |", "|---|---|---|"]
        lines += [
            f"| `{code}` | {entry.meaning} | {entry.remediation} |"
            for code, entry in CODES.items()
            if entry.kind is kind
        ]
    return "\n".join(lines) + "\n"


PAGES = {"errors.md": errors_page}


def main(arguments: list[str]) -> int:
    """Write or check every page; the exit code."""
    check = arguments == ["--check"]
    stale = []
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    if check and stale:
        print(f"stale: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
