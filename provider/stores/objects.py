"""Checks that every store makes on every object it reads: the size before it is read, size and digest afterwards.

What does not belong here: where the bytes come from, what they mean.
Source: OCI image-spec "Descriptors": content must be verified against digest and size before it is processed.
"""

from __future__ import annotations

from provider.errors import Refused
from provider.oci import Descriptor, Digest


def check_size(descriptor: Descriptor, max_bytes: int, what: str) -> None:
    """Refuse an object by its declared size, before anything is read.

    Args:
        descriptor: what it claims to be.
        max_bytes: the most that will be read.
        what: the object in words, for the error.

    Raises:
        Refused: MANIFEST_INVALID.
    """
    if descriptor.size > max_bytes:
        raise Refused(
            "MANIFEST_INVALID",
            f"{what} is larger than is read",
            expected=f"at most {max_bytes} bytes",
            found=f"{descriptor.size} bytes",
        )


def check_object(descriptor: Descriptor, data: bytes, what: str) -> bytes:
    """Return the bytes when they have exactly the descriptor's size and digest.

    Args:
        descriptor: what was asked for.
        data: untrusted bytes.
        what: the object in words, for the error.

    Raises:
        Refused: DIGEST_MISMATCH.
    """
    if len(data) != descriptor.size:
        raise Refused(
            "DIGEST_MISMATCH",
            f"{what} has another size than its descriptor says",
            expected=f"{descriptor.size} bytes",
            found=f"{len(data)} bytes",
        )
    if not descriptor.digest.matches(data):
        raise Refused(
            "DIGEST_MISMATCH",
            f"{what} has another digest than its descriptor says",
            expected=str(descriptor.digest),
            found=str(Digest.of(data, descriptor.digest.algorithm)),
        )
    return data
