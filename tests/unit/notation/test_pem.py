"""PEM as people paste it into configuration, and what must not be dropped silently."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.notation.pem import Block, MalformedPEMError, is_pem, read_blocks


def block(content: bytes, label: str = "CERTIFICATE") -> bytes:
    body = base64.encodebytes(content)
    return f"-----BEGIN {label}-----\n".encode() + body + f"-----END {label}-----\n".encode()


@given(st.lists(st.binary(max_size=100), max_size=4), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "    "]))
def test_blocks_are_split_whatever_lies_between_and_however_lines_end(
    contents: list[bytes], newline: str, indent: str
) -> None:
    text = "subject=CN=x\n----- not a block -----\n".join(block(content).decode() for content in contents)
    data = newline.join(indent + line for line in text.split("\n")).encode()
    assert [found.content for found in read_blocks(data)] == contents
    assert is_pem(data) == bool(contents)


DAMAGE = [block(b"x"), b"-----BEGIN A-----", b"-----END A-----", b"\n", b"-", b"eA=="]


@given(st.binary(max_size=200) | st.lists(st.sampled_from(DAMAGE)).map(b"".join))
def test_any_bytes_are_split_or_refused(data: bytes) -> None:
    try:
        list(read_blocks(data))
    except MalformedPEMError:
        return


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (block(b"one") + block(b"two")[:-10], "block 2: a boundary line is damaged"),
        (block(b"one") + block(b"two")[:-26], "block 2: truncated, its end line is missing"),
        (block(b"one")[:-26] + block(b"two"), "block 1: another block begins"),
        (block(b"one").replace(b"END CERTIFICATE", b"END SOMETHING"), "block 1: its end line does not belong"),
        (block(b"one") + b"-----END CERTIFICATE-----\n", "block 2: its end line does not belong"),
        (block(b"one").replace(b"b25l", b"b25*"), "block 1: what is between its boundary lines is not base64"),
        (block(b"one").replace(b"b25l", b"b25"), "block 1: what is between its boundary lines is not base64"),
        (block(b"one").replace(b"\n", b" "), "block 1: a boundary line is damaged or has something after it"),
        (block(b"one").replace(b"BEGIN CERTIFICATE", b"BEGIN certificate"), "block 1: a boundary line is damaged"),
    ],
)
def test_a_damaged_block_is_named_by_number_and_never_dropped(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedPEMError, match=reason.replace("(", "\\(")):
        list(read_blocks(data))


def test_a_block_does_not_show_what_it_holds() -> None:
    (found,) = read_blocks(block(b"secret", "PRIVATE KEY"))
    assert found == Block(1, "PRIVATE KEY", b"secret")
    assert "secret" not in repr(found)
    assert "c2VjcmV0" not in repr(found)
    assert "PRIVATE KEY" in repr(found)
