"""What a signature is about: the signed payload, compared with the image at hand and with the metadata demanded.

    {"targetArtifact": {"mediaType": ..., "digest": ..., "size": ..., "annotations": {...}, ...}, ...}

Rules:
- mediaType, digest and size must all equal the image's, exactly (attack N28). Everything else in the payload is
  ignored, as the specification demands, but for the user metadata that is asked for.
- A payload that cannot be read is about no image (attack N61). Duplicate names, and names that differ from a known one
  in case alone, are refused, because Go's reader would take them.
- No level of a trust policy overrides this.

What does not belong here: the signature over the payload (envelope.py), the user's image reference (oci.py).
Source: notaryproject/specifications signature-specification.md "Payload".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from provider.errors import Refused
from provider.notation.envelope import Envelope
from provider.notation.json_objects import check_names, read_object
from provider.oci import Descriptor

_PAYLOAD_NAMES: Final = ("targetArtifact",)
_DESCRIPTOR_NAMES: Final = ("mediaType", "digest", "size", "annotations", "artifactType", "urls", "data", "platform")


@dataclass(frozen=True, slots=True)
class Payload:
    """The parsed payload.

    Attributes:
        target: the artifact that was signed.
    """

    target: Descriptor

    @property
    def metadata(self) -> Mapping[str, str]:
        """The user metadata, which is the target's annotations."""
        return self.target.annotations


def parse_payload(data: bytes) -> Payload:
    """Parse payload bytes.

    Args:
        data: the payload; trusted no more than the signature over it.

    Raises:
        Refused: PAYLOAD_MISMATCH, when they describe no artifact.
    """
    try:
        target = read_object(data, known=_PAYLOAD_NAMES).get("targetArtifact")
        if isinstance(target, dict):
            check_names(target, known=_DESCRIPTOR_NAMES)
        return Payload(Descriptor.parse(target))
    except ValueError as error:
        raise Refused("PAYLOAD_MISMATCH", f"the signed payload describes no artifact: {error}") from None


def check_payload(envelope: Envelope, target: Descriptor) -> Payload:
    """Check that the envelope signs this image.

    Args:
        envelope: an opened envelope.
        target: media type, digest and size of the image, as resolved.

    Returns:
        The payload.

    Raises:
        Refused: PAYLOAD_MISMATCH.
    """
    payload = parse_payload(envelope.payload)
    signed = payload.target
    for name, expected, found in (
        ("digest", str(target.digest), str(signed.digest)),
        ("mediaType", target.media_type, signed.media_type),
        ("size", str(target.size), str(signed.size)),
    ):
        if expected != found:
            raise Refused(
                "PAYLOAD_MISMATCH", f"the signed {name} is not that of the image", expected=expected, found=found
            )
    return payload


def check_metadata(envelope: Envelope, required: Mapping[str, str]) -> Mapping[str, str]:
    """Check that the signed payload carries every demanded entry of user metadata with an equal value.

    Args:
        envelope: an opened envelope.
        required: the entries demanded; none is fine.

    Returns:
        All user metadata of the payload.

    Raises:
        Refused: METADATA_MISMATCH; PAYLOAD_MISMATCH, when the payload cannot be read.
    """
    metadata = parse_payload(envelope.payload).metadata
    for key, value in required.items():
        if metadata.get(key) != value:
            raise Refused(
                "METADATA_MISMATCH",
                f"the signature lacks the demanded user metadata {key}",
                expected=value,
                found=metadata.get(key, "no such entry"),
            )
    return metadata
