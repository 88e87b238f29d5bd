"""How long what a server gave may be used, and how long it asks to be left alone, without a clock of our own.

Rules:
- A server's times are compared with that server's own time of sending (Date): a wrong clock here spoils nothing.
- What is read of a token is not verified and decides about nothing but when it is asked for again: whoever accepts a
  token judges it.
- Total on every input: what cannot be read gives None.

What does not belong here: keeping (cache.py), who may be asked and with what (stores/, credentials/).
Sources: RFC 9110 sections 6.6.1 and 10.2.3, RFC 7519 section 4.1.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from provider import strict_json

MAX_RETRY_AFTER: Final = 3600.0  # seconds; who asks for more is asked again after an hour all the same
MAX_CLAIMS_BYTES: Final = 64 * 1024  # of a token's claims; those of large directories reach some 10 KiB


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The wait that a response asks for, seconds, 0 to MAX_RETRY_AFTER; None without one.

    Args:
        headers: the response's fields; untrusted. A date is compared with its Date.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER)
    until, sent = _http_date(text), _http_date(headers.get("Date", ""))
    if until is None or sent is None:
        return None
    return min(max((until - sent).total_seconds(), 0.0), MAX_RETRY_AFTER)


def token_lifetime_seconds(token: str, headers: Mapping[str, str]) -> float | None:
    """Seconds from the sending of a JSON web token to its `exp`; not positive for one that has ended, None for none.

    Args:
        token: the token; its signature is not looked at.
        headers: fields of the response that it came in. Without a Date the token's own `iat`, or `nbf`, is its sending.
    """
    claims = unverified_claims(token)
    return seconds_until(claims.get("exp"), headers, sent=claims.get("iat", claims.get("nbf")))


def seconds_until(end: Any, headers: Mapping[str, str], *, sent: Any = None) -> float | None:
    """Seconds from the sending of a response to a time that it names; not positive for one that has passed.

    Args:
        end: seconds since 1970; untrusted.
        headers: the response's fields.
        sent: when it was sent, seconds since 1970, for a response without a Date; untrusted.

    Returns:
        None when one of the two is no time.
    """
    date = _http_date(headers.get("Date", ""))
    ends, began = _seconds(end), _seconds(sent) if date is None else date.timestamp()
    return None if ends is None or began is None else ends - began


def unverified_claims(token: str) -> dict[str, Any]:
    """The claims of a JSON web token as it says them, empty for what is none. Nobody has vouched for them."""
    parts = token.split(".", 3)
    if len(parts) != 3 or len(parts[1]) > MAX_CLAIMS_BYTES:
        return {}
    try:
        data = base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True)
        claims = strict_json.loads(data, max_bytes=MAX_CLAIMS_BYTES)
    except (binascii.Error, ValueError):  # MalformedJSONError among them
        return {}
    return claims if isinstance(claims, dict) else {}


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        return None
    return float(value)


def _http_date(text: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
