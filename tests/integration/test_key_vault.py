"""Key Vault as an operator meets it: through the Azure SDK as it is, under the genuine name, with TLS verified.

The servers are simulators; provider, SDK, identity, executor and verifier are the real ones. What a secret may hold,
which versions count, how long what was loaded stays. What goes wrong is in test_key_vault_faults.py.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider.demo import pki
from provider.errors import Undecided
from provider.key_management.key_vault_objects import MAX_TOLD_VERSIONS, TOO_OLD, VaultObject
from tests.simulators.azure import vault_rig
from tests.simulators.azure.entra import TENANT
from tests.simulators.azure.key_vault import (
    PEM,
    PKCS12,
    pem_secret,
    pkcs12_secret,
)
from tests.simulators.azure.vault_rig import (
    DAY,
    NO_KEYS,
    NOW,
    RELEASE,
    RIGHT,
    ROOT,
    SIGNER,
    STRANGER,
    VERSION,
    Azure,
    Images,
    issue,
    rows,
    signers,
    subjects,
)
from tests.simulators.listener import (
    hang,
    status,
)

azure, images = vault_rig.azure, vault_rig.images  # fixtures


async def test_signed_unsigned_and_untrusted_images_with_certificates_of_a_vault(azure: Azure, images: Images) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider()
    images.use(provider)
    assert await images.verdicts() == NO_KEYS
    await provider.refresh()
    assert await images.verdicts() == RIGHT
    assert azure.hosts.strangers == []
    assert set(azure.hosts.connections) == {f"{azure.vault.vault_host}:443", "login.microsoftonline.com:443"}


async def test_one_token_and_two_operations_load_a_certificate(azure: Azure) -> None:
    """A list and a secret; a refresh without news costs the list alone."""
    version = azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider()
    await provider.refresh()
    assert len(azure.entra.requests) == 1
    assert azure.vault.operations == ["/secrets/release/versions", f"/secrets/release/{version}"]
    await provider.refresh()
    assert azure.vault.operations[2:] == ["/secrets/release/versions"]
    assert len(azure.entra.requests) == 1


async def test_what_the_identity_asks_entra_for(azure: Azure) -> None:
    """The service account's token, for the vault's service and nothing else; the tenant that was configured."""
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    await azure.provider().refresh()
    (request,) = azure.entra.requests
    assert request.path == f"/{TENANT}/oauth2/v2.0/token"
    assert b"scope=https%3A%2F%2Fvault.azure.net%2F.default" in request.body
    assert all("api-version" in request.query for request in azure.vault.requests)


# -- what a secret holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root_first", [False, True], ids=["leaf first", "root first"])
@pytest.mark.parametrize("key", [None, SIGNER.key], ids=["no key", "with key"])
@pytest.mark.parametrize("kind", [PEM, PKCS12])
async def test_every_form_of_a_chain_verifies_images(
    azure: Azure, images: Images, kind: str, key: pki.PrivateKey | None, root_first: bool
) -> None:
    """An exportable key is dropped with a warning; that it is told nowhere else is looked at after each test."""
    chain = SIGNER.chain[::-1] if root_first and not (key and kind == PKCS12) else SIGNER.chain
    value = pem_secret(chain, key) if kind == PEM else pkcs12_secret(chain, key)
    version = azure.vault.add_certificate("release", value, kind)
    provider = azure.provider()
    with capture_logs() as logs:
        await provider.refresh()
        await provider.refresh()
    warnings = [one for one in logs if one["log_level"] == "warning"]
    assert [(one["event"], one["certificate"], one["version"]) for one in warnings] == (
        [("private key in a secret of Key Vault, dropped", "release", version)] if key else []
    )
    assert [one.der for one in provider.material().certificates] == [pki.der(one) for one in SIGNER.chain]
    images.use(provider)
    assert await images.verdicts() == RIGHT


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        (pem_secret(SIGNER.chain[:1]), PEM, "is there without its issuers"),
        (pem_secret([*SIGNER.chain, ROOT.certificate]), PEM, "stands twice"),
        (pem_secret([*SIGNER.chain, issue("b", pki.code_signing(), ROOT).certificate]), PEM, "not one chain"),
        (pem_secret(SIGNER.chain)[:-60], PEM, "block 2"),
        (pem_secret(SIGNER.chain), "text/plain", "not that of a certificate"),
        (pem_secret(SIGNER.chain), None, "not that of a certificate"),
        (None, PEM, "has no value"),
        ("@@@", PKCS12, "not base64"),
    ],
    ids=["leaf only", "duplicate", "two leaves", "truncated", "text", "no type", "no value", "no base64"],
)
async def test_a_secret_that_is_no_chain_is_told_and_trusted_by_nobody(
    azure: Azure, images: Images, value: str | None, kind: str | None, told: str
) -> None:
    version = azure.vault.add_certificate("release", value, kind)
    provider = azure.provider()
    error = await azure.refresh(provider)
    assert f"certificate release, version {version}" in error
    assert told in error
    assert provider.material().certificates == ()
    assert told in rows(provider)[0]["Error"]
    images.use(provider)
    assert await images.verdicts() == NO_KEYS


@pytest.mark.parametrize("history", [0, 1, 2])
async def test_a_bad_new_version_does_not_take_the_good_one_away(azure: Azure, images: Images, history: int) -> None:
    """Whether it stands beside the good one or would have replaced it."""
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider(VaultObject("release", history=history))
    await provider.refresh()
    images.use(provider)
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain)[:-60])
    assert await azure.refresh(provider)
    assert await images.verdicts() == (RIGHT if history == 0 else ("ok", "UNSIGNED", "KEYS_UNAVAILABLE"))


async def test_a_version_that_cannot_be_had_now_leaves_both_that_were_there(azure: Azure) -> None:
    for one in signers(2):
        azure.vault.add_certificate("release", pem_secret(one.chain))
    provider = azure.provider()
    await provider.refresh()
    version = azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.fault(f"/secrets/release/{version}", status(503))
    assert version in await azure.refresh(provider)
    assert subjects(provider.material()) == {"v0", "v1"}
    azure.vault.heal()
    await provider.refresh()
    assert subjects(provider.material()) == {"v1", "release", "root"}


async def test_bad_versions_are_not_searched_through_to_the_end(azure: Azure) -> None:
    """As many older ones are tried as may count; somebody who makes bad versions makes no load."""
    for _ in range(30):
        azure.vault.add_certificate("release", "bad")
    await azure.refresh(azure.provider())
    assert len(azure.vault.operations) == 2 + 4  # pages and versions


# -- versions ---------------------------------------------------------------------------------------------------------


async def test_a_rotation_keeps_the_version_before_it_and_no_older_one(azure: Azure) -> None:
    certificates = [pem_secret(one.chain) for one in signers(3)]
    provider = azure.provider()
    seen = []
    for value in certificates:
        azure.vault.add_certificate("release", value)
        await provider.refresh()
        seen.append(subjects(provider.material()))
    assert seen == [{"v0"}, {"v0", "v1"}, {"v1", "v2"}]
    assert [row["State"] for row in rows(provider)] == ["in use", "in use", "older than those in use"]


@pytest.mark.parametrize(("history", "wanted"), [(1, {"v3"}), (2, {"v2", "v3"}), (3, {"v1", "v2", "v3"})])
async def test_how_many_versions_count_is_a_setting(azure: Azure, history: int, wanted: set[str]) -> None:
    for one in signers(4):
        azure.vault.add_certificate("release", pem_secret(one.chain))
    provider = azure.provider(VaultObject("release", history=history))
    await provider.refresh()
    assert subjects(provider.material()) == wanted


async def test_without_a_history_nothing_is_listed(azure: Azure) -> None:
    """For an identity that may read one secret and list none."""
    azure.vault.refuse("/*/versions", 403, "Forbidden", "ForbiddenByRbac")
    for one in signers(2):
        azure.vault.add_certificate("release", pem_secret(one.chain))
    provider = azure.provider(VaultObject("release", history=0))
    await provider.refresh()
    assert subjects(provider.material()) == {"v1"}
    assert azure.vault.operations == ["/secrets/release/"]


async def test_a_pinned_version_never_moves(azure: Azure) -> None:
    one, two = signers(2)
    version = azure.vault.add_certificate("release", pem_secret(one.chain))
    provider = azure.provider(VaultObject("release", version.upper()))
    await provider.refresh()
    azure.vault.add_certificate("release", pem_secret(two.chain))
    await provider.refresh()
    assert subjects(provider.material()) == {"v0"}
    azure.vault.disable("release", version)
    await provider.refresh()
    assert subjects(provider.material()) == set()
    assert [(row["Version"], row["State"]) for row in rows(provider)] == [(version, "disabled")]


async def test_a_pinned_version_that_is_not_there_is_an_error_and_the_newest_no_stand_in(azure: Azure) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider(VaultObject("release", VERSION))
    assert "has no such thing" in await azure.refresh(provider)
    with pytest.raises(Undecided):
        provider.material()


async def test_an_answer_about_another_version_is_not_believed(azure: Azure) -> None:
    """A server that falls back to the newest version when it does not know the one it was asked for."""
    version = azure.vault.add_certificate("release", pem_secret(SIGNER.chain), version=VERSION)
    azure.vault.changes = lambda answer: {**answer, "id": f"{azure.vault.uri}/secrets/release/{'f' * 32}"}
    provider = azure.provider(VaultObject("release", version, history=0))
    assert "another version" in await azure.refresh(provider)


async def test_n53_disabled_expired_and_early_versions_are_left_out_and_named(azure: Azure) -> None:
    good, disabled, expired, early, oldest = signers(5)
    add = azure.vault.add_certificate
    versions = {
        "older than those in use": add("release", pem_secret(oldest.chain)),
        "in use": add("release", pem_secret(good.chain)),
        "expired": add("release", pem_secret(expired.chain), expires=NOW - DAY),
        "not yet valid": add("release", pem_secret(early.chain), not_before=NOW + DAY),
        "disabled": add("release", pem_secret(disabled.chain), enabled=False),
    }
    provider = azure.provider(VaultObject("release", history=1))
    await provider.refresh()
    assert subjects(provider.material()) == {"v0"}
    assert {row["State"]: row["Version"] for row in rows(provider)} == versions
    assert [row["Enabled"] for row in rows(provider)] == ["true", "false", "true", "true", "true"]


async def test_the_certificate_itself_says_when_it_is_valid_too(azure: Azure) -> None:
    """Attributes of Key Vault may be missing, or have been changed by hand."""
    expired = issue("gone", pki.code_signing(), not_before=NOW - 9 * DAY, not_after=NOW - DAY)
    azure.vault.add_certificate("release", pem_secret(expired.chain))
    provider = azure.provider()
    await provider.refresh()
    assert (subjects(provider.material()), rows(provider)[0]["State"]) == (set(), "expired")
    keeping = azure.provider(keep_expired=True)
    await keeping.refresh()
    assert (subjects(keeping.material()), rows(keeping)[0]["State"]) == ({"gone"}, "in use")


async def test_a_disabled_newest_version_leaves_the_enabled_older_ones(azure: Azure, images: Images) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain), enabled=False)
    provider = azure.provider()
    await provider.refresh()
    images.use(provider)
    assert await images.verdicts() == RIGHT


async def test_a_version_that_is_disabled_loses_its_trust_with_the_next_refresh(azure: Azure, images: Images) -> None:
    """It is what an operator does about a stolen key: an answer, not a fault to be weathered."""
    version = azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider()
    await provider.refresh()
    images.use(provider)
    assert await images.verdicts() == RIGHT
    azure.vault.disable("release", version)
    await provider.refresh()
    assert await images.verdicts() == ("TRUST_STORE_EMPTY", "UNSIGNED", "TRUST_STORE_EMPTY")


async def test_a_version_that_is_disabled_between_list_and_look_does_not_count(azure: Azure) -> None:
    version = azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.refuse(f"/secrets/release/{version}", 403, "Forbidden", "SecretDisabled")
    provider = azure.provider()
    await provider.refresh()
    assert (subjects(provider.material()), rows(provider)[0]["State"]) == (set(), "disabled")


async def test_sixty_versions_are_listed_page_by_page(azure: Azure) -> None:
    """The links of Key Vault write out the port 443."""
    azure.vault.page_size = 25
    for _ in range(58):
        azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    for one in signers(2):
        azure.vault.add_certificate("release", pem_secret(one.chain))
    provider = azure.provider()
    await provider.refresh()
    assert subjects(provider.material()) == {"v0", "v1"}
    assert azure.vault.operations.count("/secrets/release/versions") == 3
    assert len(rows(provider)) == 2 + MAX_TOLD_VERSIONS


async def test_a_list_without_an_end_is_given_up(azure: Azure) -> None:
    azure.vault.page_size = 1
    for _ in range(45):
        azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    assert "more than 40 pages" in await azure.refresh(azure.provider())


async def test_versions_are_listed_by_whichever_permission_there_is(azure: Azure) -> None:
    azure.vault.refuse("/secrets/*/versions", 403, "Forbidden", "ForbiddenByRbac")
    for one in signers(3):
        azure.vault.add_certificate("release", pem_secret(one.chain))
    provider = azure.provider()
    await provider.refresh()
    assert subjects(provider.material()) == {"v1", "v2"}
    assert azure.vault.operations[1] == "/certificates/release/versions"


async def test_without_permission_to_list_the_newest_version_counts(azure: Azure) -> None:
    azure.vault.refuse("/*/versions", 403, "Forbidden", "AccessDenied")
    for one in signers(2):
        azure.vault.add_certificate("release", pem_secret(one.chain))
    provider = azure.provider()
    await provider.refresh()
    assert subjects(provider.material()) == {"v1"}


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_public_keys_are_loaded_with_their_versions(azure: Azure) -> None:
    """For cosign, later. Nothing private is in what a vault says of a key."""
    azure.vault.page_size = 2
    versions = [azure.vault.add_key("cosign", SIGNER.key, hsm=True) for _ in range(5)]
    provider = azure.provider(keys=(VaultObject("cosign"),))
    await provider.refresh()
    assert set(provider.material().public_keys) == {f"cosign/{version}" for version in versions[-2:]}
    assert [row["State"] for row in rows(provider, "Keys")][:3] == ["in use", "in use", "older than those in use"]
    pinned = azure.provider(keys=(VaultObject("cosign", versions[0]),))
    await pinned.refresh()
    assert set(pinned.material().public_keys) == {f"cosign/{versions[0]}"}


async def test_a_key_that_cannot_be_had_costs_the_certificates_nothing(azure: Azure, images: Images) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.refuse("/keys/*", 403, "Forbidden", "ForbiddenByRbac")
    provider = azure.provider(RELEASE, keys=(VaultObject("cosign"),))
    assert "key cosign" in await azure.refresh(provider)
    images.use(provider)
    assert (await images.verdicts())[0] == "ok"
    assert "Key Vault Crypto User" in azure.told[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda answer: {**answer, "key": None}, "does not say what it is about"),
        (lambda answer: {**answer, "attributes": None}, "does not say whether"),
        (lambda answer: {**answer, "attributes": {"enabled": True, "nbf": "soon"}}, "does not say whether"),
        (lambda answer: {**answer, "key": {**answer["key"], "kty": "oct"}}, "algorithm is not supported"),
        (lambda answer: [answer], "no JSON object"),
    ],
)
async def test_a_key_that_is_described_badly_is_refused(azure: Azure, change: Callable[..., Any], told: str) -> None:
    version = azure.vault.add_key("cosign", SIGNER.key)
    azure.vault.changes = change
    provider = azure.provider(keys=(VaultObject("cosign", version, history=0),))
    assert told in await azure.refresh(provider)


@pytest.mark.parametrize(
    "change",
    [lambda page: {**page, "value": {}}, lambda page: {**page, "value": [7]}, lambda page: {**page, "nextLink": 7}],
)
async def test_a_list_of_keys_that_is_none_is_refused(azure: Azure, change: Callable[..., Any]) -> None:
    azure.vault.add_key("cosign", SIGNER.key)
    azure.vault.changes = change
    assert "no page of versions" in await azure.refresh(azure.provider(keys=(VaultObject("cosign"),)))


# -- age --------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


async def test_the_last_good_set_stays_for_its_time_and_then_fails_closed(azure: Azure, images: Images) -> None:
    clock = Clock()
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider(max_age_seconds=7200, clock=clock.now, monotonic=clock.monotonic)
    images.use(provider)
    await provider.refresh()
    azure.vault.fault("*", status(503))
    clock.seconds = 7200
    assert await azure.refresh(provider)
    assert await images.verdicts() == RIGHT
    assert provider.material().as_of == NOW
    assert rows(provider)[0]["LastRefreshed"] == NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
    clock.seconds = 7201
    assert await images.verdicts() == NO_KEYS
    with pytest.raises(Undecided, match=r"last seen 2\.0 hours ago, which is too long: .* 503"):
        provider.material()
    azure.vault.heal()
    await provider.refresh()
    assert await images.verdicts() == RIGHT
    assert provider.material().as_of == clock.now()


async def test_each_certificate_ages_by_itself(azure: Azure, images: Images) -> None:
    """One that is too old is missed; the others go on."""
    clock = Clock()
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.add_certificate("partner", pem_secret(STRANGER.chain))
    provider = azure.provider(
        RELEASE, VaultObject("partner"), max_age_seconds=7200, clock=clock.now, monotonic=clock.monotonic
    )
    images.use(provider)
    await provider.refresh()
    assert await images.verdicts() == ("ok", "UNSIGNED", "ok")
    azure.vault.fault("/secrets/partner/*", status(503))
    clock.seconds = 7201
    assert await azure.refresh(provider)
    assert await images.verdicts() == ("ok", "UNSIGNED", "KEYS_UNAVAILABLE")
    (missing,) = provider.material().missing
    assert missing.startswith("certificate partner, last seen 2.0 hours ago")
    assert [(row["Name"], row["State"]) for row in rows(provider)] == [("release", "in use"), ("partner", TOO_OLD)]


async def test_a_refresh_that_is_cut_off_says_who_did_not_answer(azure: Azure) -> None:
    """As the assembly does with one that holds up a configuration."""
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    azure.vault.fault("/secrets/*", hang())
    provider = azure.provider()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await provider.refresh()
    with pytest.raises(Undecided, match=r"contoso\.vault\.azure\.net did not answer in time"):
        provider.material()


async def test_no_admission_waits_while_a_refresh_hangs(azure: Azure, images: Images) -> None:
    azure.vault.add_certificate("release", pem_secret(SIGNER.chain))
    provider = azure.provider()
    await provider.refresh()
    images.use(provider)
    azure.vault.fault("*", hang())
    asked = azure.asked
    refreshing = asyncio.create_task(provider.refresh())
    while azure.asked == asked:  # noqa: ASYNC110 - the server sets no event
        await asyncio.sleep(0.01)
    assert await images.verdicts() == RIGHT
    assert not refreshing.done()
    refreshing.cancel()
    await asyncio.gather(refreshing, return_exceptions=True)


# -- nothing of Azure where nothing of Azure is wanted ----------------------------------------------------------------


@pytest.mark.parametrize("module", ["provider.cli", "provider.cli.serve", "provider.assembly"])
def test_the_sdk_is_not_imported_before_it_is_needed(module: str) -> None:
    """Nearly a second and 10 MiB that nobody pays who is not in Azure."""
    script = f"import sys, {module}; print([name for name in sys.modules if name.split('.')[0] in ('azure', 'msal')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
