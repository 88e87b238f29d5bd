"""What is read from, and written to, the Secret of the serving certificate."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.demo.pki import authority, issue, tls_server
from provider.gatekeeper.issuance import (
    MAX_CERTIFICATES,
    Authority,
    certificates_pem,
    issue_authority,
    issue_pair,
    key_pem,
)
from provider.gatekeeper.keyring import ENTRIES, MAX_OLD, Keyring, encode, read_bundle, read_keyring

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LIFETIME = timedelta(days=10)
NAMES = ("ratify.gatekeeper-system",)


def made() -> Authority:
    return issue_authority(NAMES[0], at=NOW, lifetime=LIFETIME)


OURS, NEXT, OLD = made(), made(), made()
PAIR = issue_pair(OURS, NAMES, at=NOW, lifetime=LIFETIME)
FULL = Keyring(OURS, PAIR, NEXT, OLD.certificates, NOW + LIFETIME)


def data_of(keyring: Keyring) -> dict[str, str]:
    return {name: encode(entry) for name, entry in keyring.entries().items()}


GOOD = data_of(FULL)


@pytest.mark.parametrize(
    "keyring",
    [
        FULL,
        Keyring(),
        Keyring(OURS, PAIR),
        Keyring(Authority(OURS.certificates), PAIR),
        replace(FULL, old_until=None),
        replace(FULL, coming=None),
    ],
)
def test_what_is_written_is_what_is_read(keyring: Keyring) -> None:
    assert set(data_of(keyring)) <= set(ENTRIES)
    again = read_keyring(data_of(keyring))
    assert again == keyring
    assert data_of(again) == data_of(keyring)  # the keys, which do not compare


def test_everything_is_trusted_that_may_be_in_use() -> None:
    assert FULL.trusted == (*OURS.certificates, *NEXT.certificates, *OLD.certificates)
    assert Keyring(OURS, PAIR, None, OURS.certificates).trusted == OURS.certificates


def test_old_authorities_are_kept_newest_first_and_not_without_end() -> None:
    keyring = FULL
    newest = [made().certificate for _ in range(MAX_OLD + 1)]
    for certificate in newest:
        keyring = keyring.with_old((certificate,), NOW + LIFETIME)
    assert keyring.old == tuple(reversed(newest))[:MAX_OLD]
    assert FULL.with_old((*OURS.certificates, *NEXT.certificates), NOW).old == OLD.certificates
    assert replace(FULL, old=()).with_old((), NOW).old_until is None


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("ca.crt", b"garbage", "ca.crt: a certificate cannot be parsed"),
        ("ca.key", b"garbage", "ca.key: the private key cannot be read"),
        ("tls.crt", b"garbage", "tls.crt: a certificate cannot be parsed"),
        ("tls.key", b"garbage", "tls.key: the private key cannot be read"),
        ("tls.key", key_pem(OURS.key), "tls.crt: the private key does not belong"),  # type: ignore[arg-type]
        ("ca.crt", certificates_pem(NEXT.certificates), "tls.crt: the serving certificate does not lead to"),
        ("next-ca.crt", b"garbage", "next-ca.crt: a certificate cannot be parsed"),
        ("next-ca.key", b"garbage", "next-ca.key: the private key cannot be read"),
        ("next-ca.key", key_pem(OURS.key), "next-ca.key: the key of next-ca.crt is missing"),  # type: ignore[arg-type]
        ("old-ca.crt", b"garbage", "old-ca.crt: a certificate cannot be parsed"),
        ("old-ca.until", b"tomorrow", "old-ca.until: the value is not a time"),
        ("old-ca.until", b"2026-03-01T00:00:00", "old-ca.until: the value is not a time with its zone"),
        ("old-ca.until", "２０２６".encode(), "old-ca.until: the value is not a time"),
        ("old-ca.until", b"9999-12-31T23:59:59-23:00", "old-ca.until: the value is not a time"),
    ],
)
def test_a_part_that_cannot_be_used_is_left_out_and_named(entry: str, value: bytes, told: str) -> None:
    keyring = read_keyring({**GOOD, entry: encode(value)})
    assert any(fault.startswith(told) for fault in keyring.faults), keyring.faults
    spoiled = {
        "ca.crt": "authority pair",
        "ca.key": "",
        "tls.crt": "pair",
        "tls.key": "pair",
        "next-ca.crt": "coming",
        "next-ca.key": "coming",
        "old-ca.crt": "old",
        "old-ca.until": "old_until",
    }[entry].split()
    for part in ("authority", "pair", "coming", "old_until"):
        expected = None if part in spoiled else getattr(FULL, part)
        if entry == "ca.crt" and part == "authority" and value != b"garbage":
            expected = Authority(NEXT.certificates)
        assert getattr(keyring, part) == expected, part
    assert keyring.old == (() if "old" in spoiled else FULL.old)


@pytest.mark.parametrize("value", [None, "", 5, ["x"], "***", "=", "x" * 1_000_000, "\u00e9"])
def test_values_that_are_not_base64_or_absent_are_not_used(value: object) -> None:
    keyring = read_keyring({**GOOD, "tls.crt": value})
    assert keyring.pair is None
    assert keyring.authority == OURS
    assert read_bundle(value) is None


def test_no_fault_tells_a_key_or_what_somebody_wrote() -> None:
    keyring = read_keyring({name: encode(b"hunter2\n" + base64.b64decode(value)[30:]) for name, value in GOOD.items()})
    assert keyring.faults
    assert "hunter2" not in str(keyring.faults)
    assert "PRIVATE" not in repr(FULL)


def test_a_ca_bundle_is_read_whatever_its_order_and_layout() -> None:
    bundle = certificates_pem(FULL.trusted)
    assert read_bundle(encode(bundle)) == frozenset(FULL.trusted)
    shuffled = (
        b"# old\n"
        + certificates_pem(OLD.certificates)
        + b"\n\n"
        + certificates_pem((*NEXT.certificates, OURS.certificate))
    )
    assert read_bundle(encode(shuffled)) == frozenset(FULL.trusted)


def test_a_ca_bundle_can_be_read_that_holds_all_that_a_secret_may_hold() -> None:
    """Otherwise it would be taken for a wrong one and written again for ever."""
    many = tuple(
        issue({"CN": "x"}, authority(), issuer=None, not_before=NOW, not_after=NOW + LIFETIME).certificate
        for _ in range(MAX_CERTIFICATES)
    )
    leaf = issue({"CN": "x"}, tls_server(NAMES), issuer=None, not_before=NOW, not_after=NOW + LIFETIME)
    keyring = Keyring(Authority((*many[1:], leaf.certificate)), None, NEXT, many[:MAX_OLD])
    assert read_bundle(encode(certificates_pem(keyring.trusted))) == frozenset(keyring.trusted)


@given(
    st.dictionaries(
        st.sampled_from(ENTRIES),
        st.one_of(
            st.text(max_size=50),
            st.binary(max_size=100).map(encode),
            st.sampled_from(sorted(GOOD.values())),
            st.none(),
            st.integers(),
        ),
    )
)
def test_n70_any_secret_can_be_read(data: dict[str, object]) -> None:
    keyring = read_keyring(data)
    assert keyring.pair is None or keyring.authority is not None
    assert read_keyring(data_of(keyring)).faults == ()
