"""A trust policy is valid as a whole or not at all, and every fault in it is named with its path."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import ConfigurationError, Refused
from provider.notation.trust_policy import (
    LEVEL_ACTIONS,
    MAX_IDENTITIES,
    MAX_POLICY_BYTES,
    Action,
    Check,
    Level,
    StoreType,
    TrustPolicyDocument,
    VerifyTimestamp,
)

REPOSITORY = "registry.example.com/team/app"
STATEMENT: dict[str, Any] = {
    "name": "p",
    "registryScopes": [REPOSITORY],
    "signatureVerification": {"level": "strict"},
    "trustStores": ["ca:contoso"],
    "trustedIdentities": ["x509.subject: C=US, ST=WA, O=Contoso"],
}
SKIP: dict[str, Any] = {
    "name": "skipped",
    "registryScopes": ["registry.example.com/test"],
    "signatureVerification": {"level": "skip"},
}
AT = "trustPolicies[0]"


def document(*statements: object) -> dict[str, Any]:
    return {"version": "1.0", "trustPolicies": [copy.deepcopy(statement) for statement in statements]}


def statement(**changes: object) -> dict[str, Any]:
    """The valid statement with members replaced; None removes one."""
    return {key: value for key, value in {**STATEMENT, **changes}.items() if value is not None}


def verification(**members: object) -> dict[str, Any]:
    return statement(signatureVerification=members)


def read(*statements: object) -> TrustPolicyDocument:
    return TrustPolicyDocument.from_object(document(*statements))


def faults(value: object) -> list[tuple[str, str]]:
    with pytest.raises(ConfigurationError) as caught:
        TrustPolicyDocument.from_object(value)
    assert caught.value.code == "TRUST_POLICY_INVALID"
    assert all((fault.source, fault.resource) == ("", "") for fault in caught.value.faults)
    return [(fault.path, fault.message) for fault in caught.value.faults]


def fault(*statements: object) -> tuple[str, str]:
    found = faults(document(*statements))
    assert len(found) == 1, found
    return found[0]


# -- the document -----------------------------------------------------------------------------------------------------


def test_a_document_as_notation_s_own_is_read() -> None:
    policy = TrustPolicyDocument.parse(json.dumps(document(STATEMENT, SKIP)).encode())
    strict, skipped = policy.statements
    assert (strict.name, strict.registry_scopes) == ("p", (REPOSITORY,))
    assert (strict.level, strict.level_name, strict.skips) == (Level.STRICT, "strict", False)
    assert strict.verify_timestamp is VerifyTimestamp.ALWAYS
    assert strict.trust_stores == ((StoreType.CA, "contoso"),)
    assert [identity.text for identity in strict.trusted_identities] == STATEMENT["trustedIdentities"]
    assert (skipped.level, skipped.skips, skipped.trust_stores, skipped.trusted_identities) == (
        Level.SKIP,
        True,
        (),
        (),
    )
    assert policy.warnings == ()


def test_two_readings_of_a_document_are_equal_and_other_actions_make_a_difference() -> None:
    assert read(STATEMENT) == read(STATEMENT)
    assert hash(read(STATEMENT)) == hash(read(STATEMENT))
    assert read(STATEMENT) != read(verification(level="strict", override={"expiry": "log"}))


@pytest.mark.parametrize("version", [None, "", "1.1", "1", 1.0, 1, True, ["1.0"], "1.0 "])
def test_another_version_is_refused(version: object) -> None:
    ((path, message),) = faults(document(STATEMENT) | {"version": version})
    assert path == "version"
    assert "in quotes" in message


@pytest.mark.parametrize("statements", [None, []])
def test_n58_a_document_without_statements_is_refused(statements: object) -> None:
    assert faults({"version": "1.0", "trustPolicies": statements}) == [
        ("trustPolicies", "must list at least one statement")
    ]
    assert faults({"version": "1.0"}) == [("trustPolicies", "must list at least one statement")]


@pytest.mark.parametrize("value", [None, [], "x", 1, True, [document(STATEMENT)]])
def test_a_document_that_is_no_object_is_refused(value: object) -> None:
    ((path, message),) = faults(value)
    assert path == ""
    assert message.startswith("must be an object with version, trustPolicies")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not strict JSON"),
        (b"{} x", "not strict JSON"),
        (b'{"version":"1.0","version":"1.0"}', "duplicate"),
        (b"\xff", "not UTF-8"),
        (b"[" * 1000, "nested"),
        (b" " * (MAX_POLICY_BYTES + 1), f"more than {MAX_POLICY_BYTES} bytes"),
    ],
)
def test_bytes_that_are_no_strict_json_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        TrustPolicyDocument.parse(data)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (document(STATEMENT) | {"foo": 1}, "foo"),
        (document(STATEMENT) | {"Version": "1.0"}, "Version"),
        (document(statement(trustedIdentitys=["*"])), f"{AT}.trustedIdentitys"),
        (document(statement(globalPolicy=True)), f"{AT}.globalPolicy"),
        (document(verification(level="strict", Override={})), f"{AT}.signatureVerification.Override"),
        (
            document(verification(level="strict", override={"Expiry": "log"})),
            f"{AT}.signatureVerification.override.Expiry",
        ),
        (document(STATEMENT) | {1: 2}, "1"),
        (document(STATEMENT) | {10**5000: 2}, "a int"),
        (document(STATEMENT) | {(1, 2): 2}, "a tuple"),
        (document(STATEMENT) | {"\x1b[2J": 2}, "\ufffd[2J"),
        (document(STATEMENT) | {"x" * 500: 2}, "x" * 79 + "…"),
    ],
)
def test_a_member_that_is_not_known_is_a_fault_and_not_ignored(value: object, path: str) -> None:
    ((found, message),) = faults(value)
    assert found == path
    assert "is not a known member" in message


def test_every_fault_is_reported_at_once() -> None:
    value = {
        "version": "2.0",
        "extra": 1,
        "trustPolicies": [
            {
                "name": " ",
                "registryScopes": ["*", "registry.example.com/A", 7],
                "signatureVerification": {"level": "Strict", "override": {"integrity": "log", "expiry": "skip"}},
                "trustStores": ["ca", "x:y", "ca:..", 5],
                "trustedIdentities": ["", "x509.subject: C=US", None],
            },
            "no object",
            {"name": "q"},
            {"name": "q", **{key: value for key, value in SKIP.items() if key != "name"}, "trustStores": ["ca:a"]},
        ],
    }
    assert [path for path, _ in faults(value)] == [
        "extra",
        "version",
        "trustPolicies[0].name",
        "trustPolicies[0].signatureVerification.level",
        "trustPolicies[0].signatureVerification.override.integrity",
        "trustPolicies[0].signatureVerification.override.expiry",
        "trustPolicies[0].registryScopes[0]",
        "trustPolicies[0].registryScopes[1]",
        "trustPolicies[0].registryScopes[2]",
        "trustPolicies[0].trustStores[0]",
        "trustPolicies[0].trustStores[1]",
        "trustPolicies[0].trustStores[2]",
        "trustPolicies[0].trustStores[3]",
        "trustPolicies[0].trustedIdentities[0]",
        "trustPolicies[0].trustedIdentities[1]",
        "trustPolicies[0].trustedIdentities[2]",
        "trustPolicies[1]",
        "trustPolicies[2].signatureVerification",
        "trustPolicies[2].registryScopes",
        "trustPolicies[2].trustStores",
        "trustPolicies[2].trustedIdentities",
        "trustPolicies[3].name",
        "trustPolicies[3].trustStores",
    ]


def test_the_error_s_reason_shows_the_first_fault_and_counts_the_others() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrustPolicyDocument.from_object({"version": "1.0", "a": 1, "b": 2})
    assert caught.value.reason.startswith("the trust policy is invalid: a: is not a known member")
    assert caught.value.reason.endswith("(and 2 more)")


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "  ", "\t\n", "\u2003"])
def test_a_blank_name_is_refused(name: str) -> None:
    assert fault(statement(name=name)) == (f"{AT}.name", "must not be blank")


@pytest.mark.parametrize(("name", "shown"), [(None, "nothing"), (1, "1"), (["p"], "a list"), ({}, "a dict")])
def test_a_name_that_is_no_string_is_refused(name: object, shown: str) -> None:
    value = document(STATEMENT)
    value["trustPolicies"][0]["name"] = name
    assert faults(value) == [(f"{AT}.name", f"must be a string, found {shown}")]


def test_a_name_twice_is_refused_and_case_makes_another_name() -> None:
    assert fault(STATEMENT, SKIP | {"name": "p"})[0] == "trustPolicies[1].name"
    assert len(read(STATEMENT, SKIP | {"name": "P"}).statements) == 2


# -- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "actions"),
    [
        ("strict", "enforce enforce enforce enforce enforce"),
        ("permissive", "enforce enforce log log log"),
        ("audit", "enforce log log log log"),
    ],
)
def test_levels_have_the_actions_of_the_specification(level: str, actions: str) -> None:
    found = read(verification(level=level)).statements[0]
    assert [found.action(check).value for check in Check] == actions.split()
    assert found.level_name == level


def test_skip_has_no_check() -> None:
    assert {read(SKIP).statements[0].action(check) for check in Check} == {Action.SKIP}


def test_integrity_is_enforced_at_every_level_but_skip() -> None:
    assert {level for level in Level if LEVEL_ACTIONS[level][Check.INTEGRITY] is not Action.ENFORCE} == {Level.SKIP}


@pytest.mark.parametrize("level", [None, "", "Strict", "custom", "none", 1, ["strict"]])
def test_another_level_is_refused(level: object) -> None:
    path, message = fault(verification(level=level))
    assert path == f"{AT}.signatureVerification.level"
    assert message.startswith("must be one of strict, permissive, audit, skip; found ")


@pytest.mark.parametrize("value", [None, "strict", [], 1])
def test_a_verification_that_is_no_object_is_refused(value: object) -> None:
    found = document(STATEMENT)
    found["trustPolicies"][0]["signatureVerification"] = value
    ((path, message),) = faults(found)
    assert path == f"{AT}.signatureVerification"
    assert message.startswith("must be an object")


@pytest.mark.parametrize("check", ["authenticity", "authenticTimestamp", "expiry", "revocation"])
@pytest.mark.parametrize("action", ["enforce", "log", "skip"])
@pytest.mark.parametrize("level", ["strict", "permissive", "audit"])
def test_an_override_replaces_one_action(level: str, check: str, action: str) -> None:
    value = verification(level=level, override={check: action})
    if action == "skip" and check != "revocation":
        assert fault(value) == (
            f"{AT}.signatureVerification.override.{check}",
            "cannot be skipped; only revocation can",
        )
        return
    found = read(value).statements[0]
    expected = dict(LEVEL_ACTIONS[Level(level)]) | {Check(check): Action(action)}
    assert {check: found.action(check) for check in Check} == expected
    assert found.level_name == "custom"


@pytest.mark.parametrize("action", ["enforce", "log", "skip", None])
def test_integrity_cannot_be_overridden(action: object) -> None:
    path, message = fault(verification(level="audit", override={"integrity": action}))
    assert path == f"{AT}.signatureVerification.override.integrity"
    assert "always enforced" in message


@pytest.mark.parametrize("action", [None, "", "Log", "warn", True, ["log"]])
def test_another_action_is_refused(action: object) -> None:
    path, message = fault(verification(level="strict", override={"expiry": action}))
    assert path == f"{AT}.signatureVerification.override.expiry"
    assert message.startswith("must be one of enforce, log, skip")


@pytest.mark.parametrize("override", [[], "log", 1, ["expiry"]])
def test_an_override_that_is_no_object_is_refused(override: object) -> None:
    assert fault(verification(level="strict", override=override))[0] == f"{AT}.signatureVerification.override"


@pytest.mark.parametrize("override", [None, {}])
def test_an_empty_override_changes_nothing(override: object) -> None:
    for value in (verification(level="strict", override=override), SKIP):
        value = copy.deepcopy(value)
        value["signatureVerification"]["override"] = override
        assert read(value).statements[0].level_name in ("strict", "skip")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, VerifyTimestamp.ALWAYS),
        ("", VerifyTimestamp.ALWAYS),
        ("always", VerifyTimestamp.ALWAYS),
        ("afterCertExpiry", VerifyTimestamp.AFTER_CERT_EXPIRY),
    ],
)
def test_verify_timestamp_is_read(value: object, expected: VerifyTimestamp) -> None:
    assert read(verification(level="strict", verifyTimestamp=value)).statements[0].verify_timestamp is expected


@pytest.mark.parametrize("value", ["never", "aftercertexpiry", "Always", 1, False, ["always"]])
@pytest.mark.parametrize("level", ["strict", "skip"])
def test_another_verify_timestamp_is_refused_at_every_level(value: object, level: str) -> None:
    base = SKIP if level == "skip" else STATEMENT
    path, _ = fault(base | {"signatureVerification": {"level": level, "verifyTimestamp": value}})
    assert path == f"{AT}.signatureVerification.verifyTimestamp"


# -- skip -------------------------------------------------------------------------------------------------------------


def test_skip_for_every_repository_is_refused() -> None:
    path, message = fault(SKIP | {"registryScopes": ["*"]})
    assert path == f"{AT}.registryScopes"
    assert "must name repositories" in message


@pytest.mark.parametrize("key", ["trustStores", "trustedIdentities"])
def test_skip_with_stores_or_identities_is_refused(key: str) -> None:
    assert fault(SKIP | {key: STATEMENT[key]}) == (f"{AT}.{key}", "must be absent when the level is skip")


@pytest.mark.parametrize("value", [None, []])
def test_skip_with_empty_lists_is_accepted(value: object) -> None:
    assert read(SKIP | {"trustStores": value, "trustedIdentities": value}).statements[0].skips


def test_skip_with_an_override_is_refused() -> None:
    value = SKIP | {"signatureVerification": {"level": "skip", "override": {"expiry": "log"}}}
    assert fault(value) == (f"{AT}.signatureVerification.override", "must be absent when the level is skip")


# -- scopes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scope",
    [
        "localhost/team",
        "localhost:5000/test-repo",
        "library/registry",
        "10.0.0.1:8080/a/b",
        "Registry.Example.COM/a",
        "x--y.test/a",
        "registry.example.com/a__b/c-d/e.f/g---h/0",
        "a/b",
    ],
)
def test_repositories_in_full_are_scopes(scope: str) -> None:
    policy = read(statement(registryScopes=[scope]))
    assert policy.select(scope).name == "p"


@pytest.mark.parametrize(
    "scope",
    [
        "",
        " ",
        "registry.example.com",
        "registry.example.com/",
        "/team/app",
        "//",
        "https://registry.example.com/app",
        "*.example.com/team",
        "registry.example.com/*",
        "registry.example.com/team/*",
        "**",
        "registry.example.com/app:v1",
        "registry.example.com/app@sha256:" + "a" * 64,
        "registry.example.com/Team",
        "registry.example.com:/team",
        "registry.example.com:http/team",
        "registry.example.com:1:2/team",
        "[::1]:5000/a",
        "registry.example.com/team//app",
        "registry.example.com/team/",
        "registry.example.com/_app",
        "registry.example.com/app_",
        "registry.example.com/-app",
        "registry.example.com/a...b",
        "registry.example.com/a..b",
        "registry.example.com/a-_b",
        "registry.example.com/a___b",
        "registry.example.com/a._b",
        "-x.test/a",
        "x-.test/a",
        "x_y.test/a",
        ".test/a",
        "test./a",
        "a..b/c",
        "registry.example.com/app\n",
        "registry.example.com\n/app",
        " registry.example.com/app",
        "registry.example.com/аpp",  # a Cyrillic letter
        "regıstry.example.com/app",
        "registry.example.com/app٣",
        "registry.example.com:٣/app",
    ],
)
def test_n35_what_is_no_repository_in_full_is_refused(scope: str) -> None:
    path, message = fault(statement(registryScopes=[scope]))
    assert path == f"{AT}.registryScopes[0]"
    assert message.startswith("must be registry/repository in full")


@pytest.mark.parametrize("scopes", [None, []])
def test_n59_a_statement_without_scopes_is_refused(scopes: object) -> None:
    assert fault(statement(registryScopes=scopes)) == (
        f"{AT}.registryScopes",
        "must list at least one repository, or * alone",
    )


@pytest.mark.parametrize("scopes", ["*", REPOSITORY, {REPOSITORY: 1}, 1, True])
def test_scopes_that_are_no_list_are_refused(scopes: object) -> None:
    path, message = fault(statement(registryScopes=scopes))
    assert path == f"{AT}.registryScopes"
    assert message.startswith("must be a list")


def test_the_wildcard_stands_alone() -> None:
    assert faults(document(statement(registryScopes=["*", REPOSITORY]))) == [
        (f"{AT}.registryScopes[0]", "is *, which must stand alone")
    ]


@pytest.mark.parametrize("scope", ["*", REPOSITORY])
def test_a_scope_belongs_to_one_statement(scope: str) -> None:
    path, message = fault(statement(registryScopes=[scope]), statement(registryScopes=[scope], name="q"))
    assert path == "trustPolicies[1].registryScopes[0]"
    assert "is listed before" in message


def test_a_scope_twice_in_one_statement_is_refused() -> None:
    assert fault(statement(registryScopes=[REPOSITORY, REPOSITORY]))[0] == f"{AT}.registryScopes[1]"


def reference_is_path(text: str) -> bool:
    """The grammar of a repository path, spelled out character by character."""
    return all(reference_is_component(component) for component in text.split("/"))


def reference_is_component(text: str) -> bool:
    runs: list[str] = []
    for character in text:
        alphanumeric = character in "abcdefghijklmnopqrstuvwxyz0123456789"
        if runs and (runs[-1][0] in "._-") != alphanumeric:
            runs[-1] += character
        else:
            runs.append(character)
    if not runs or runs[0][0] in "._-" or runs[-1][0] in "._-":
        return False
    return all(run in (".", "_", "__") or set(run) == {"-"} for run in runs if run[0] in "._-")


@given(st.text(alphabet="ab0._-/", max_size=12))
def test_scopes_follow_the_grammar_of_repository_paths(path: str) -> None:
    with contextlib.ExitStack() as stack:
        if not reference_is_path(path):
            stack.enter_context(pytest.raises(ConfigurationError))
        read(statement(registryScopes=[f"registry.example.com/{path}"]))


@pytest.mark.parametrize(
    "scope",
    [
        "registry.example.com/" + "a" * 100_000 + "!",
        "registry.example.com/" + "a-" * 50_000 + "!",
        "registry.example.com/" + "a__" * 50_000 + "!",
        "registry.example.com/" + "a/" * 50_000,
        "a" * 100_000 + "!/a",
        "a-" * 50_000 + "/a",
        "a." * 50_000 + "/a",
        "a:" + "1" * 100_000 + "!/a",
    ],
)
def test_n23_scopes_that_make_notation_go_s_expression_explode_are_refused_at_once(scope: str) -> None:
    assert fault(statement(registryScopes=[scope]))[0] == f"{AT}.registryScopes[0]"


# -- trust stores -----------------------------------------------------------------------------------------------------


def test_trust_stores_of_all_types_are_read() -> None:
    entries = ["ca:a", "signingAuthority:b_c.d-E9", "tsa:...", "ca:a"]
    assert read(statement(trustStores=entries)).statements[0].trust_stores == (
        (StoreType.CA, "a"),
        (StoreType.SIGNING_AUTHORITY, "b_c.d-E9"),
        (StoreType.TSA, "..."),
        (StoreType.CA, "a"),
    )


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("", "must be type:name"),
        ("contoso", "must be type:name"),
        ("ca:", "must have a name"),
        ("ca:.", "must have a name"),
        ("ca:..", "must have a name"),
        ("ca:a:b", "must have a name"),
        ("ca:a/b", "must have a name"),
        ("ca:*", "must have a name"),
        ("ca: a", "must have a name"),
        ("ca:a\n", "must have a name"),
        ("ca:ünï", "must have a name"),
        ("ca:notationCerts[0]", "must have a name"),
        (":x", "must be one of ca, signingAuthority, tsa"),
        ("CA:x", "must be one of ca, signingAuthority, tsa"),
        ("signingauthority:x", "must be one of ca, signingAuthority, tsa"),
        (" ca:x", "must be one of ca, signingAuthority, tsa"),
        (None, "must be a string"),
        (1, "must be a string"),
        (["ca:x"], "must be a string"),
    ],
)
def test_another_trust_store_is_refused(entry: object, why: str) -> None:
    path, message = fault(statement(trustStores=[entry]))
    assert path == f"{AT}.trustStores[0]"
    assert message.startswith(why)


@pytest.mark.parametrize("key", ["trustStores", "trustedIdentities"])
@pytest.mark.parametrize("value", [None, []])
def test_n58_a_statement_without_stores_or_identities_is_refused(key: str, value: object) -> None:
    assert fault(statement(**{key: value})) == (f"{AT}.{key}", "must list at least one entry")


@pytest.mark.parametrize("key", ["trustStores", "trustedIdentities"])
@pytest.mark.parametrize("value", ["ca:x", {}, 1, False])
def test_stores_or_identities_that_are_no_list_are_refused(key: str, value: object) -> None:
    path, message = fault(statement(**{key: value}))
    assert path == f"{AT}.{key}"
    assert message.startswith("must be a list")


# -- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identities", "path", "why"),
    [
        ([""], "[0]", "empty"),
        (["x509.subject"], "[0]", "no prefix"),
        (["x509.subject: C=US, O=A"], "[0]", "lacks ST"),
        ([1], "[0]", "must be a string"),
        (["*", "x509.subject: C=US, ST=WA, O=A"], "[0]", "must stand alone"),
        (["x509.subject: C=US, ST=WA, O=A", "*"], "[1]", "must stand alone"),
        (["x509.subject: C=US, ST=WA, O=A", "x509.subject: O=A, C=US, S=WA"], "[1]", "overlaps"),
        (["x509.subject: C=US, ST=WA, O=A, CN=x", "x509.subject: C=US, ST=WA, O=A"], "[1]", "overlaps"),
    ],
)
def test_n45_bad_identities_are_refused(identities: list[object], path: str, why: str) -> None:
    found, message = fault(statement(trustedIdentities=identities))
    assert found == f"{AT}.trustedIdentities{path}"
    assert why in message


def test_n45_identities_that_no_one_covers_the_other_are_accepted() -> None:
    identities = ["x509.subject: C=US, ST=WA, O=A, CN=x", "x509.subject: C=US, ST=WA, O=A, OU=y"]
    assert len(read(statement(trustedIdentities=identities)).statements[0].trusted_identities) == 2


def test_the_wildcard_alone_is_accepted() -> None:
    assert read(statement(trustedIdentities=["*"])).warnings == ()


def test_an_identity_with_another_prefix_is_accepted_with_a_warning() -> None:
    (warning,) = read(statement(trustedIdentities=["x509.san:foo"])).warnings
    assert warning.startswith(f"{AT}.trustedIdentities[0]: the prefix is not x509.subject")


def test_n19_more_identities_than_can_be_compared_are_refused() -> None:
    identities = [f"x509.subject: C=US, ST=WA, O=A, CN={number}" for number in range(MAX_IDENTITIES + 1)]
    assert len(read(statement(trustedIdentities=identities[:-1])).statements) == 1
    path, message = fault(statement(trustedIdentities=identities))
    assert path == f"{AT}.trustedIdentities"
    assert str(MAX_IDENTITIES) in message


# -- selection --------------------------------------------------------------------------------------------------------


POLICY = read(
    statement(name="w", registryScopes=["*"]),
    statement(name="e", registryScopes=[REPOSITORY, "registry.example.com:5000/team/app"]),
)
EXACT = read(STATEMENT)


@pytest.mark.parametrize(
    ("repository", "name"),
    [
        (REPOSITORY, "e"),
        ("registry.example.com:5000/team/app", "e"),
        ("registry.example.com/team", "w"),
        ("registry.example.com/team/app/sub", "w"),
        ("Registry.example.com/team/app", "w"),
        ("docker.io/library/nginx", "w"),
    ],
)
def test_a_repository_named_exactly_wins_over_the_wildcard(repository: str, name: str) -> None:
    assert POLICY.select(repository).name == name


@pytest.mark.parametrize(
    "repository",
    [
        "other.example.com/x",
        "registry.example.com/team",
        "registry.example.com/team/app/sub",
        "registry.example.com/team/app2",
        "Registry.example.com/team/app",
        "registry.example.com:443/team/app",
        "evil.io/registry.example.com/team/app",
        "registry.example.com.evil.io/team/app",
        "*",
        "",
    ],
)
def test_n35_a_repository_that_no_statement_names_is_refused(repository: str) -> None:
    with pytest.raises(Refused) as caught:
        EXACT.select(repository)
    assert (caught.value.code, caught.value.found) == ("NO_TRUST_POLICY", repository)


@pytest.mark.parametrize(
    "repository", ["*", "", "registry.example.com", f"{REPOSITORY}@a", f"{REPOSITORY}:v1", "A/B", "\n"]
)
def test_n35_the_wildcard_covers_repositories_and_nothing_else(repository: str) -> None:
    with pytest.raises(Refused, match="NO_TRUST_POLICY"):
        POLICY.select(repository)


# -- any object -------------------------------------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.dates()
)
words = st.sampled_from(["1.0", "strict", "skip", "*", "ca:a", "always", "log", "expiry", REPOSITORY])
keys = st.sampled_from(
    [*STATEMENT, "version", "trustPolicies", "level", "override", "verifyTimestamp", *(check.value for check in Check)]
)
objects = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=3), inner, max_size=4),
    max_leaves=15,
)


@given(objects)
def test_n70_any_object_is_refused_with_faults(value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrustPolicyDocument.from_object(value)
    assert caught.value.faults


@given(key=st.sampled_from([*STATEMENT]), value=objects)
def test_n70_any_statement_is_refused_or_selected(key: str, value: object) -> None:
    with contextlib.suppress(ConfigurationError):
        assert TrustPolicyDocument.from_object(document(statement(**{key: value}))).statements


@given(st.binary(max_size=60))
def test_n70_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        TrustPolicyDocument.parse(data)
