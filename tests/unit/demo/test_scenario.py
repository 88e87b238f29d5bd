"""What the demo takes for a success of its own."""

from __future__ import annotations

import pytest

from provider.demo.scenario import is_as_expected

EXPECTED = (("r.test/b:1", "UNSIGNED"), ("r.test/a:1", "CERTIFICATE_REVOKED"))
GOOD = (
    "Subject failed verification: r.test/a:1: CERTIFICATE_REVOKED: it was (trace-id 1)",
    "Subject failed verification: r.test/b:1: UNSIGNED (trace-id 1)",
)


def test_each_refusal_with_its_code_and_nothing_else_is_as_expected() -> None:
    assert is_as_expected(GOOD, EXPECTED)
    assert is_as_expected((), ())


@pytest.mark.parametrize(
    "violations",
    [
        (),
        GOOD[:1],
        (*GOOD, "Subject failed verification: r.test/c:1: UNSIGNED"),
        (GOOD[0], "Subject failed verification: r.test/b:1: UNSIGNED_TOO: x"),
        (GOOD[0], "Subject failed verification: r.test/b:1: no verdict"),
        (GOOD[0], "Subject failed verification: r.test/b:10: UNSIGNED: x"),
    ],
)
def test_a_denial_too_many_too_few_or_for_another_reason_is_not(violations: tuple[str, ...]) -> None:
    assert not is_as_expected(violations, EXPECTED)
