"""What the response of a registry says: a digest, checked content, a page of a list, where it redirects to, an error.

Rules:
- Everything in a response is foreign. Content that is not what was asked for is refused; any other response that makes
  no sense is the registry's fault (REGISTRY_PROTOCOL) and no decision about an image.
- Not found is a decision only when a registry says it. A bare 404 may come from whatever stands in front of one.

What does not belong here: asking, following (oras.py), the entries and links of a list of referrers (referrers.py).
Sources: OCI distribution-spec 1.1; attacks N04, N15, N26, N33.
"""

from __future__ import annotations

import re
from typing import Any

from yarl import URL

from provider import strict_json
from provider.errors import CountersignError, Refused, Undecided
from provider.oci import MAX_MANIFEST_BYTES, Descriptor, Digest, Index
from provider.stores.objects import check_object
from provider.stores.profile import Repository
from provider.stores.transport import MAX_ERROR_BYTES, Request, Response

_LOCATION = re.compile(r"[\x21-\x7e]+")  # visible ASCII: the request line is made of it


def announced(repository: Repository, response: Response) -> tuple[Digest, Descriptor | None]:
    """Digest and descriptor from the header fields of a manifest.

    Raises:
        Undecided: REGISTRY_PROTOCOL, for a digest that is none (N33).
    """
    text = response.headers["Docker-Content-Digest"].strip()
    try:
        digest = Digest.parse(text)
    except ValueError as error:
        raise protocol_error(f"{repository.domain} announces a bad digest: {error}", found=text) from None
    try:
        return digest, Descriptor(response.media_type, digest, int(response.headers["Content-Length"]))
    except (KeyError, ValueError):
        return digest, None


def hashed(repository: Repository, response: Response) -> tuple[Digest, Descriptor | None]:
    """Digest and descriptor of a manifest that was fetched by tag, from its bytes (N26).

    Raises:
        Refused: MANIFEST_INVALID, DIGEST_MISMATCH.
        Undecided: REGISTRY_PROTOCOL.
    """
    if response.oversized:
        raise Refused("MANIFEST_INVALID", f"the tagged manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    digest = Digest.of(response.body)
    if "Docker-Content-Digest" in response.headers:
        digest, _ = announced(repository, response)
        if not digest.matches(response.body):
            raise Refused(
                "DIGEST_MISMATCH",
                f"{repository.domain} sent a tagged manifest that is not of the digest it announced",
                expected=str(digest),
                found=str(Digest.of(response.body, digest.algorithm)),
            )
    try:
        return digest, Descriptor(response.media_type, digest, len(response.body))
    except ValueError:
        return digest, None


def content(repository: Repository, descriptor: Descriptor, response: Response, what: str) -> bytes:
    """The body of a 200, checked against the descriptor.

    Raises:
        Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH.
        Undecided: REGISTRY_PROTOCOL.
    """
    if response.status != 200:
        raise unexpected(repository, response, what)
    if response.oversized:
        raise Refused(
            "DIGEST_MISMATCH",
            f"{repository.domain} sent more than the descriptor of {what} says",
            expected=f"{descriptor.size} bytes",
            found="more",
        )
    return check_object(descriptor, response.body, what)


def index_of(response: Response, what: str) -> Index:
    """The image index in the body of a 200, of the media type of one.

    Raises:
        Refused: MANIFEST_INVALID.
    """
    if response.oversized:
        raise Refused("MANIFEST_INVALID", f"a list of {what} is larger than {MAX_MANIFEST_BYTES} bytes")
    return Index.parse(response.body)


def redirect_target(repository: Repository, sent: Request, response: Response) -> URL:
    """Where a redirect leads, if it may be followed there; the address is judged when it is connected to.

    Raises:
        Undecided: REGISTRY_PROTOCOL.
    """
    location = response.headers.get("Location", "")
    try:
        # Encoded: a signed URL must arrive as it was sent.
        url = sent.url.join(URL(location, encoded=True)).with_fragment(None)
        usable = bool(location) and url.scheme in ("http", "https") and bool(url.raw_host) and url.port is not None
    except ValueError:
        usable = False
    if not usable or url.raw_user is not None or url.raw_password is not None or _LOCATION.fullmatch(location) is None:
        raise protocol_error(f"{repository.domain} redirects to what is no http or https URL, asked for {sent.what}")
    if url.scheme != "https" and not repository.profile.plain_http:
        raise protocol_error(
            f"{repository.domain} redirects to {url.host_port_subcomponent} without TLS, asked for {sent.what}"
        )
    return url


def error_codes(response: Response) -> frozenset[str]:
    """The codes of an OCI error body (distribution-spec "Error Codes"); empty when it is none."""
    try:
        document: Any = strict_json.loads(response.body, max_bytes=MAX_ERROR_BYTES)
    except strict_json.MalformedJSONError:
        return frozenset()
    errors = document.get("errors") if isinstance(document, dict) else None
    if not isinstance(errors, list):
        return frozenset()
    codes = (error.get("code") for error in errors if isinstance(error, dict))
    return frozenset(code for code in codes if isinstance(code, str))


def says_not_found(response: Response) -> bool:
    """Whether a 404 comes from a registry: it has an OCI error body, or the field that registries send."""
    return bool(error_codes(response)) or "Docker-Distribution-Api-Version" in response.headers


def unexpected(repository: Repository, response: Response, what: str) -> CountersignError:
    """The error for a response that does not bring what was asked for.

    Returns:
        Refused IMAGE_NOT_FOUND when a registry says that there is none; else Undecided REGISTRY_PROTOCOL.
    """
    if response.status == 404 and says_not_found(response):
        return Refused("IMAGE_NOT_FOUND", f"the registry {repository.domain} does not know {what}")
    if response.status == 404:
        return protocol_error(
            f"{repository.domain} answered 404 for {what} without saying that it is a registry",
            expected="an OCI error body, or the field Docker-Distribution-Api-Version",
        )
    kind = f" of type {response.media_type or 'none'}" if response.status == 200 else ""
    return protocol_error(f"{repository.domain} answered {response.status}{kind}, asked for {what}")


def protocol_error(reason: str, *, expected: str | None = None, found: str | None = None) -> Undecided:
    """The error for what a registry must not do."""
    return Undecided("REGISTRY_PROTOCOL", reason, expected=expected, found=found)
