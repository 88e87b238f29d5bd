"""The documentation: what it names is there, what is made from code is up to date, what it shows works.

Rules: a page is compared with the tree and the code beside it; nothing is run and no address is asked. What a command
prints is not compared: the pages show it shortened.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final

import grimp
import pytest

from docs import generate
from provider.configuration.manifests import load
from provider.demo import pki
from provider.errors import CODES
from provider.telemetry import Metrics

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "policies" / "README.md")
GETTING_STARTED: Final = ROOT / "docs" / "getting-started.md"
OPERATIONS: Final = ROOT / "docs" / "operations.md"
THREAT_MODEL: Final = ROOT / "docs" / "threat-model.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
# Words in capitals that are no codes of ours.
_NOT_OURS: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "DOCKER_CONFIG", "SSL_CERT_FILE"})


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    """The names of the tests of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions if function.name.startswith("test_"))


def resources(page: Path) -> Iterator[tuple[str, str]]:
    """The YAML blocks of a page that begin with the name of the file that they are saved as, in order."""
    for language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        name = re.match(r"# ([\w/-]+\.yaml)\n", text)
        if language == "yaml" and name:
            yield name[1], text


def key_provider(name: str) -> str:
    """A KeyManagementProvider with a root of its own."""
    now = datetime.now(UTC)
    root = pki.issue({"CN": name}, pki.authority(), issuer=None, not_before=now, not_after=now + timedelta(days=1))
    indented = "".join(f"      {line}\n" for line in pki.pem(root.certificate).decode().splitlines())
    return (
        "apiVersion: config.ratify.deislabs.io/v1beta1\nkind: KeyManagementProvider\n"
        f"metadata:\n  name: {name}\nspec:\n  type: inline\n  parameters:\n    contentType: certificate\n"
        f"    value: |\n{indented}"
    )


# -- what is made from code -------------------------------------------------------------------------------------------


def test_what_is_made_from_code_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_is_found_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*generate.PAGES, *generate.SECTIONS):
        text = (generate.HERE / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("`UNSIGNED`", "`SIGNED`"), encoding="utf-8")
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "errors.md" in capsys.readouterr().err
    assert "`SIGNED`" in (tmp_path / "errors.md").read_text(encoding="utf-8")
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


@pytest.mark.parametrize(
    "page",
    [
        "no marks\n",
        "<!-- generated: one -->\n<!-- end: one -->\n" * 2,
        "<!-- generated: other -->\n<!-- end: other -->\n",
        "<!-- generated: one -->\nno end\n",
    ],
)
def test_a_page_without_exactly_its_generated_sections_is_an_error(page: str) -> None:
    with pytest.raises(LookupError):
        generate.fill(page, {"one": lambda: ["made"]})


def test_a_generated_section_is_replaced_and_the_prose_around_it_is_not() -> None:
    page = "before\n<!-- generated: one -->\nold\n<!-- end: one -->\nafter\n"
    filled = generate.fill(page, {"one": lambda: ["made"]})
    assert filled == "before\n<!-- generated: one -->\n\nmade\n\n<!-- end: one -->\nafter\n"
    assert generate.fill(filled, {"one": lambda: ["made"]}) == filled


# -- what is named is there -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    dead = []
    for target in _LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []


def test_the_anchor_that_an_error_names_is_there() -> None:
    named = {
        (file, anchor)
        for entry in CODES.values()
        for file, anchor in re.findall(r"(docs/[\w-]+\.md)(?:#([\w-]+))?", entry.remediation)
    }
    assert named
    for file, anchor in named:
        assert not anchor or anchor in anchors(ROOT / file)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_that_is_named_is_one(page: Path) -> None:
    named = set(re.findall(r"`([A-Z]{2,}(?:_[A-Z]+)+)\b[^`]*`", prose(page)))
    named = {code for code in named if not code.startswith(("COUNTERSIGN_", "AZURE_", "AWS_", "GOOGLE_", "RATIFY_"))}
    assert named - CODES.keys() - _NOT_OURS == set()


