"""Docker configuration files: which entry covers a repository, what is broken, how helpers are spoken to."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.credentials.docker_config import (
    HELPER_KEEP_SECONDS,
    REFUSAL_PAUSE_SECONDS,
    DockerConfig,
    DockerConfigCredentials,
)
from provider.errors import ConfigurationError, Undecided
from provider.interfaces import Credential
from tests.simulators.stores import Clock


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def parsed(auths: dict[str, Any], **more: Any) -> DockerConfig:
    return DockerConfig.parse(json.dumps({"auths": auths, **more}).encode())


def entry(user: str) -> dict[str, str]:
    return {"auth": encoded(user, "secret")}


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "repository", "covered"),
        [
            ("reg.example.test", "reg.example.test/team/app", True),
            ("https://reg.example.test", "reg.example.test/team/app", True),
            ("HTTP://REG.example.test/", "reg.example.test/team/app", True),
            ("https://reg.example.test/v1/", "reg.example.test/team/app", True),
            ("https://reg.example.test/v2/", "reg.example.test/team/app", True),
            ("reg.example.test:5000", "reg.example.test:5000/team/app", True),
            ("reg.example.test/team", "reg.example.test/team/app", True),
            ("https://reg.example.test/team/app/", "reg.example.test/team/app", True),
            ("https://index.docker.io/v1/", "docker.io/library/nginx", True),
            ("index.docker.io", "docker.io/library/nginx", True),
            ("docker.io/v1/", "docker.io/library/nginx", True),
            ("registry-1.docker.io", "docker.io/library/nginx", True),
            ("docker.io/library", "docker.io/library/nginx", True),
            # N08: nothing that only begins alike
            ("reg.example.test", "reg.example.test.evil.org/team/app", False),
            ("reg.example.test", "reg.example.test:5000/team/app", False),
            ("reg.example.test:5000", "reg.example.test/team/app", False),
            ("example.test", "reg.example.test/team/app", False),
            ("reg.example.test/team", "reg.example.test/team-evil/app", False),
            ("reg.example.test/team/app", "reg.example.test/team", False),
            ("reg.example.test/v2", "reg.example.test/team/app", False),
            ("*", "reg.example.test/team/app", False),
            ("", "reg.example.test/team/app", False),
            ("/", "docker.io/library/nginx", False),
            ("https://", "docker.io/library/nginx", False),
        ],
    )
    def test_n08_a_key_covers_whole_components_of_its_own_registry(
        self, key: str, repository: str, covered: bool
    ) -> None:
        domain, _, path = repository.partition("/")
        found = parsed({key: entry("robot")}).lookup(domain, path)
        assert found == (Credential("robot", "secret") if covered else None)

    def test_the_longest_key_wins(self) -> None:
        config = parsed(
            {
                "reg.test": entry("all"),
                "reg.test/team/app": entry("app"),
                "reg.test/team": entry("team"),
                "reg.test/x": {},
            }
        )
        users = [config.lookup("reg.test", path) for path in ("team/app", "team/app/sub", "team/other", "other", "x/y")]
        assert [user and user.username for user in users] == ["app", "app", "team", "all", "all"]

    def test_of_two_spellings_the_first_that_says_something_counts(self) -> None:
        config = parsed({"reg.test": {}, "https://reg.test": entry("one"), "https://reg.test/v2/": entry("two")})
        assert config.lookup("reg.test", "a") == Credential("one", "secret")


class TestEntries:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"auth": encoded("user", "pass:word")}, Credential("user", "pass:word")),
            ({"auth": encoded("user", "word\0\0")}, Credential("user", "word")),
            ({"auth": encoded("<token>", "refresh")}, Credential(identity_token="refresh")),
            ({"username": "user", "password": "word"}, Credential("user", "word")),
            ({"username": "<token>", "password": "refresh"}, Credential(identity_token="refresh")),
            ({"auth": encoded("u", "p"), "identitytoken": "refresh"}, Credential(identity_token="refresh")),
            ({"auth": encoded("u", "p"), "registrytoken": "bearer"}, Credential(registry_token="bearer")),
            ({"auth": encoded("a", "b"), "username": "u", "password": "p"}, Credential("a", "b")),
            ({"email": "a@example.test"}, None),
            ({"auth": "", "identitytoken": None}, None),
            ({}, None),
        ],
    )
    def test_each_kind_of_entry_is_read(self, value: dict[str, Any], expected: Credential | None) -> None:
        assert parsed({"reg.test": value}).lookup("reg.test", "a") == expected

    @pytest.mark.parametrize(
        "value",
        [
            {"auth": "not base64!"},
            {"auth": base64.b64encode(b"\xff\xfe:x").decode()},
            {"auth": base64.b64encode(b"nocolon").decode()},
            {"auth": encoded("", "word")},
            {"auth": encoded("user", "")},
            {"auth": 7},
            {"identitytoken": ["x"]},
            {"username": "user"},
            {"password": "word"},
            "a string",
            None,
        ],
    )
    def test_a_broken_entry_is_an_error_for_what_it_covers_and_for_nothing_else(self, value: Any) -> None:
        config = parsed({"reg.test/team": value, "reg.test": entry("robot")})
        with pytest.raises(Undecided, match=r"CREDENTIALS_UNAVAILABLE.*reg\.test/team") as caught:
            config.lookup("reg.test", "team/app")
        assert config.lookup("reg.test", "other") == Credential("robot", "secret")
        assert "word" not in str(caught.value) or "password" in str(caught.value)

    @pytest.mark.parametrize(
        "document",
        [
            b"",
            b"[]",
            b"{",
            b'{"auths": []}',
            b'{"credHelpers": 7}',
            b'{"credsStore": 7}',
            b'{"credsStore": "../../bin/sh"}',
            b'{"credsStore": "-x"}',
            b'{"credsStore": "a b"}',
            b'{"credsStore": ".."}',
            b'{"credHelpers": {"reg.test": "a/b"}}',
            b'{"credHelpers": {"reg.test": null}}',
            b'{"auths": {}, "auths": {}}',
        ],
    )
    def test_a_document_that_is_none_or_names_a_path_as_helper_is_a_fault(self, document: bytes) -> None:
        with pytest.raises(ConfigurationError, match="CONFIG_INVALID"):
            DockerConfig.parse(document, "config.json")

    def test_every_fault_is_told_at_once(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            DockerConfig.parse(b'{"auths": 1, "credHelpers": {"a.test": "a/b"}, "credsStore": "/"}')
        assert [fault.path for fault in caught.value.faults] == ["auths", "credHelpers", "credsStore"]

    @given(
        st.binary(max_size=200)
        | st.recursive(
            st.none() | st.text(max_size=5),
            lambda x: st.dictionaries(
                st.sampled_from(["auths", "credHelpers", "credsStore", "reg.test", "auth"]), x, max_size=4
            ),
        ).map(lambda value: json.dumps(value).encode())
    )
    def test_n70_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        try:
            config = DockerConfig.parse(data)
            config.lookup("reg.test", "a")
        except (ConfigurationError, Undecided):
            pass

    def test_n11_no_secret_is_in_the_repr(self) -> None:
        assert "secret" not in repr(parsed({"reg.test": entry("robot")}))


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "config.json"

    @staticmethod
    def write(path: Path, auths: dict[str, Any], **more: Any) -> None:
        """Replace the file, as Kubernetes and docker login do: never the same inode."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"auths": auths, **more}))
        fresh.rename(path)

    @staticmethod
    def remove(path: Path) -> None:
        path.unlink()

    async def test_the_file_is_read_again_when_it_changes(self, path: Path) -> None:
        self.write(path, {"reg.test": entry("one")})
        source = DockerConfigCredentials(path)
        assert await source.credential("reg.test", "a") == Credential("one", "secret")
        self.write(path, {"reg.test": entry("two")})
        assert await source.credential("reg.test", "a") == Credential("two", "secret")
        assert await source.credential("other.test", "a") is None

    async def test_the_folder_that_docker_config_names_will_do(self, path: Path) -> None:
        self.write(path, {"reg.test": entry("one")})
        assert await DockerConfigCredentials(path.parent).credential("reg.test", "a") == Credential("one", "secret")

    async def test_a_file_that_is_missing_is_an_error_or_anonymous_access_as_configured(self, path: Path) -> None:
        with pytest.raises(Undecided, match=r"CREDENTIALS_UNAVAILABLE.*does not exist"):
            await DockerConfigCredentials(path).credential("reg.test", "a")
        source = DockerConfigCredentials(path, required=False)
        assert await source.credential("reg.test", "a") is None
        self.write(path, {"reg.test": entry("one")})
        assert await source.credential("reg.test", "a") == Credential("one", "secret")
        self.remove(path)
        assert await source.credential("reg.test", "a") is None

    async def test_a_file_that_breaks_leaves_the_last_good_one(self, path: Path) -> None:
        self.write(path, {"reg.test": entry("one")})
        source = DockerConfigCredentials(path)
        await source.credential("reg.test", "a")
        self.write(path, {}, credsStore="../x")
        for _ in range(2):
            assert await source.credential("reg.test", "a") == Credential("one", "secret")

    async def test_a_file_that_never_was_good_is_an_error_until_it_is(self, path: Path) -> None:
        self.write(path, [])  # type: ignore[arg-type]
        source = DockerConfigCredentials(path, required=False)
        for _ in range(2):
            with pytest.raises(Undecided, match=r"CREDENTIALS_UNAVAILABLE.*not valid"):
                await source.credential("reg.test", "a")
        self.write(path, {"reg.test": entry("one")})
        assert await source.credential("reg.test", "a") == Credential("one", "secret")

    async def test_a_name_that_is_too_long_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(Undecided, match="CREDENTIALS_UNAVAILABLE"):
            await DockerConfigCredentials(tmp_path / ("x" * 1000)).credential("reg.test", "a")


