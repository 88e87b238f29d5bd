"""The key management provider of type `inline`: certificates or a public key written into the resource itself.

Rules: what is there was complete and usable when the resource was read, or the resource was refused; there is nothing
to fetch and so nothing to refresh.

What does not belong here: the resource's syntax (configuration/), which certificate may anchor trust (notation/).
"""

from __future__ import annotations

from typing import Final, Literal

from provider.interfaces import KeyMaterial
from provider.key_management.material import material_of, read_public_key
from provider.notation.certificates import parse_certificates

ContentType = Literal["certificate", "key"]

KEY_NAME: Final = ""  # the one key of an inline provider has no name of its own; verifiers refer to the provider


def read_inline(content_type: ContentType, value: str) -> KeyMaterial:
    """Read what an inline provider holds.

    Args:
        content_type: `certificate`, a PEM bundle; `key`, one PEM public key.
        value: the text, as the operator wrote it.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID. It never repeats the value.
    """
    data = value.encode("utf-8", "replace")
    if content_type == "key":
        return material_of(public_keys={KEY_NAME: read_public_key(data)})
    return material_of(parse_certificates(data))


class InlineKeyManagementProvider:
    """A KeyManagementProvider whose material is the resource's own text.

    Args:
        name: name of the resource, `namespace/name` for a namespaced one.
        content_type: see read_inline.
        value: see read_inline.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID.
    """

    def __init__(self, name: str, *, content_type: ContentType, value: str) -> None:
        self.name = name
        self._material = read_inline(content_type, value)

    def material(self) -> KeyMaterial:
        """Always there."""
        return self._material

    async def refresh(self) -> None:
        """Nothing to do: another value is another resource."""
