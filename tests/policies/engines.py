"""The engines that run the shipped templates in tests: regopy always, opa and gator where their binaries are.

A binary is found by the environment variable COUNTERSIGN_OPA or COUNTERSIGN_GATOR, else on PATH. Each engine gets the
Rego of the shipped file verbatim and a definition of `external_data` in the same package, which stands for Gatekeeper's
builtin.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.interop.peers import find

POLICIES: Final = Path(__file__).resolve().parents[2] / "policies"
UNDEFINED: Final = object()  # in place of an answer: the builtin fails and is undefined

_SECONDS: Final = 30


def source(file: str) -> tuple[str, bool]:
    """The Rego of a template and whether it is of the older version."""
    target = yaml.safe_load((POLICIES / file).read_text())["spec"]["targets"][0]
    return (target["rego"], True) if "rego" in target else (target["code"][0]["source"]["rego"], False)


def stand_in(answer: Any, *, older: bool) -> str:
    """The definition of external_data that answers one thing, to the provider's name only."""
    condition = 'request.provider == "ratify-provider"' if answer is not UNDEFINED else "request.provider == 7"
    # Through json.unmarshal, so that opa's type checker knows no more of the answer than of the real builtin's.
    text = "{}" if answer is UNDEFINED else json.dumps(answer)
    result = f"json.unmarshal({json.dumps(text)})"
    return (
        f"external_data(request) = {result} {{\n  {condition}\n}}\n"
        if older
        else (f"external_data(request) := {result} if {{\n  {condition}\n}}\n")
    )


def opa_check(file: str, folder: Path) -> str:
    """What opa's strict check says of a template's Rego; empty when it finds no fault."""
    rego, older = source(file)
    (folder / "template.rego").write_text(rego)
    (folder / "external_data.rego").write_text("package ratifyverification\n\n" + stand_in({}, older=older))
    done = subprocess.run(
        [find("opa"), "check", "--strict", "--v0-compatible" if older else "--v1-compatible", str(folder)],
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    return (done.stdout + done.stderr).decode()


def opa(file: str, query: str, review: Mapping[str, Any], answer: Any, folder: Path) -> list[Any]:
    """The value of a rule, by the opa binary."""
    rego, older = source(file)
    (folder / "template.rego").write_text(rego)
    (folder / "external_data.rego").write_text("package ratifyverification\n\n" + stand_in(answer, older=older))
    done = subprocess.run(
        [find("opa"), "eval", "--v0-compatible" if older else "--v1-compatible", "--format=json", "--stdin-input"]
        + [f"--data={folder / name}.rego" for name in ("template", "external_data")]
        + [f"data.ratifyverification.{query}"],
        input=json.dumps({"review": review}).encode(),
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return list(json.loads(done.stdout)["result"][0]["expressions"][0]["value"])


def gator(file: str, constraint: str, manifest: Mapping[str, Any], answer: Any, folder: Path) -> list[dict[str, Any]]:
    """What `gator test` reports for one object under a template and a constraint."""
    document = yaml.safe_load((POLICIES / file).read_text())
    target = document["spec"]["targets"][0]
    holder = target if "rego" in target else target["code"][0]["source"]
    holder["rego"] += "\n" + stand_in(answer, older="rego" in target)
    for name, content in (("template", document), ("object", manifest)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "constraint.yaml").write_text(constraint)
    done = subprocess.run(
        [find("gator"), "test", "--output=json"]
        + [f"--filename={folder / name}" for name in ("template.json", "constraint.yaml", "object.json")],
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr.decode()
    assert done.returncode == 0 or done.stdout, done.stderr.decode()
    return list(json.loads(done.stdout or b"[]") or [])