class Helpers:
    """Programs `docker-credential-<name>` in a folder of their own, written in Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def add(self, name: str, code: str) -> None:
        path = self.folder / f"docker-credential-{name}"
        preamble = "import json, os, sys, time\nserver = sys.stdin.read()\n"
        note = f"open({str(self.log)!r}, 'a').write(sys.argv[1] + ' ' + server + chr(10))\n"
        path.write_text(f"#!{sys.executable} -S\n{preamble}{note}{code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def source(self, clock: Clock | None = None, timeout: float = 20.0, **config: Any) -> DockerConfigCredentials:
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        return DockerConfigCredentials(
            path,
            helper_timeout_seconds=timeout,
            helper_environment={"PATH": str(self.folder)},
            monotonic=clock or Clock(),
        )

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helpers:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Helpers(tmp_path)


ANSWER = "print(json.dumps({'ServerURL': server, 'Username': 'robot', 'Secret': 'from-helper'}))"


class TestHelpers:
    """These start processes: real ones, tiny ones."""

    async def test_a_helper_is_asked_for_its_registry_and_its_answer_kept_for_a_while(self, helpers: Helpers) -> None:
        helpers.add("vault", ANSWER)
        clock = Clock()
        source = helpers.source(clock, credHelpers={"reg.test": "vault"}, auths={"other.test": entry("file")})
        assert (
            await asyncio.gather(*(source.credential("reg.test", "a") for _ in range(3)))
            == [Credential("robot", "from-helper")] * 3
        )
        assert await source.credential("other.test", "a") == Credential("file", "secret")
        assert helpers.calls == ["get reg.test"]
        clock.now += HELPER_KEEP_SECONDS + 1
        await source.credential("reg.test", "a")
        assert len(helpers.calls) == 2

    async def test_a_helper_is_asked_again_when_a_registry_refused_but_not_for_every_refusal(
        self, helpers: Helpers
    ) -> None:
        helpers.add("vault", ANSWER)
        clock = Clock()
        source = helpers.source(clock, credHelpers={"reg.test": "vault"}, auths={"other.test": entry("file")})
        source.refused("reg.test", "a")
        await source.credential("reg.test", "a")
        clock.now += REFUSAL_PAUSE_SECONDS - 1
        source.refused("reg.test", "a")
        await source.credential("reg.test", "a")
        assert len(helpers.calls) == 1
        clock.now += 1
        source.refused("other.test", "a")
        await source.credential("reg.test", "a")
        assert len(helpers.calls) == 1
        source.refused("reg.test", "a")
        helpers.add("vault", ANSWER.replace("from-helper", "rotated"))
        assert await source.credential("reg.test", "a") == Credential("robot", "rotated")

    async def test_docker_hub_is_asked_for_under_its_old_name(self, helpers: Helpers) -> None:
        helpers.add("desktop", ANSWER.replace("'robot'", "'<token>'"))
        source = helpers.source(credsStore="desktop", credHelpers={"own.test": ""}, auths={"own.test": entry("file")})
        assert await source.credential("docker.io", "library/nginx") == Credential(identity_token="from-helper")
        assert await source.credential("own.test", "a") == Credential("file", "secret")
        assert helpers.calls == ["get https://index.docker.io/v1/"]

    async def test_a_helper_that_knows_nothing_leaves_it_to_the_file_or_to_anonymous_access(
        self, helpers: Helpers
    ) -> None:
        helpers.add("empty", "print('credentials not found in native keychain'); sys.exit(1)")
        source = helpers.source(credsStore="empty", auths={"reg.test": entry("file")})
        assert await source.credential("reg.test", "a") == Credential("file", "secret")
        for _ in range(2):
            assert await source.credential("other.test", "a") is None
        assert len(helpers.calls) == 2

    @pytest.mark.parametrize(
        "code",
        [
            "print('the vault is sealed: topsecret'); sys.exit(1)",
            "print('topsecret')",
            "print(json.dumps({'Username': 'topsecret'}))",
            "print(json.dumps({'Username': '', 'Secret': 'topsecret'}))",
            "print(json.dumps(['topsecret']))",
            "os.kill(os.getpid(), 9)",
            "sys.stdout.write('topsecret' * 10**6)",
        ],
    )
    async def test_a_helper_that_fails_is_an_error_and_is_asked_again(self, helpers: Helpers, code: str) -> None:
        helpers.add("broken", code)
        source = helpers.source(credsStore="broken", auths={"reg.test": entry("file")})
        for _ in range(2):
            with pytest.raises(Undecided, match=r"CREDENTIALS_UNAVAILABLE.*docker-credential-broken") as caught:
                await source.credential("reg.test", "a")
            assert "topsecret" not in str(caught.value)
        assert len(helpers.calls) == 2

    async def test_a_helper_that_is_not_there_is_an_error(self, helpers: Helpers) -> None:
        source = helpers.source(credsStore="nowhere")
        with pytest.raises(Undecided, match=r"CREDENTIALS_UNAVAILABLE.*cannot be run"):
            await source.credential("reg.test", "a")

    @pytest.mark.parametrize(
        "code",
        [
            "time.sleep(600)",
            "sys.stdout.close(); os.close(1); time.sleep(600)",
            "pid = os.fork()\nif pid == 0: time.sleep(600)",
        ],
        ids=["says nothing", "does not end", "leaves a child behind"],
    )
    async def test_a_helper_that_does_not_end_is_ended_with_what_it_started(self, helpers: Helpers, code: str) -> None:
        helpers.add("slow", f"open({str(helpers.folder / 'pid')!r}, 'w').write(str(os.getpid()))\n{code}")
        source = helpers.source(timeout=1.0, credsStore="slow")
        with pytest.raises(Undecided, match=r"CREDENTIALS_UNAVAILABLE.*did not answer within 1 s"):
            await source.credential("reg.test", "a")
        group = int((helpers.folder / "pid").read_text())
        for _ in range(100):  # a killed orphan stays a moment, until init has waited for it
            if not alive(group):
                break
            await asyncio.sleep(0.02)
        assert not alive(group)

    async def test_a_helper_that_does_not_listen_may_answer_all_the_same(self, helpers: Helpers) -> None:
        path = helpers.folder / "docker-credential-deaf"
        path.write_text('#!/bin/sh\nexec <&-\necho \'{"Username": "robot", "Secret": "x"}\'\n')
        path.chmod(0o755)
        source = helpers.source(credsStore="deaf")
        assert await source.credential("reg.test", "a") == Credential("robot", "x")

    async def test_closing_ends_helpers_under_way(self, helpers: Helpers) -> None:
        helpers.add("slow", "time.sleep(600)")
        source = helpers.source(credsStore="slow")
        waiting = asyncio.create_task(source.credential("reg.test", "a"))
        while not helpers.calls:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
        await source.aclose()
        with pytest.raises(Undecided):
            await waiting


def alive(group: int) -> bool:
    """Whether a process of this group is left that is not a zombie."""
    for entry_path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry_path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False