def test_every_attack_has_a_row_with_tests_or_says_why_not() -> None:
    rows = re.findall(r"^\| (N\d\d) \| (.+) \| (.+) \|$", THREAT_MODEL.read_text(encoding="utf-8"), re.MULTILINE)
    assert [number for number, _, _ in rows] == [f"N{number:02}" for number in range(1, 71)]
    bare = [number for number, _, tests in rows if not _TEST.search(tests) and not re.match(r"not yet: \w+", tests)]
    assert bare == []


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = _TEST.findall(THREAT_MODEL.read_text(encoding="utf-8"))
    assert named
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / "tests" / path).is_file() or name not in names_of_tests(ROOT / "tests" / path)
    ]
    assert missing == []


def test_every_test_of_the_hostile_suite_is_in_the_rows_of_its_attacks() -> None:
    rows = dict(re.findall(r"^\| N(\d\d) \|(.+)\|$", THREAT_MODEL.read_text(encoding="utf-8"), re.MULTILINE))
    files = sorted((ROOT / "tests" / "hostile").glob("test_*.py"))
    attacks = {
        f"hostile/{file.name}::{name}": re.findall(r"(?<=_n)\d\d(?=_)", name)
        for file in files
        for name in names_of_tests(file)
    }
    assert attacks
    assert [test for test, numbers in attacks.items() if not numbers] == []
    missing = [
        (number, test) for test, numbers in attacks.items() for number in numbers if f"`{test}`" not in rows[number]
    ]
    assert missing == []


def test_every_metric_that_operations_name_is_one() -> None:
    families = [family.name for family in Metrics().registry.collect()]
    known = {f"{family}{suffix}" for family in families for suffix in ("", "_total", "_info")}
    named = set(re.findall(r"\b(?:countersign|ratify)_\w+[a-z]\b", prose(OPERATIONS)))
    assert named
    assert named - known == set()


def test_every_log_event_of_serve_is_in_the_table_of_operations_and_no_other() -> None:
    graph = grimp.build_graph("provider", cache_dir=None)
    modules = graph.find_upstream_modules("provider.cli.serve") | {"provider.cli.serve"}
    files = (ROOT.joinpath(*module.split(".")) for module in modules)
    sources = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py") for file in files)
    calls = (
        node
        for source in sources
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    )
    logged = {
        ast.unparse(call.args[0])
        for call in calls
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
        if call.func.value.id == "_log" and call.args
    }
    logged = {re.sub(r"\{[^}]*\}", "<...>", event.removeprefix("f").strip("'\"")) for event in logged}
    section = prose(OPERATIONS).partition("\n## Log\n")[2].partition("\n## ")[0]
    table = re.findall(r"^\| `([^`]+)` \| (?:debug|info|warning|error) \|", section, re.MULTILINE)
    assert {re.sub("<[a-z]+>", "<...>", event) for event in table} == logged


# -- what is shown works ----------------------------------------------------------------------------------------------


def test_the_resources_of_getting_started_are_a_good_configuration_at_every_step(tmp_path: Path) -> None:
    trust = tmp_path / "trust"
    trust.mkdir()
    (trust / "company-root.yaml").write_text(key_provider("company-root"), encoding="utf-8")
    stages = []
    for name, text in resources(GETTING_STARTED):
        if not name.startswith("trust/"):
            continue
        if "team-root" in text:
            for provider in ("team-root", "clock-root"):
                (trust / f"{provider}.yaml").write_text(key_provider(provider), encoding="utf-8")
        (tmp_path / name).write_text(text, encoding="utf-8")
        if {"store.yaml", "verifier.yaml", "policy.yaml"} <= {file.name for file in trust.iterdir()}:
            stages.append(load(trust))
    assert [len(stage.key_providers) for stage in stages] == [1, 3]
    assert [stage.warnings for stage in stages] == [(), ()]


@pytest.mark.parametrize(
    ("name", "text"), [pytest.param(*entry, id=entry[0]) for entry in resources(GETTING_STARTED) if "other" in entry[0]]
)
def test_every_other_store_that_getting_started_shows_is_a_good_one(name: str, text: str, tmp_path: Path) -> None:
    shown = dict(resources(GETTING_STARTED))
    for provider in ("company-root", "team-root", "clock-root"):
        (tmp_path / f"{provider}.yaml").write_text(key_provider(provider), encoding="utf-8")
    for rest in ("trust/verifier.yaml", "trust/policy.yaml"):
        (tmp_path / Path(rest).name).write_text(shown[rest], encoding="utf-8")
    (tmp_path / Path(name).name).write_text(text, encoding="utf-8")
    resource_set = load(tmp_path)
    assert (len(resource_set.stores), resource_set.warnings) == (1, ())
