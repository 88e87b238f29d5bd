"""The command line as its users run it: a process of its own, its output and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import trustme

from provider import __version__
from provider.demo.scenario import Demo, open_demo
from tests.simulators.gatekeeper import PKI, Gatekeeper
from tests.simulators.registry import RegistrySimulator

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("COUNTERSIGN_")}


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


async def run(*arguments: str, **environment: str) -> Finished:
    """Run `python -m provider` to its end."""
    process = await start(*arguments, **environment)
    out, err = await process.communicate()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "provider",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, **environment},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo() -> AsyncIterator[Demo]:
    async with open_demo() as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


# -- help and usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "verify", "inspect", "check-config", "demo", "version"])
async def test_help_teaches_every_command(command: str) -> None:
    overview, help_ = await asyncio.gather(run("--help"), run(command, "--help"))
    assert command in overview.out
    assert (help_.code, help_.err) == (0, "")
    assert "Usage: countersign" in help_.out.replace("python -m provider", "countersign")


async def test_the_version_is_told_in_both_ways() -> None:
    assert (await run("--version")).out == f"countersign {__version__}\n"
    told = (await run("version")).out
    assert told.startswith(f"countersign {__version__}\npython ")
    assert "cryptography " in told


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["verify"], ["verify", "--config", "x"], ["serve", "--port", "x"], ["inspect", "a", "b"]],
)
async def test_wrong_usage_says_so_and_exits_with_2(arguments: list[str]) -> None:
    finished = await run(*arguments)
    assert finished.code == 2
    assert "Error: " in finished.err
    assert "Traceback" not in finished.err


# -- check-config -----------------------------------------------------------------------------------------------------


async def test_a_good_configuration_is_listed(demo: Demo) -> None:
    finished = await run("check-config", "--config", str(demo.config))
    assert (finished.code, finished.out.splitlines()[-1]) == (0, "good")
    assert "Verifier/verifier-notation: notation" in finished.out
    as_data = await run("check-config", "--output", "json", COUNTERSIGN_CONFIG=str(demo.config))
    assert json.loads(as_data.out) == {"good": True, "warnings": []}


async def test_every_fault_is_named_with_its_place(demo: Demo, tmp_path: Path) -> None:
    for manifest in demo.config.iterdir():
        text = (
            manifest.read_text().replace("level: strict", "level: strickt").replace("plainHttp: true", "plainHttp: yes")
        )
        (tmp_path / manifest.name).write_text(text)
    finished = await run("check-config", "--config", str(tmp_path))
    assert finished.code == 2
    assert finished.out == ""
    assert "trustPolicies[0].signatureVerification.level" in finished.err
    assert "trustPolicies[1].signatureVerification.level" in finished.err
    assert "registries[0].plainHttp" in finished.err
    as_data = json.loads((await run("check-config", "--config", str(tmp_path), "--output", "json")).out)
    assert as_data["good"] is False
    assert {"source", "resource", "path", "message"} == set(as_data["faults"][0])


async def test_a_missing_folder_is_a_plain_sentence(tmp_path: Path) -> None:
    finished = await run("check-config", "--config", str(tmp_path / "absent"))
    assert finished.code == 2
    assert "No such file or directory" in finished.err
    assert "Traceback" not in finished.err


async def test_warnings_do_not_fail(demo: Demo, tmp_path: Path) -> None:
    for manifest in demo.config.iterdir():
        (tmp_path / manifest.name).write_text(manifest.read_text())
    extra = (demo.config / "company-root.yaml").read_text().replace("name: company-root", "name: unused")
    (tmp_path / "unused.yaml").write_text(extra)
    finished = await run("check-config", "--config", str(tmp_path))
    assert finished.code == 0
    assert "warning: " in finished.err
    assert "unused" in finished.err


# -- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "code"),
    [
        (["signed"], 0),
        (["signed", "expired-timestamped"], 0),
        (["signed", "unsigned"], 1),
        (["unreachable"], 2),
        (["unsigned", "unreachable"], 2),
    ],
)
async def test_the_exit_code_tells_the_decision(demo: Demo, images: list[str], code: int) -> None:
    references = [demo.references[name] for name in images]
    assert (await run("verify", "--config", str(demo.config), *references)).code == code


async def test_the_report_says_what_was_checked_and_what_to_do(demo: Demo) -> None:
    signed, revoked = demo.references["signed"], demo.references["revoked"]
    finished = await run("verify", "--config", str(demo.config), signed, revoked, "NOT AN IMAGE")
    assert finished.code == 2
    assert f"verified {signed}" in finished.out
    assert "ok authenticity" in finished.out
    assert f"refused {revoked}" in finished.out
    assert "failed revocation CERTIFICATE_REVOKED: " in finished.out
    assert "what to do: " in finished.out
    assert "invalid NOT AN IMAGE" in finished.out
    assert "\x1b" not in finished.out


async def test_the_report_as_data_is_what_gatekeeper_gets(demo: Demo) -> None:
    keys = [demo.references[name] for name in ("signed", "unsigned", "unreachable")]
    finished = await run("verify", "--config", str(demo.config), "--output", "json", *keys)
    results = json.loads(finished.out)["results"]
    assert [result["decision"] for result in results] == ["verified", "refused", "undecided"]
    assert [result["image"] for result in results] == keys
    assert results[0]["verifierReports"][0]["extensions"]["trustPolicy"] == "shop"
    assert results[1]["code"] == "UNSIGNED"
    assert set(results[2]["error"]) == {"code", "reason", "remediation"}


# -- inspect ----------------------------------------------------------------------------------------------------------


async def test_inspect_decodes_what_is_attached(demo: Demo) -> None:
    image = demo.references["expired-timestamped"]
    tree = await run("inspect", "--config", str(demo.config), image)
    assert tree.code == 0
    for fact in ("signingScheme (critical) notary.x509", "authority CN=Stamp", "key P-256", "signedArtifact"):
        assert fact in tree.out
    data = json.loads((await run("inspect", "--config", str(demo.config), "-o", "json", image)).out)
    assert data["referrers"][0]["signature"]["timestamp"]["hash"] == "sha256"


async def test_inspect_shows_faults_and_believes_nothing(demo: Demo) -> None:
    tampered = await run("inspect", "--config", str(demo.config), demo.references["tampered"])
    assert tampered.code == 0
    unsigned = await run("inspect", "--config", str(demo.config), demo.references["unsigned"])
    assert "referrers none" in unsigned.out


async def test_inspect_needs_no_configuration_for_an_ordinary_registry(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with RegistrySimulator(tls=ca, host="localhost") as registry:
        image = registry.push_image("app", tag="v1")
        registry.push_artifact("app", image, "application/spdx+json", [(b"{}", "application/spdx+json")])
        registry.push_artifact("app", image, "application/vnd.cncf.notary.signature", [(b"junk", "application/cose")])
        registry.push_artifact("app", image, "application/vnd.cncf.notary.signature")
        finished = await run(
            "inspect", f"{registry.host}/app:v1", SSL_CERT_FILE=str(tmp_path / "ca.pem"), HOME=str(tmp_path)
        )
        absent = await run(
            "inspect", f"{registry.host}/app:v2", SSL_CERT_FILE=str(tmp_path / "ca.pem"), HOME=str(tmp_path)
        )
    assert finished.code == 0
    assert "application/spdx+json" in finished.out
    assert "ENVELOPE_MALFORMED" in finished.out
    assert "a signature manifest has one layer" in finished.out
    assert (absent.code, absent.out) == (1, "")
    assert "IMAGE_NOT_FOUND" in absent.err


async def test_inspect_speaks_plain_http_only_when_told_to(tmp_path: Path) -> None:
    async with RegistrySimulator() as registry:
        registry.push_image("app", tag="v1")
        over_tls = await run("inspect", f"{registry.host}/app:v1", HOME=str(tmp_path))
        plain = await run("inspect", "--plain-http", f"{registry.host}/app:v1", HOME=str(tmp_path))
    assert over_tls.code == 2
    assert "plainHttp" in over_tls.err
    assert plain.code == 0


# -- demo -------------------------------------------------------------------------------------------------------------


async def test_the_demo_comes_out_as_it_should() -> None:
    finished = await run("demo")
    assert finished.code == 0
    assert "Subject failed verification: " in finished.out
    assert "pod/demo-signed created" in finished.out
    assert "are as they should be" not in finished.err


async def test_the_demo_goes_on_serving_until_interrupted() -> None:
    process = await start("demo", "--serve", "--output", "json")
    assert process.stderr is not None
    said = ""
    while "curl" not in said:
        said += (await process.stderr.readline()).decode()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode == 130
    assert all(row["as_expected"] for row in json.loads(out)["rows"])
    assert "Traceback" not in err.decode()


async def test_a_terminated_demo_leaves_no_keys_behind(tmp_path: Path) -> None:
    process = await start("demo", "--serve", "--output", "json", TMPDIR=str(tmp_path))
    assert process.stderr is not None
    while "curl" not in (await process.stderr.readline()).decode():
        pass
    assert list(tmp_path.iterdir())
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


async def test_the_demo_leaves_its_folder_where_that_is_wanted_and_writes_over_nothing(tmp_path: Path) -> None:
    first = await run("demo", "--folder", str(tmp_path / "demo"), "--output", "json")
    assert first.code == 0
    assert "BEGIN CERTIFICATE" in (tmp_path / "demo" / "config" / "company-root.yaml").read_text()
    again = await run("demo", "--folder", str(tmp_path / "demo"))
    assert again.code == 2
    assert "cannot be made" in again.err


# -- serve ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Serving:
    """A running `serve`."""

    process: asyncio.subprocess.Process
    ports: tuple[int, int, int]
    certificates: PKI
    folder: Path

    async def get(self, path: str, *, port: int = 1) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.ports[port]}{path}") as response,
        ):
            return response.status, await response.text()

    async def until_ready(self, wanted: int = 200) -> str:
        for _ in range(200):
            try:
                status, text = await self.get("/readyz")
            except aiohttp.ClientConnectionError:
                status, text = 0, ""
            if status == wanted:
                return text
            await asyncio.sleep(0.05)
        raise AssertionError(f"/readyz never answered {wanted}")

    async def log_until(self, words: str) -> str:
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            if words in line:
                return line
        raise AssertionError(f"the log ended without {words!r}")


def free_ports(count: int) -> tuple[int, ...]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return tuple(held.getsockname()[1] for held in sockets)
    finally:
        for held in sockets:
            held.close()


@asynccontextmanager
async def serving(folder: Path, config: Path, *options: str) -> AsyncIterator[Serving]:
    certificates = PKI()
    certificates.write_serving_files(folder)
    certificates.write_client_ca(folder / "ca.crt")
    ports = free_ports(3)
    process = await start(
        *("serve", "--config", str(config), "--cert-dir", str(folder), "--client-ca-file", str(folder / "ca.crt")),
        *("--host", "127.0.0.1", "--port", str(ports[0]), "--health-port", str(ports[1])),
        *("--metrics-port", str(ports[2]), "--config-poll-seconds", "0.05", *options),
    )
    try:
        yield Serving(process, (ports[0], ports[1], ports[2]), certificates, folder)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_serve_answers_gatekeeper_reports_itself_and_stops_gracefully(demo: Demo, tmp_path: Path) -> None:
    async with serving(tmp_path, demo.config) as running:
        assert await running.until_ready() == "ready\n"
        assert await running.get("/healthz") == (200, "ok\n")
        key = demo.references["signed"]
        async with Gatekeeper(running.ports[0], running.certificates.client_context()) as gatekeeper:
            assert (await gatekeeper.ask(key, demo.references["unsigned"])).admitted == {key}
            status, metrics = await running.get("/metrics", port=2)
            assert status == 200
            assert 'countersign_keys_total{endpoint="verify",outcome="succeeded"} 1.0' in metrics
            assert "countersign_configuration_generation 1.0" in metrics
            running.process.send_signal(signal.SIGTERM)
            assert "stopping" in await running.until_ready(503)
            assert (await gatekeeper.ask(key)).admitted == {key}  # still answered while the cluster takes notice
        assert await running.process.wait() == 0


async def test_n65_a_bad_update_keeps_the_last_good_configuration_and_says_so(demo: Demo, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    async with serving(tmp_path, config) as running:
        text = await running.until_ready(503)
        assert "no good configuration is loaded" in text
        for manifest in demo.config.iterdir():
            (config / manifest.name).write_text(manifest.read_text())
        await running.until_ready()
        policy = config / "policy.yaml"
        good = policy.read_text()
        policy.write_text(good.replace("signature: any", "signature: some"))
        fault = json.loads(await running.log_until("signature"))
        assert fault["level"] == "error"
        assert "policy.yaml" in fault["fault"]
        await running.until_ready()
        key = demo.references["signed"]
        async with Gatekeeper(running.ports[0], running.certificates.client_context()) as gatekeeper:
            assert (await gatekeeper.ask(key)).admitted == {key}
        running.process.send_signal(signal.SIGINT)
        assert await running.process.wait() == 0


async def test_serve_says_what_is_wrong_with_certificates_ports_and_names(demo: Demo, tmp_path: Path) -> None:
    config = ("serve", "--config", str(demo.config))
    absent, neither = await asyncio.gather(run(*config, "--cert-dir", str(tmp_path)), run(*config))
    assert (absent.code, neither.code) == (2, 2)
    assert "TLS_INVALID" in absent.err
    assert "tls.crt" in absent.err
    assert "--cert-dir" in neither.err
    PKI().write_serving_files(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        files = ("--cert-file", str(tmp_path / "tls.crt"), "--key-file", str(tmp_path / "tls.key"))
        ports = ("--health-port", "0", "--metrics-port", "0")
        busy = await run(*config, *files, "--host", "127.0.0.1", "--port", port, *ports)
    assert busy.code == 2
    assert "Traceback" not in busy.err
    assert port in busy.err


async def test_a_client_without_an_allowed_name_is_refused(demo: Demo, tmp_path: Path) -> None:
    async with serving(tmp_path, demo.config, "--allowed-client-name", "somebody.else") as running:
        await running.until_ready()
        async with Gatekeeper(running.ports[0], running.certificates.client_context()) as gatekeeper:
            reply = await gatekeeper.ask(demo.references["signed"])
            assert (reply.status, reply.items) == (403, {})
