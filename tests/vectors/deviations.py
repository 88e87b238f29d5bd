"""Cases of other projects in which Countersign decides otherwise, each with its reason.

Only verdicts of other implementations can be here: a case of our own that fails is a bug.
"""

from __future__ import annotations

from collections.abc import Mapping

DEVIATIONS: Mapping[str, str] = {
    "policy:notation/test/e2e/testdata/config/trustpolicies/skip_trustpolicy.json": (
        "the specification forbids level skip on the scope *; notation-go accepts it"
    ),
}
