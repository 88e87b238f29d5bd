"""Pull secrets: what is one, which entry of which secret is for a repository, what is said of a bad one."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.credentials.docker_config import MAX_CONFIG_BYTES
from provider.credentials.pull_secrets import (
    MAX_PATTERNS,
    MAX_SECRETS,
    Match,
    ObjectName,
    PullSecret,
    named_secrets,
)
from provider.errors import Undecided
from provider.interfaces import Credential

NAME = ObjectName("team-a", "pull")
MODERN = "kubernetes.io/dockerconfigjson"
LEGACY = "kubernetes.io/dockercfg"
SECRET = "hunter2-password"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def entry(user: str) -> dict[str, str]:
    return {"auth": b64(f"{user}:{SECRET}".encode())}


def parsed(auths: dict[str, Any], name: ObjectName = NAME) -> PullSecret:
    return PullSecret.parse(name, MODERN, {".dockerconfigjson": b64(json.dumps({"auths": auths}).encode())})


def users(secret: PullSecret, repository: str) -> list[str]:
    """Users of the entries that cover a repository, the most specific first."""
    domain, _, path = repository.partition("/")
    found = sorted(secret.matches(domain, path), key=lambda match: match.rank)
    return [match.credential.username if match.credential else match.problem for match in found]


def refused(kind: str | None, data: dict[str, Any] | None) -> Undecided:
    with pytest.raises(Undecided) as caught:
        PullSecret.parse(NAME, kind, data)
    error = caught.value
    assert error.code == "CREDENTIALS_UNAVAILABLE"
    assert "team-a/pull" in error.reason, "a person has to find it"
    assert error.remediation
    return error


class TestForms:
    def test_the_form_of_today_and_the_form_of_old_say_the_same(self) -> None:
        auths = {"reg.test": entry("robot"), "https://index.docker.io/v1/": entry("hub")}
        modern = parsed(auths)
        legacy = PullSecret.parse(NAME, LEGACY, {".dockercfg": b64(json.dumps(auths).encode())})
        for secret in (modern, legacy):
            assert users(secret, "reg.test/team/app") == ["robot"]
            assert users(secret, "docker.io/library/nginx") == ["hub"]

    def test_of_a_docker_configuration_only_auths_counts_so_that_no_secret_chooses_a_program_to_run(self) -> None:
        document = {"auths": {"reg.test": entry("robot")}, "credsStore": "../../evil", "credHelpers": {"reg.test": 7}}
        secret = PullSecret.parse(NAME, MODERN, {".dockerconfigjson": b64(json.dumps(document).encode())})
        assert users(secret, "reg.test/a") == ["robot"]

    @pytest.mark.parametrize("document", [{}, {"auths": {}}, {"auths": {"reg.test": {}}}, {"credsStore": "desktop"}])
    def test_a_configuration_without_credentials_is_none_that_is_broken(self, document: dict[str, Any]) -> None:
        secret = PullSecret.parse(NAME, MODERN, {".dockerconfigjson": b64(json.dumps(document).encode())})
        assert users(secret, "reg.test/a") == []

    @pytest.mark.parametrize(
        "kind", [None, "Opaque", "kubernetes.io/tls", "kubernetes.io/service-account-token", "x\n"]
    )
    def test_a_secret_of_another_purpose_is_no_pull_secret(self, kind: str | None) -> None:
        error = refused(kind, {".dockerconfigjson": b64(json.dumps({"auths": {"r": entry("u")}}).encode())})
        assert "no pull secret" in error.reason
        assert "\n" not in str(error)

    @pytest.mark.parametrize("data", [None, {}, {".dockercfg": b64(b"{}")}, {".dockerconfigjson": ""}])
    def test_a_pull_secret_without_its_key_says_which(self, data: dict[str, str] | None) -> None:
        assert "nothing under .dockerconfigjson" in refused(MODERN, data).reason

    @pytest.mark.parametrize(
        "data",
        [
            b"not json",
            b"[]",
            b'"auths"',
            b'{"auths": []}',
            b'{"auths": null}',
            b'{"auths": "x"}',
            b'{"auths": {"a": {}}, "auths": {}}',
            b"\xff\xfe",
            b"[" * 100_000,
        ],
    )
    def test_garbage_is_told_without_being_quoted(self, data: bytes) -> None:
        assert "holds no Docker configuration" in refused(MODERN, {".dockerconfigjson": b64(data)}).reason

    def test_what_is_not_base64_is_garbage(self) -> None:
        error = refused(MODERN, {".dockerconfigjson": f"%{SECRET}%"})
        assert SECRET not in str(error) + repr(error)

    @pytest.mark.parametrize("value", [7, None, ["a"], {"a": "b"}, True])
    def test_data_that_is_no_text_is_garbage(self, value: Any) -> None:
        refused(MODERN, {".dockerconfigjson": value})

    def test_a_secret_that_is_too_large_is_told_so_and_not_read(self) -> None:
        error = refused(MODERN, {".dockerconfigjson": b64(b" " * (MAX_CONFIG_BYTES + 10))})
        assert "too large" in error.reason
        assert str(MAX_CONFIG_BYTES) in str(error)

    def test_a_secret_of_the_largest_size_is_read(self) -> None:
        document = json.dumps({"auths": {"reg.test": entry("robot")}}).encode()
        padded = document + b" " * (MAX_CONFIG_BYTES - len(document))
        assert users(PullSecret.parse(NAME, MODERN, {".dockerconfigjson": b64(padded)}), "reg.test/a") == ["robot"]

    @given(data=st.binary(max_size=200), kind=st.sampled_from([MODERN, LEGACY]))
    def test_any_bytes_are_a_pull_secret_or_our_error(self, data: bytes, kind: str) -> None:
        key = {MODERN: ".dockerconfigjson", LEGACY: ".dockercfg"}[kind]
        found: list[Match] = []
        with contextlib.suppress(Undecided):
            found = list(PullSecret.parse(NAME, kind, {key: b64(data)}).matches("reg.test", "a"))
        assert found == []

    @given(
        auths=st.dictionaries(
            st.text("*?.:/reg[]-tes", max_size=24) | st.text(max_size=8),
            st.just(entry("robot")) | st.none() | st.integers() | st.dictionaries(st.text(), st.text(), max_size=2),
            max_size=6,
        )
    )
    def test_any_keys_and_entries_are_borne(self, auths: dict[str, Any]) -> None:
        secret = parsed(auths)
        for domain in ("reg.test", "reg.test:5000", "[::1]:5000", "docker.io", "localhost"):
            for match in secret.matches(domain, "team/app"):
                assert isinstance(match, Match)
                assert (match.credential is None) == bool(match.problem)


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "repository", "covered"),
        [
            ("reg.test", "reg.test/team/app", True),
            ("https://reg.test", "reg.test/team/app", True),
            ("https://reg.test/v2/", "reg.test/team/app", True),
            ("REG.test", "reg.test/team/app", True),
            ("reg.test:5000", "reg.test:5000/team/app", True),
            ("reg.test:5000", "reg.test/team/app", False),
            ("reg.test", "reg.test:5000/team/app", False),
            ("reg.test/team", "reg.test/team/app", True),
            ("reg.test/team/app", "reg.test/team/app", True),
            ("reg.test/team/app", "reg.test/team", False),
            # the examples of Kubernetes' page on images
            ("*.kubernetes.io", "kubernetes.io/app", False),
            ("*.kubernetes.io", "abc.kubernetes.io/app", True),
            ("*.*.kubernetes.io", "abc.kubernetes.io/app", False),
            ("*.*.kubernetes.io", "abc.def.kubernetes.io/app", True),
            ("prefix.*.io", "prefix.kubernetes.io/app", True),
            ("*-good.kubernetes.io", "prefix-good.kubernetes.io/app", True),
            ("my-registry.example/images", "my-registry.example/images/my-app", True),
            ("*.my-registry.example/images", "sub.my-registry.example/images/my-app", True),
            # and what follows from them
            ("*.kubernetes.io", "a.b.kubernetes.io/app", False),
            ("https://*.example.test", "reg.example.test/app", True),
            ("reg?.example.test", "reg1.example.test/app", True),
            ("reg?.example.test", "reg.example.test/app", False),
            ("reg?.example.test", "reg12.example.test/app", False),
            ("r*g*.example.test", "regulating.example.test/app", True),
            ("r*x.example.test", "regulating.example.test/app", False),
            ("*.example.test:5000", "reg.example.test:5000/app", True),
            ("*.example.test:5000", "reg.example.test/app", False),
            ("*.example.test", "reg.example.test:5000/app", False),
            ("reg.example.test:*", "reg.example.test:5000/app", False),
            ("reg.example.test/*", "reg.example.test/app", False),
            # N08: nothing that only begins or ends alike
            ("reg.test", "reg.test.evil.org/team/app", False),
            ("reg.test/team", "reg.test/team-evil/app", False),
            ("*.example.test/team", "reg.example.test/team-evil/app", False),
            ("*.example.test", "reg.example.test.evil.org/app", False),
            ("*.example.test", "reg.evilexample.test/app", False),
            ("*", "reg.test/app", False),
            ("*", "localhost/app", True),
            ("", "reg.test/app", False),
            ("*/", "reg.test/app", False),
            ("https://", "docker.io/library/nginx", False),
        ],
    )
    def test_n08_a_key_covers_what_the_kubelet_would_pull_with_it(
        self, key: str, repository: str, covered: bool
    ) -> None:
        assert users(parsed({key: entry("robot")}), repository) == (["robot"] if covered else [])

    def test_the_most_specific_key_comes_first_whatever_their_order(self) -> None:
        keys = ["reg.a.test/team/app", "reg.a.test/team", "reg.a.test", "*.a.test/team/app", "r*.a.test", "*.a.test"]
        for order in (keys, keys[::-1]):
            assert users(parsed({key: entry(key) for key in order}), "reg.a.test/team/app") == keys

    def test_between_equals_of_several_secrets_the_first_secret_comes_first(self) -> None:
        secrets = [parsed({"reg.test": entry(f"robot-{number}")}) for number in range(3)]
        matches = sorted(
            (match for secret in secrets for match in secret.matches("reg.test", "a")), key=lambda match: match.rank
        )
        assert [match.credential and match.credential.username for match in matches] == [
            "robot-0",
            "robot-1",
            "robot-2",
        ]

    def test_a_broken_entry_spoils_no_other_and_names_its_secret(self) -> None:
        secret = parsed(
            {"reg.test/team": {"auth": f"{SECRET}!"}, "*.test": entry("good"), "other.test": entry("other")}
        )
        assert users(secret, "other.test/a") == ["other", "good"]
        [problem, user] = users(secret, "reg.test/team/app")
        assert (
            problem
            == "the entry for reg.test/team in the Secret team-a/pull has an auth that is not base64 of UTF-8 text"
        )
        assert user == "good"
        assert SECRET not in problem

    def test_identity_tokens_are_read_too(self) -> None:
        [match] = parsed({"reg.test": {"identitytoken": SECRET}}).matches("reg.test", "a")
        assert match.credential == Credential(identity_token=SECRET)

    def test_more_patterns_than_can_be_compared_in_time_are_refused(self) -> None:
        def patterns(number: int) -> dict[str, str]:
            auths = {f"*.zone{index}.test": entry("u") for index in range(number)}
            return {".dockerconfigjson": b64(json.dumps({"auths": auths}).encode())}

        assert users(PullSecret.parse(NAME, MODERN, patterns(MAX_PATTERNS)), "a.zone7.test/b") == ["u"]
        assert "too many keys with wildcards" in refused(MODERN, patterns(MAX_PATTERNS + 1)).reason

    def test_n23_a_pattern_made_to_be_slow_is_not(self) -> None:
        label = "a" * 63
        secret = parsed({f"{'*a' * 60}b.test": entry("u"), f"{'*' * 100_000}.test": entry("u")})
        assert users(secret, f"{label}.test/x") == []  # at once; backtracking would run into the test's time limit


class TestServiceAccounts:
    def test_its_secrets_are_of_its_namespace_each_once(self) -> None:
        assert named_secrets(ObjectName("team-a", "robot"), ["one", None, "", "two.x", "one"]) == (
            ObjectName("team-a", "one"),
            ObjectName("team-a", "two.x"),
        )

    @pytest.mark.parametrize(
        "name",
        [
            "../../team-b/secrets/other",
            "a/b",
            "..",
            ".",
            "%2e%2e",
            "a?watch=1",
            "UPPER",
            "a b",
            "a\n",
            "é",
            "a" * 254,
            "-a",
        ],
    )
    def test_n06_a_name_that_would_lead_to_another_object_is_refused(self, name: str) -> None:
        with pytest.raises(Undecided) as caught:
            named_secrets(ObjectName("team-a", "robot"), ["good", name])
        assert caught.value.code == "CREDENTIALS_UNAVAILABLE"
        assert "ServiceAccount team-a/robot" in caught.value.reason
        assert "\n" not in str(caught.value)

    def test_more_than_anybody_has_are_refused(self) -> None:
        account = ObjectName("team-a", "robot")
        assert len(named_secrets(account, [f"s{number}" for number in range(MAX_SECRETS)])) == MAX_SECRETS
        with pytest.raises(Undecided, match="too many pull secrets"):
            named_secrets(account, [f"s{number}" for number in range(MAX_SECRETS + 1)])


def test_n11_no_secret_is_in_a_representation() -> None:
    secret = parsed({"reg.test": entry("robot"), "*.test": entry("robot"), "x.test": {"auth": SECRET}})
    shown = repr(secret) + repr(list(secret.matches("reg.test", "a"))) + repr(secret.patterns)
    assert SECRET not in shown
    assert "robot" not in shown
