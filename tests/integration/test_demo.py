"""The demo as a user runs it: real sockets, the real server, the shipped Rego."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from provider.demo.admission import ExternalData
from provider.demo.images import IMAGES, PODS, DemoPod, pod_manifest
from provider.demo.scenario import Demo, DemoSettings, Row, open_demo, run_demo
from provider.errors import UsageError


@pytest.fixture
async def demo() -> AsyncIterator[Demo]:
    async with open_demo() as running:
        yield running


async def test_every_pod_gets_the_decision_and_the_reason_that_it_should() -> None:
    steps: list[str] = []
    rows = await run_demo(steps.append)
    assert [row.pod for row in rows if not row.as_expected] == []
    assert [row.pod for row in rows] == [f"demo-{pod.name}" for pod in PODS]
    admitted = {row.pod for row in rows if row.admitted}
    assert admitted == {f"demo-{entry.name}" for entry in IMAGES if not entry.code} | {"demo-all-good"}
    assert len(steps) == 4
    for row in rows:
        assert row.compliant == row.admitted
        if row.admitted:
            assert row.message == f"pod/{row.pod} created"
        else:
            prefix = 'Error from server (Forbidden): admission webhook "validation.gatekeeper.sh" denied the request: '
            assert row.message.startswith(
                f"{prefix}[ratify-constraint] Subject failed verification: {row.expected[0][0]}"
            )


def _row(rows: list[Row], name: str) -> Row:
    return next(row for row in rows if row.pod == f"demo-{name}")


async def test_n64_the_bad_container_is_named_wherever_it_stands(demo: Demo) -> None:
    names = ("bad-sidecar", "bad-init", "debugged")
    rows = [row async for row in demo.rows(tuple(pod for pod in PODS if pod.name in names))]
    for name in names:
        row = _row(rows, name)
        assert len(row.violations) == 1
        assert demo.references["unsigned"] in row.violations[0]
        assert demo.references["signed"] not in row.violations[0]


async def test_the_authority_is_really_asked_about_revocation(demo: Demo) -> None:
    pods = tuple(pod for pod in PODS if pod.name in ("signed", "revoked"))
    assert [row.admitted async for row in demo.rows(pods)] == [True, False]
    assert {path.split("/")[1] for _, path in demo.responder.requests} == {"authority.crl", "ocsp"}


async def test_the_images_are_really_in_the_registry(demo: Demo) -> None:
    asked = {path for method, path, status in demo.registry.requests if method == "PUT" and status == 201}
    assert "/v2/shop/cart/manifests/signed" in asked
    assert "/v2/elsewhere/cart/manifests/out-of-scope" in asked


async def test_what_a_user_can_try_by_hand_names_files_that_exist_and_works(demo: Demo) -> None:
    ask, tags, verify = demo.commands()
    assert all((demo.tls / name).is_file() for name in ("ca.crt", "client.crt", "client.key"))
    assert str(demo.tls / "client.key") in ask
    assert str(demo.config) in verify
    async with aiohttp.ClientSession() as session, session.get(tags.removeprefix("curl ")) as response:
        assert "unsigned" in (await response.json())["tags"]


async def test_n66_a_caller_without_gatekeepers_certificate_gets_no_answer(demo: Demo) -> None:
    context = ssl.create_default_context(cafile=demo.tls / "ca.crt")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.post(demo.server_url, json={}, ssl=context) as response:
                await response.read()


async def test_n55_a_provider_that_does_not_answer_denies_and_shows_no_address(demo: Demo) -> None:
    closed = demo.references["unreachable"].partition("/")[0]
    demo.server_url = f"https://{closed}/ratify/gatekeeper/v1/verify"
    (row,) = [row async for row in demo.rows(tuple(pod for pod in PODS if pod.name == "signed"))]
    assert not row.admitted
    assert not row.as_expected
    reference = demo.references["signed"]
    assert row.violations == (f"Subject failed verification: {reference}: the provider cannot be reached",)


async def test_objects_that_the_constraint_does_not_match_are_not_asked_about(demo: Demo) -> None:
    manifest = pod_manifest(DemoPod("x", "", ("unsigned",)), demo.references)
    manifest["metadata"]["namespace"] = "kube-system"
    assert await demo.review(manifest) == ()
    manifest["metadata"]["namespace"] = "default"
    assert len(await demo.review(manifest)) == 1


async def test_a_pod_without_images_is_no_question(demo: Demo) -> None:
    manifest = pod_manifest(DemoPod("x", "", ()), demo.references)
    demo.server_url = "https://127.0.0.1:1/"
    assert await demo.review(manifest) == ()


async def test_a_key_that_is_no_image_is_an_error_of_that_key_alone(demo: Demo) -> None:
    answer = await demo.ask(("not an image", demo.references["signed"]))
    assert isinstance(answer, ExternalData)
    assert [name for name, _ in answer.errors or ()] == ["not an image"]
    assert [value["isSuccess"] for _, value in answer.responses or ()] == [True]


async def test_nothing_is_left_behind() -> None:
    async with open_demo() as running:
        folder = running.config.parent
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


async def test_time_is_the_callers(tmp_path: Path) -> None:
    def clock() -> datetime:
        return datetime.now(UTC) - timedelta(hours=12)

    async with open_demo(clock=clock) as running:
        rows = [row async for row in running.rows(tuple(pod for pod in PODS if pod.name in ("signed", "revoked")))]
    assert all(row.as_expected for row in rows)


async def test_a_port_that_is_taken_is_a_usage_error(demo: Demo) -> None:
    port = int(demo.registry.host.rpartition(":")[2])
    with pytest.raises(UsageError, match="cannot be listened on"):
        await run_demo(settings=DemoSettings(registry_port=port))
