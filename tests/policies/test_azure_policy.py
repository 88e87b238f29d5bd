"""The Azure Policy definitions as Azure, the article's commands and the add-on would take them.

Azure itself is not at hand. What its documentation demands is azure-policy-definition.schema.json; what the schema
cannot say is checked here. `az` and `curl` in the article's commands are stand-ins: a shell script that notes what it
is given, and one that prints our file.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft202012Validator

from policies import generate
from provider.demo.admission import Template
from tests.policies.engines import POLICIES

PINNED: Final = "customazurepolicy.json"
BY_URL: Final = "customazurepolicy-publicurl.json"
FILES: Final = (PINNED, BY_URL)
SCHEMA: Final = json.loads(Path(__file__).with_name("azure-policy-definition.schema.json").read_bytes())
VALIDATOR: Final = Draft202012Validator(SCHEMA)
MAX_ARGUMENT_BYTES: Final = 131072  # of one argument or variable: Linux, MAX_ARG_STRLEN; the article passes both

Definition = dict[str, Any]

# The article's commands, word for word, but for the address of the file.
ARTICLE: Final = """
export CUSTOM_POLICY=$(curl -L "$ADDRESS")
export DEFINITION_NAME="ratify-default-custom-policy"
export DEFINITION_ID=$(az policy definition create --name "$DEFINITION_NAME" --rules "$(echo "$CUSTOM_POLICY" | jq .policyRule)" --params "$(echo "$CUSTOM_POLICY" | jq .parameters)" --mode "Microsoft.Kubernetes.Data" --query id -o tsv)
export POLICY_SCOPE=$(az aks show -g "$AKS_RG" -n "$AKS_NAME" --query id -o tsv)
az policy assignment create --policy "$DEFINITION_ID" --name "$DEFINITION_NAME" --scope "$POLICY_SCOPE" -p "{\\"effect\\": {\\"value\\":\\"Audit\\"}}"
"""  # noqa: E501 - the article's line

# Notes its arguments, each ended by a null byte, in a file of its own; prints what the real one would: an id.
FAKE_AZ: Final = """#!/bin/sh
number=$(ls "$CALLS" | wc -l)
printf '%s\\0' "$@" > "$CALLS/$number"
echo "/id/$number"
"""


def load(file: str) -> Definition:
    definition: Definition = json.loads((POLICIES / file).read_bytes())
    return definition


def details(definition: Definition) -> dict[str, Any]:
    found: dict[str, Any] = definition["policyRule"]["then"]["details"]
    return found


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(inner)


def jq() -> str:
    found = shutil.which("jq")
    if not found:
        pytest.skip("no jq on PATH; test_the_parts_that_azure_gets_are_there_without_jq_too stands in")
    return found


# ---- what Azure demands ----


@pytest.mark.parametrize("file", FILES)
def test_azure_takes_the_definition(file: str) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert [error.message for error in VALIDATOR.iter_errors(load(file))] == []


@pytest.mark.parametrize("file", FILES)
def test_every_reference_names_a_parameter_and_every_parameter_is_used(file: str) -> None:
    definition = load(file)
    expressions = [text for text in strings(definition["policyRule"]) if text.startswith("[")]
    named = [re.fullmatch(r"\[parameters\('(\w+)'\)\]", text) for text in expressions]
    assert sorted(match[1] for match in named if match) == sorted(definition["parameters"])
    assert None not in named


@pytest.mark.parametrize("file", FILES)
def test_parameters_have_ratifys_names_and_defaults(file: str) -> None:
    parameters = load(file)["parameters"]
    assert {name: parameter["defaultValue"] for name, parameter in parameters.items()} == {
        "effect": "Deny",
        "excludedNamespaces": ["kube-system", "gatekeeper-system"],
        "namespaces": [],
        "labelSelector": {},
    }
    for name, parameter in parameters.items():
        assert parameter["metadata"]["displayName"], name
        assert parameter["metadata"]["description"], name


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("effect", ["deny", "Deny", "audit", "Audit", "disabled", "Disabled"])
def test_an_assignment_may_ask_for_an_effect_in_either_spelling(file: str, effect: str) -> None:
    assert effect in load(file)["parameters"]["effect"]["allowedValues"]


@pytest.mark.parametrize("file", FILES)
def test_no_other_effect_can_be_asked_for(file: str) -> None:
    parameter = load(file)["parameters"]["effect"]
    assert {value.lower() for value in parameter["allowedValues"]} == {"deny", "audit", "disabled"}
    assert parameter["defaultValue"] in parameter["allowedValues"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        ({}, True),
        ({"matchLabels": {"team": "shop"}}, True),
        ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["shop"]}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "Exists"}]}, True),
        ({"matchLabel": {"team": "shop"}}, False),
        ({"matchLabels": {"team": 1}}, False),
        ({"matchLabels": {}}, False),
        ({"matchExpressions": [{"key": "team", "operator": "Is", "values": ["shop"]}]}, False),
        ({"matchExpressions": [{"operator": "Exists"}]}, False),
        ({"matchExpressions": []}, False),
    ],
)
def test_a_label_selector_with_a_mistake_is_refused_at_the_assignment(file: str, selector: Any, taken: bool) -> None:
    schema = load(file)["parameters"]["labelSelector"]["schema"]
    Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(schema).is_valid(selector) is taken


@pytest.mark.parametrize("file", FILES)
def test_pods_of_aks_clusters_are_verified_but_for_what_the_parameters_spare(file: str) -> None:
    definition = load(file)
    assert definition["policyRule"]["if"] == {"field": "type", "in": ["Microsoft.ContainerService/managedClusters"]}
    assert {key: value for key, value in details(definition).items() if key != "templateInfo"} == {
        "apiGroups": [""],
        "kinds": ["Pod"],
        "excludedNamespaces": "[parameters('excludedNamespaces')]",
        "namespaces": "[parameters('namespaces')]",
        "labelSelector": "[parameters('labelSelector')]",
    }


# ---- the template ----


def test_what_is_enforced_is_the_shipped_template_byte_for_byte() -> None:
    info = details(load(PINNED))["templateInfo"]
    assert info["sourceType"] == "Base64Encoded"
    assert base64.b64decode(info["content"], validate=True) == (POLICIES / "template.yaml").read_bytes()


def test_the_add_on_can_install_the_template() -> None:
    content = base64.b64decode(details(load(PINNED))["templateInfo"]["content"])
    template = Template.parse(content)  # Rego of version 1, which Gatekeeper 3.19 and later run
    assert (template.name, template.kind) == ("ratifyverification", "RatifyVerification")
    manifest = yaml.safe_load(content)
    assert manifest["apiVersion"] == "templates.gatekeeper.sh/v1"
    assert "metadata.gatekeeper.sh/requires-sync-data" not in manifest["metadata"]["annotations"]
    assert "data.inventory" not in template.rego, "needs synchronised data, which the add-on refuses"
    # Values would have to be parameters of the template; it has none, so the definition must give none.
    assert "validation" not in manifest["spec"]["crd"]["spec"]
    assert "values" not in details(load(PINNED))


def test_the_variant_by_url_differs_in_the_source_alone_and_leads_nowhere_until_it_is_edited() -> None:
    pinned, by_url = load(PINNED), load(BY_URL)
    info = details(by_url).pop("templateInfo")
    del details(pinned)["templateInfo"]
    assert pinned == by_url
    assert info["sourceType"] == "PublicURL"
    host = info["url"].split("/")[2]
    assert host.endswith(".invalid"), "RFC 6761: resolves nowhere"


# ---- the schema finds mistakes ----


def _set(*path: str | int, to: Any) -> Callable[[Definition], None]:
    def change(definition: Definition) -> None:
        place: Any = definition
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return change


def _drop(*path: str | int) -> Callable[[Definition], None]:
    def change(definition: Definition) -> None:
        place: Any = definition
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


RULE: Final = ("policyRule", "then", "details")
MISTAKES: Final = {
    "another mode": _set("mode", to="All"),
    "no mode": _drop("mode"),
    "no parameters": _drop("parameters"),
    "wrapped in properties": _set("properties", to={}),
    "no condition": _drop("policyRule", "if"),
    "resources that are no clusters": _set("policyRule", "if", "in", to=["Microsoft.Compute/virtualMachines"]),
    "no resources": _set("policyRule", "if", "in", to=[]),
    "an effect of other modes": _set("policyRule", "then", "effect", to="Modify"),
    "an expression that is no parameter": _set("policyRule", "then", "effect", to="[concat('De','ny')]"),
    "no details": _drop("policyRule", "then", "details"),
    "no template": _drop(*RULE, "templateInfo"),
    "the deprecated template": _set(*RULE, "constraintTemplate", to="https://a.example/template.yaml"),
    "the deprecated constraint": _set(*RULE, "constraint", to="https://a.example/constraint.yaml"),
    "a constraint beside kinds": _set(
        *RULE, "constraintInfo", to={"sourceType": "PublicURL", "url": "https://a.example/constraint.yaml"}
    ),
    "no kinds": _drop(*RULE, "kinds"),
    "no groups": _drop(*RULE, "apiGroups"),
    "all kinds": _set(*RULE, "kinds", to=["*"]),
    "all groups": _set(*RULE, "apiGroups", to=["*"]),
    "no group at all": _set(*RULE, "apiGroups", to=[]),
    "no excluded namespaces": _drop(*RULE, "excludedNamespaces"),
    "no label selector": _drop(*RULE, "labelSelector"),
    "namespaces as text": _set(*RULE, "namespaces", to="default"),
    "a member nobody knows": _set(*RULE, "kind", to=["Pod"]),
    "an unknown source type": _set(*RULE, "templateInfo", "sourceType", to="Base64"),
    "a source type for the other member": _set(*RULE, "templateInfo", "sourceType", to="PublicURL"),
    "content and url": _set(*RULE, "templateInfo", "url", to="https://a.example/template.yaml"),
    "content that is not Base64": _set(*RULE, "templateInfo", "content", to="apiVersion: v1"),
    "content of a wrong length": _set(*RULE, "templateInfo", "content", to="YXBpV"),
    "no content": _set(*RULE, "templateInfo", "content", to=""),
    "a url without encryption": _set(
        *RULE, "templateInfo", to={"sourceType": "PublicURL", "url": "http://a.example/template.yaml"}
    ),
    "a url with a token": _set(
        *RULE, "templateInfo", to={"sourceType": "PublicURL", "url": "https://a.example/template.yaml?sig=x"}
    ),
    "a url with a password": _set(
        *RULE, "templateInfo", to={"sourceType": "PublicURL", "url": "https://me:x@a.example/template.yaml"}
    ),
    "a parameter without a type": _drop("parameters", "effect", "type"),
    "a parameter of an unknown type": _set("parameters", "effect", "type", to="Text"),
    "a default of another type": _set("parameters", "namespaces", "defaultValue", to="default"),
    "no allowed values": _set("parameters", "effect", "allowedValues", to=[]),
    "a schema for an array": _set("parameters", "namespaces", "schema", to={"type": "array"}),
    "a misspelt member of a parameter": _set("parameters", "effect", "default", to="Deny"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_definition_with_a_mistake_is_not_taken(mistake: str) -> None:
    definition = copy.deepcopy(load(PINNED))
    MISTAKES[mistake](definition)
    assert not VALIDATOR.is_valid(definition)


# ---- the article's commands ----


@pytest.mark.parametrize("file", FILES)
def test_the_articles_commands_give_azure_the_rule_and_the_parameters(file: str, tmp_path: Path) -> None:
    path, calls = tmp_path / "bin", tmp_path / "calls"
    path.mkdir()
    calls.mkdir()
    (path / "jq").symlink_to(jq())
    for name, text in {"az": FAKE_AZ, "curl": '#!/bin/sh\ncat "$2"\n'}.items():
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    environment = {"PATH": f"{path}:/usr/bin:/bin", "CALLS": str(calls), "ADDRESS": str(POLICIES / file)}
    environment |= {"AKS_RG": "a-group", "AKS_NAME": "a-cluster"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ARTICLE], env=environment, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    create, show, assign = ((calls / number).read_text().split("\0")[:-1] for number in "012")
    given = dict(zip(create[3::2], create[4::2], strict=True))
    assert create[:3] == ["policy", "definition", "create"]
    assert json.loads(given.pop("--rules")) == load(file)["policyRule"]
    assert json.loads(given.pop("--params")) == load(file)["parameters"]
    assert given == {
        "--name": "ratify-default-custom-policy",
        "--mode": load(file)["mode"],
        "--query": "id",
        "-o": "tsv",
    }
    assert show[:2] == ["aks", "show"]
    assert assign[4] == "/id/0", "the definition that was created is assigned"
    value = json.loads(assign[-1])["effect"]["value"]
    assert value in load(file)["parameters"]["effect"]["allowedValues"]


@pytest.mark.parametrize("file", FILES)
def test_the_parts_that_azure_gets_are_there_without_jq_too(file: str) -> None:
    definition = load(file)
    assert sorted(definition) == ["mode", "parameters", "policyRule"]
    assert definition["mode"] == "Microsoft.Kubernetes.Data"
    assert set(definition["policyRule"]) == {"if", "then"}


@pytest.mark.parametrize("file", FILES)
def test_the_file_fits_into_one_argument_of_a_command(file: str) -> None:
    assert (POLICIES / file).stat().st_size < MAX_ARGUMENT_BYTES


def test_the_documented_edits_put_another_source_in_and_azure_still_takes_it(tmp_path: Path) -> None:
    program = jq()
    page = (POLICIES.parent / "docs" / "azure-policy.md").read_text()
    blocks = [block for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) if block.startswith("jq ")]
    results = []
    for block in blocks:
        command = block.replace("policies/", f"{POLICIES}/").replace("jq ", f"{program} ", 1)
        subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True, timeout=30)
        results.append(json.loads((tmp_path / "definition.json").read_bytes()))
        assert VALIDATOR.is_valid(results[-1])
    url, other = (details(result)["templateInfo"] for result in results)
    assert url["sourceType"] == "PublicURL"
    assert url["url"] != generate.PLACEHOLDER_URL
    assert base64.b64decode(other["content"]) == (POLICIES / "template-rego-v0.yaml").read_bytes()


# ---- the generator ----


def test_the_check_fails_when_template_and_definition_differ_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (POLICIES / file).read_bytes(), "run `make policies`"
    stale = (tmp_path / PINNED).read_text().replace('"content": "', '"content": "AAAA')
    (tmp_path / PINNED).write_text(stale)
    (tmp_path / BY_URL).unlink()
    assert generate.main(["--check"], tmp_path) == 1
    assert f"stale: {PINNED}, {BY_URL}; run `make policies`" in capsys.readouterr().err
    assert (tmp_path / PINNED).read_text() == stale
    assert not (tmp_path / BY_URL).exists()


def test_another_template_gives_another_definition() -> None:
    assert generate.pinned(b"a") != generate.pinned(b"b")
    assert details(generate.pinned(b"a"))["templateInfo"]["content"] == "YQ=="


def test_the_generator_refuses_arguments_it_does_not_know(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert generate.main(["--chek"], tmp_path) == 2
    assert "usage" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
