"""`countersign check-config -`: resources from standard input, as a cluster would be given them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from provider.cli.check_config import check_config, read_cluster
from provider.errors import ConfigurationError
from tests.unit.configuration.samples import POLICY, STORE, VERIFIER, fill, good

FOREIGN = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: ratify, namespace: gatekeeper-system}
spec: {replicas: 1}
"""


def rendered(*texts: str) -> bytes:
    """What `helm template` prints of these objects."""
    return "---\n".join(
        f"# Source: chart/templates/{number}.yaml\n{fill(text)}" for number, text in enumerate(texts)
    ).encode()


def faults_of(data: bytes) -> list[str]:
    """Every fault of what was read, as it is told."""
    with pytest.raises(ConfigurationError) as caught:
        read_cluster(data)
    return [str(fault) for fault in caught.value.faults]


def test_a_good_configuration_is_good_and_what_is_not_ours_is_passed_over_in_silence() -> None:
    resources = read_cluster(rendered(FOREIGN, *good(), FOREIGN))
    assert [resource.label for resource in resources] == [
        "Store/store-oras",
        "Verifier/verifier-notation",
        "KeyManagementProvider/ratify-notation-inline-cert-0",
        "Policy/ratify-policy",
    ]
    assert resources.warnings == ()


def test_a_resource_of_another_groups_kind_is_told_because_it_may_have_been_meant() -> None:
    foreign = POLICY.replace("config.ratify.deislabs.io/v1beta1", "kyverno.io/v1")
    (warning,) = read_cluster(rendered(*good(), foreign)).warnings
    assert "is ignored: it is of group kyverno.io, although Policy is a kind of" in warning.message


def test_a_fault_is_told_with_its_resource_and_key_path() -> None:
    data = rendered(FOREIGN, *good(Verifier=VERIFIER.replace("level: strict", "level: strickt")))
    (fault,) = faults_of(data)
    assert fault.startswith("standard input#3 Verifier/verifier-notation ")
    assert "trustPolicyDoc.trustPolicies[0].signatureVerification.level" in fault


def test_what_leads_nowhere_is_a_fault() -> None:
    (fault,) = faults_of(rendered(*good(KeyManagementProvider="")))
    assert "there is no KeyManagementProvider ratify-notation-inline-cert-0 within reach" in fault


def test_a_path_beside_a_file_means_nothing_in_a_cluster() -> None:
    store = STORE + "    authProvider: {name: dockerConfig, configPath: secrets/config.json}\n"
    (fault,) = faults_of(rendered(*good(Store=store)))
    assert "must be an absolute path" in fault


def test_nothing_of_ours_is_a_fault() -> None:
    """An empty pipe must not look like success."""
    for data in (b"# nothing\n", rendered(FOREIGN)):
        (fault,) = faults_of(data)
        assert "lacks a Store and a Verifier and a Policy" in fault


@example(b"\xff")
@example(b"a: [")
@example(b"- " * 100)
@example(b"apiVersion: config.ratify.deislabs.io/v1beta1\nkind: [1]\n")
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ConfigurationError):
        read_cluster(data)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_reads_standard_input_and_says_good() -> None:
    done = CliRunner().invoke(check_config, ["-"], input=rendered(*good()), standalone_mode=False)
    assert done.return_value == 0
    assert done.output.splitlines()[-1] == "good"


def test_the_command_tells_faults_as_data() -> None:
    arguments = ["-", "--output=json"]
    done = CliRunner().invoke(check_config, arguments, input=b"kind: Store\n", standalone_mode=False)
    assert done.return_value == 2
    assert '"good": false' in done.output


def test_warnings_go_to_standard_error() -> None:
    former = STORE.replace("v1beta1", "v1alpha1")
    done = CliRunner().invoke(check_config, ["-"], input=rendered(*good(Store=former)), standalone_mode=False)
    assert done.return_value == 0
    assert "v1alpha1 is deprecated" in done.stderr
    assert "deprecated" not in done.stdout


@pytest.mark.parametrize("arguments", [[], ["-", "--config=x"]])
def test_one_place_to_read_from_is_needed(arguments: list[str]) -> None:
    done = CliRunner().invoke(check_config, arguments, standalone_mode=False)
    assert "one place to read from is needed" in str(done.exception)


def test_a_place_that_is_named_goes_before_the_variable() -> None:
    environment = {"COUNTERSIGN_CONFIG": "/etc/countersign"}
    done = CliRunner(env=environment).invoke(check_config, ["-"], input=rendered(*good()), standalone_mode=False)
    assert done.return_value == 0, done.output


def test_a_folder_is_checked_as_before(tmp_path: Path) -> None:
    for number, text in enumerate(good()):
        (tmp_path / f"{number}.yaml").write_text(fill(text))
    for arguments in ([str(tmp_path)], [f"--config={tmp_path}"]):
        done = CliRunner().invoke(check_config, arguments, standalone_mode=False)
        assert done.return_value == 0, done.output


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_input_is_named_as_such(data: bytes) -> None:
    """helm has failed and said why; that everything is missing would only bury its message."""
    assert faults_of(data) == ["standard input: there is nothing to read: standard input is empty"]
