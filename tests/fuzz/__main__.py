"""Fuzz one target with atheris, for as long as you like: `python -m tests.fuzz NAME [libFuzzer options]`.

    python -m tests.fuzz jws -max_total_time=600

atheris is no dependency of this project: install it into the environment (`pip install atheris`). A failure prints the
input that caused it; put it as an example beside the property in test_targets.py, then mend the parser.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run atheris; it ends the process itself, with 0 when the time was up and 77 when something was found."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed in this environment: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["provider", "cbor2"]):
        from tests.fuzz.targets import TARGETS
    if not arguments or arguments[0] not in TARGETS:
        print(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [libFuzzer options]", file=sys.stderr)
        return 2
    target = TARGETS[arguments[0]]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], "-max_len=16384", *arguments[1:], corpus], target.run)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
