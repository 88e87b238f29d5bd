"""What the shipped templates decide, in every engine at hand, on one table of cases (cases.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from provider.demo.admission import ExternalData, Template
from tests.policies import engines
from tests.policies.engines import POLICIES, UNDEFINED

CASES: Final = yaml.safe_load((Path(__file__).parent / "cases.yaml").read_text())
TEMPLATE: Final = Template.parse((POLICIES / "template.yaml").read_bytes())
EVERYWHERE: Final = """
apiVersion: constraints.gatekeeper.sh/v1beta1
kind: RatifyVerification
metadata: {name: ratify-constraint}
spec: {enforcementAction: deny, match: {kinds: [{apiGroups: ["*"], kinds: ["*"]}]}}
"""


class _Raw(ExternalData):
    """An answer of any JSON shape, as an engine may show it to Rego."""

    __slots__ = ("raw",)

    def __init__(self, raw: Any) -> None:
        object.__setattr__(self, "raw", raw)

    def to_json(self) -> Any:
        return self.raw


def _cases(attack: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case["id"]) for case in CASES if case["attack"] == attack]
    )


def _manifest(case: dict[str, Any]) -> dict[str, Any]:
    if "object" in case:
        return dict(case["object"])
    containers = [{"name": f"c{number}", "image": image} for number, image in enumerate(case["images"])]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": containers},
    }


def _review(case: dict[str, Any]) -> dict[str, Any]:
    review: dict[str, Any] = {"object": _manifest(case), "namespace": "default"}
    operation = case.get("operation", "CREATE")
    return review if operation is None else {**review, "operation": operation}


def _answer(case: dict[str, Any]) -> Any:
    return case.get("answer", UNDEFINED)


def _run(case: dict[str, Any], engine: str, folder: Path) -> list[str]:
    """The messages of one case in one engine; checks the keys asked where the case names them."""
    if engine == "regopy":
        if "keys" in case:
            assert sorted(TEMPLATE.keys(_review(case))) == case["keys"]  # its sets have no order
        answer = None if _answer(case) is UNDEFINED else _Raw(_answer(case))
        return list(TEMPLATE.violations(_review(case), answer))
    name, _, file = engine.partition(" ")
    if name == "opa":
        if "keys" in case:
            assert engines.opa(file, "keys", _review(case), _answer(case), folder) == case["keys"]
        violations = engines.opa(file, "violation", _review(case), _answer(case), folder)
        return sorted(violation["msg"] for violation in violations)
    if case.get("operation", "CREATE") not in ("CREATE", "", None):
        pytest.skip("gator test reviews objects, not operations")
    return sorted(result["msg"] for result in engines.gator(file, EVERYWHERE, _manifest(case), _answer(case), folder))


each_engine = pytest.mark.parametrize(
    "engine",
    [
        "regopy",
        "opa template.yaml",
        "opa template-rego-v0.yaml",
        "gator template.yaml",
        "gator template-rego-v0.yaml",
    ],
)


@each_engine
@_cases("N55")
def test_n55_only_a_clear_yes_under_the_very_key_admits(case: dict[str, Any], engine: str, tmp_path: Path) -> None:
    assert _run(case, engine, tmp_path) == case["denied"]


@each_engine
@_cases("N64")
def test_n64_no_container_escapes_by_its_place_or_shape(case: dict[str, Any], engine: str, tmp_path: Path) -> None:
    assert _run(case, engine, tmp_path) == case["denied"]


@each_engine
@_cases("message")
def test_a_denied_user_reads_the_image_the_cause_and_the_trace(
    case: dict[str, Any], engine: str, tmp_path: Path
) -> None:
    assert _run(case, engine, tmp_path) == case["denied"]


def test_the_table_covers_both_outcomes_and_names_each_case_once() -> None:
    assert len({case["id"] for case in CASES}) == len(CASES)
    for attack in ("N55", "N64"):
        outcomes = {bool(case["denied"]) for case in CASES if case["attack"] == attack}
        assert outcomes == {True, False}


@pytest.mark.parametrize("operation", [None, "", "CREATE"])
@pytest.mark.parametrize("length", [0, 40, 120, 200, 2000])
@pytest.mark.parametrize("image", ["r.test/a:1", "registry.example.com/" + "team/" * 20 + "app@sha256:" + "0" * 64])
def test_a_long_cause_is_cut_so_that_the_trace_is_kept(image: str, length: int, operation: str | None) -> None:
    limit = 512 if operation else 256
    trace = "5b9a3c6e-7d0f-4d8e-9a67-2d3f1a0c4b11"
    reports = [{"isSuccess": False, "errorReason": "x" * length}]
    value = {"isSuccess": False, "code": "UNSIGNED", "traceID": trace, "verifierReports": reports}
    review = _review({"images": [image], "operation": operation})
    (message,) = TEMPLATE.violations(review, ExternalData([(image, value)], [], 200, ""))
    head, tail = f"Subject failed verification: {image}: ", f" (trace-id {trace})"
    assert message.startswith(head)
    assert message.endswith(tail)
    reason = message.removeprefix(head).removesuffix(tail)
    full = f"UNSIGNED: {'x' * length}" if length else "UNSIGNED"
    if len(head + full + tail) <= limit:
        assert reason == full
    else:
        assert reason.endswith("...") or len(full) <= 100
        assert full.startswith(reason.removesuffix("..."))
        assert len(message) == limit or len(reason) == min(len(full), 100)


def test_no_address_inside_the_cluster_reaches_the_user() -> None:
    for case in CASES:
        if "https://" in str(case.get("answer")):
            text = " ".join(case["denied"])
            assert "http" not in text
            assert "10.0.0.7" not in text
