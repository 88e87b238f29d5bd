"""README.md, the placeholder certificate and the schema of values say what values.yaml says."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from charts import generate
from tests.chart.rendering import CHART

SCHEMA: Final = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: Final = yaml.safe_load((CHART / "values.yaml").read_text())


def test_the_generated_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_definitions_that_differ_from_the_models_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make check` runs: a definition edited by hand, one that is missing, one that no model is behind."""
    chart = tmp_path / "countersign"
    shutil.copytree(CHART, chart)
    monkeypatch.setattr(generate, "CHART", chart)
    assert generate.main(["--check"]) == 0
    edited = chart / "crds" / "stores.yaml"
    edited.write_text(edited.read_text().replace("maximum: 100000", "maximum: 200000"))
    (chart / "crds" / "policies.yaml").unlink()
    (chart / "crds" / "executors.yaml").write_text("kind: CustomResourceDefinition\n")
    assert generate.main(["--check"]) == 1
    assert "stale: crds/stores.yaml, crds/policies.yaml, crds/executors.yaml" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert "python -m charts.generate --check" in (CHART.parents[1] / "Makefile").read_text().replace("$(BIN)/", "")


def test_a_value_without_a_comment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values.yaml: a.c has no comment"):
        generate.documented_values("a:\n  # -- Good.\n  b: 1\n  c: 2\n")


def test_comments_of_several_lines_and_types_are_read() -> None:
    text = "# -- (string) First\n# second.\na:\n# not a description\nb:\n  # -- Third.\n  c: [1]\n"
    assert generate.documented_values(text) == [
        generate.Value("a", "string", "", "First second."),
        generate.Value("b.c", "list", "[1]", "Third."),
    ]


def test_nobody_can_have_the_key_of_the_placeholder() -> None:
    """Its point comes from a hash: the x coordinate is SHA-256 of a sentence and a small number."""
    numbers = generate.unowned_point().public_numbers()
    found = [
        n
        for n in range(100)
        if hashlib.sha256(f"{generate.SENTENCE}{n}".encode()).digest() == numbers.x.to_bytes(32, "big")
    ]
    assert len(found) == 1
    assert numbers.public_key()  # on the curve, or this raises
    assert numbers != ec.derive_private_key(1, ec.SECP256R1()).public_key().public_numbers()


def test_the_schema_takes_the_defaults() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(DEFAULTS)


def keys(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all values that the schema knows, down to lists and open mappings."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    if "properties" not in schema:
        yield path
    for key, child in schema.get("properties", {}).items():
        yield from keys(child, f"{path}.{key}" if path else key)


def test_schema_and_values_know_the_same_keys() -> None:
    def leaves(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, Mapping) and path not in in_schema:
            for key, child in node.items():
                yield from leaves(child, f"{path}.{key}" if path else str(key))
        else:
            yield path

    in_schema = set(keys(SCHEMA)) - {"global"}
    optional = {
        f"{section}.{key}" for section in ("resources", "crds.resources") for key in ("claims", "limits", "requests")
    }
    assert in_schema - optional == set(leaves(DEFAULTS, "")) - optional


def test_every_section_of_the_schema_is_closed() -> None:
    """What Kubernetes knows better stays open."""
    open_ones = {
        path
        for path, schema in sections(SCHEMA, "")
        if schema.get("additionalProperties") is not False and "properties" in schema
    }
    assert open_ones == {"environmentVariable"}


def sections(schema: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(schema, Mapping):
        if "properties" in schema and schema.get("type") in ("object", ["object", "null"]):
            yield path, schema
        for key in ("properties", "definitions"):
            for name, child in schema.get(key, {}).items():
                yield from sections(child, name)
        yield from sections(schema.get("items"), path)
