"""The external data protocol of Gatekeeper: ProviderRequest bytes in, ProviderResponse bytes out.

    request   {"apiVersion": A, "kind": "ProviderRequest", "request": {"keys": [string, ...]}}
    response  {"apiVersion": A, "kind": "ProviderResponse",
               "response": {"idempotent": true?, "items": [item, ...], "systemError": string?}}
    item      {"key": string, "value": any JSON} or {"key": string, "error": string}

Rules:
- A request is untrusted: strict JSON, exact kinds, bounded bytes, keys and key lengths. Members that are not in the
  grammar are ignored, because a later Gatekeeper may send more.
- The key of an item is exactly the key that was sent, each distinct key is answered once, in the order of the request.
- Values arrive here as rendered JSON and are spliced in as they are: nothing is encoded twice.
- Three ways to fail (docs/architecture.md): a verdict is a value, a key that will not heal is an item error, what could
  not be decided is left out and named in systemError. Gatekeeper caches the first two and never the third.

What does not belong here: HTTP, time, deciding, the grammar of keys (executor.parse_key).
Sources: open-policy-agent/frameworks constraint/pkg/externaldata (v1beta1 types), Gatekeeper's external data page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from provider import strict_json
from provider.errors import CountersignError, Refused, Undecided, printable
from provider.gatekeeper.settings import RequestLimits
from provider.reports import VALUE_VERSION, VerifierReport

API_VERSION: Final = "externaldata.gatekeeper.sh/v1beta1"
ACCEPTED_API_VERSIONS: Final = frozenset({API_VERSION, "externaldata.gatekeeper.sh/v1alpha1"})
REQUEST_KIND: Final = "ProviderRequest"
RESPONSE_KIND: Final = "ProviderResponse"

Item = tuple[bytes, ...]  # one item of a response, in pieces
_REMEMBERED_LENGTH: Final = 256  # characters of a key that is remembered as JSON

MAX_SYSTEM_ERROR: Final = 2048  # characters; Gatekeeper prints it into every denial that lacks a verdict
MAX_NAMED_KEYS: Final = 10  # keys named for one cause; the others are counted
MAX_NAMED_KEY: Final = 200  # characters of a key that is named
MAX_CAUSES: Final = 5  # distinct reasons told for one code; the images of others are counted


def parse_request(body: bytes, limits: RequestLimits) -> tuple[str, ...]:
    """Read a ProviderRequest.

    Args:
        body: untrusted bytes.
        limits: what is refused.

    Returns:
        The distinct keys, in the order of their first appearance. May be empty.

    Raises:
        Undecided: REQUEST_INVALID, for everything that is not a ProviderRequest within the limits. Nothing else.
    """
    try:
        document = strict_json.loads(body, max_bytes=limits.max_body_bytes)
    except strict_json.MalformedJSONError as error:
        raise _invalid(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _invalid("the body is not a JSON object", found=_kind_of(document))
    version, kind, request = document.get("apiVersion"), document.get("kind"), document.get("request")
    if not isinstance(version, str) or version not in ACCEPTED_API_VERSIONS:
        raise _invalid("apiVersion is not the external data protocol's", expected=API_VERSION, found=_shown(version))
    if kind != REQUEST_KIND:
        raise _invalid("kind is not that of a request", expected=REQUEST_KIND, found=_shown(kind))
    if not isinstance(request, dict):
        raise _invalid("request is not an object", found=_kind_of(request))
    keys = request.get("keys")
    if not isinstance(keys, list):
        raise _invalid("request.keys is not a list of strings", found=_kind_of(keys))
    if len(keys) > limits.max_keys:
        raise _invalid("request.keys has too many keys", expected=f"at most {limits.max_keys}", found=str(len(keys)))
    if set(map(type, keys)) - {str}:
        position, key = next((position, key) for position, key in enumerate(keys) if not isinstance(key, str))
        raise _invalid(f"request.keys[{position}] is not a string", found=_kind_of(key))
    longest = max(map(len, keys), default=0)
    if longest > limits.max_key_length:
        raise _invalid(
            "request.keys has a key that is too long",
            expected=f"at most {limits.max_key_length} characters",
            found=str(longest),
        )
    return tuple(dict.fromkeys(keys))


def value_item(key: str, *value: bytes) -> Item:
    """An item with a value. The pieces of `value` make one JSON value in UTF-8; they are trusted and not checked."""
    return (b'{"key":', _json_key(key), b',"value":', *value, b"}")


def string_item(key: str, value: str) -> Item:
    """An item whose value is a string, as mutation needs it."""
    return value_item(key, _json(value))


def error_item(key: str, error: CountersignError, *, trace_id: str) -> Item:
    """An item with an error. Gatekeeper caches it after a verification: only for what will not heal."""
    text = f"{explain(error)} (trace-id {trace_id})"
    return (b'{"key":%b,"error":%b}' % (_json(key), _json(text)),)


def refusal_fragment(key: str, error: Refused) -> bytes:
    """The verdict for a refusal that reached the server as an exception, in the shape of Verdict.render."""
    subject = printable(key)
    report = VerifierReport.failed(error, message=f"failed to verify artifact: {subject}")
    members = {
        "version": VALUE_VERSION,
        "isSuccess": False,
        "code": error.code,
        "verifierReports": [report.to_json(subject)],
    }
    return json.dumps(members).encode()[1:-1]


def render_response(items: Sequence[Item], *, system_error: str = "", idempotent: bool = False) -> bytes:
    """Put items together to a ProviderResponse.

    Args:
        items: as value_item, string_item and error_item made them, in the order they shall have.
        system_error: why keys are missing; empty when none is. Empty for mutation, or Gatekeeper drops all items.
        idempotent: mutation demands true. Left out when false, as Go's encoder does.
    """
    head = b'{"apiVersion":"%b","kind":"%b","response":{%b"items":[' % (
        API_VERSION.encode(),
        RESPONSE_KIND.encode(),
        b'"idempotent":true,' if idempotent else b"",
    )
    tail = b'],"systemError":%b}}' % _json(system_error) if system_error else b"]}}"
    # One join: an answer can be a megabyte, and each copy of it costs as much as a hundred items.
    pieces = [head]
    for item in items:
        pieces += item
        pieces.append(b",")
    if items:
        pieces.pop()
    pieces.append(tail)
    return b"".join(pieces)


def explain(error: CountersignError) -> str:
    """An error for the person whose image was denied: code, what happened, what to do."""
    return f"{error.code}: {error.detail}. {error.remediation}"


def system_error(undecided: Mapping[str, Undecided], *, trace_id: str) -> str:
    """Say which keys are missing and why, grouped by cause, in at most MAX_SYSTEM_ERROR characters.

        CODE: what happened [image, image]; what else happened [image]. What to do. | CODE: ... (trace-id ...)

    Args:
        undecided: the error of each missing key, in the order of the request.
        trace_id: named at the end, whatever had to be cut before it.
    """
    by_code: dict[str, dict[str, list[str]]] = {}
    remediations: dict[str, str] = {}
    for key, error in undecided.items():
        by_code.setdefault(error.code, {}).setdefault(error.detail, []).append(key)
        remediations.setdefault(error.code, error.remediation)
    sentences = [f"{code}: {_causes(causes)}. {remediations[code]}" for code, causes in by_code.items()]
    return _bounded(" | ".join(sentences), trace_id)


def request_error(error: CountersignError, *, trace_id: str) -> str:
    """The systemError of a request that no key of which was looked at."""
    return _bounded(explain(error), trace_id)


def _bounded(text: str, trace_id: str) -> str:
    suffix = f" (trace-id {trace_id})"
    return printable(text, MAX_SYSTEM_ERROR - len(suffix)) + suffix


def _causes(keys_by_detail: Mapping[str, Sequence[str]]) -> str:
    told = [f"{detail} [{_named(keys)}]" for detail, keys in list(keys_by_detail.items())[:MAX_CAUSES]]
    untold = sum(len(keys) for keys in list(keys_by_detail.values())[MAX_CAUSES:])
    return "; ".join([*told, f"and {untold} more images"] if untold else told)


def _named(keys: Sequence[str]) -> str:
    names = ", ".join(printable(key, MAX_NAMED_KEY) for key in keys[:MAX_NAMED_KEYS])
    more = len(keys) - MAX_NAMED_KEYS
    return f"{names} and {more} more" if more > 0 else names


def _json_key(key: str) -> bytes:
    return _remembered_json(key) if len(key) <= _REMEMBERED_LENGTH else _json(key)


@lru_cache(maxsize=8192)  # the images of a cluster are asked about again and again
def _remembered_json(key: str) -> bytes:
    return _json(key)


def _json(text: str) -> bytes:
    return encode_basestring_ascii(text).encode()  # json.dumps does the same, by way of four Python calls


def _invalid(reason: str, *, expected: str | None = None, found: str | None = None) -> Undecided:
    return Undecided("REQUEST_INVALID", reason, expected=expected, found=found)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else _kind_of(value)


def _kind_of(value: Any) -> str:
    """The JSON name of a value's type, to name a wrong value without repeating it."""
    names = {type(None): "nothing", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
