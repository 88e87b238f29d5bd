"""Parameters of KeyManagementProvider resources, by type.

    inline: contentType: certificate | key, value: <PEM>

The material of an inline provider is read with the resource: a certificate that is cut off is a fault of the resource.

What does not belong here: what a certificate is (notation/), sources that are asked over the network.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field, ValidationInfo

from provider.configuration.sections import Section, flaw, quote
from provider.errors import ConfigurationError
from provider.interfaces import KeyMaterial
from provider.key_management.inline import ContentType, read_inline

MAX_REFRESH_SECONDS: Final = 366 * 24 * 3600.0  # a year; what is meant to be longer is meant to be never

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{0,9})?(?:ns|us|µs|μs|ms|s|m|h)){1,8}")
_PART: Final = re.compile(r"([0-9.]+)([a-zµμ]+)")


def parse_duration(text: str) -> float:
    """Seconds of a duration as Go writes it: `1h30m`, `90s`, `0.5h`.

    Raises:
        ValueError: it is none, is not positive, or is longer than MAX_REFRESH_SECONDS.
    """
    if _DURATION.fullmatch(text) is None:
        raise ValueError(f"must be a duration such as 30m or 1h30m, found {quote(text)}")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= MAX_REFRESH_SECONDS:
        raise ValueError(f"must be more than 0 and at most a year, found {quote(text)}")
    return seconds


def _readable(value: str, info: ValidationInfo) -> str:
    content_type = info.data.get("content_type")
    if content_type is not None:  # else that is a fault already, and what the value should be is not known
        try:
            read_inline(content_type, value)
        except ConfigurationError as error:
            raise flaw(error.detail) from None
    return value


class InlineParameters(Section):
    """Parameters of `inline`.

    Attributes:
        content_type: what the value is.
        value: PEM: certificates, or one public key.
    """

    content_type: ContentType
    value: Annotated[str, AfterValidator(_readable), Field(repr=False)]

    def material(self) -> KeyMaterial:
        """What the value holds; it was readable when the section was read."""
        return read_inline(self.content_type, self.value)
