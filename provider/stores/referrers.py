"""Lists of referrers as a registry gives them: pages, links, filters, the tag schema. Pure; no requests.

Rules:
- A page is an image index of at most 4 MiB. What a registry says it filtered is believed only where it costs nothing:
  an entry of another artifact type is dropped all the same.
- A link leads to another page of the same registry's API, or the list is broken; it never leads elsewhere.

What does not belong here: asking (oras.py), whether an entry is what it claims (the verifier that fetches it).
Sources: distribution-spec 1.1 "Listing Referrers" and "Referrers Tag Schema"; RFC 8288 (Link); attacks N05, N13, N38.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from yarl import URL

from provider.egress import normalised_host
from provider.errors import Undecided
from provider.oci import Descriptor, Digest, Index

FILTERS_HEADER: Final = "OCI-Filters-Applied"
FILTERS_ANNOTATION: Final = "org.opencontainers.referrers.filtersApplied"  # before distribution-spec 1.1 was final
_ARTIFACT_TYPE_FILTER: Final = "artifacttype"

MAX_TAG_ALGORITHM: Final = 32  # characters of the algorithm in a referrers tag, distribution-spec
MAX_TAG_ENCODED: Final = 64  # characters of the digest in a referrers tag, distribution-spec
MAX_LINK_LENGTH: Final = 8192  # characters of one Link field; aiohttp reads no longer ones

_LINK = re.compile(
    r"""[ \t,]*<([^<>]*)>((?:[ \t]*;[ \t]*[^\s;,="]+(?:[ \t]*=[ \t]*(?:"(?:[^"\\]|\\.)*"|[^\s;,"]*))?)*)"""
)
_REL_NEXT = re.compile(
    r""";[ \t]*rel[ \t]*=[ \t]*(?:"(?:[^"]*[ \t])?next(?:[ \t][^"]*)?"|next(?=[ \t;]|\Z))""", re.IGNORECASE
)

_TARGET = re.compile(r"[\x21\x23-\x5b\x5d\x5f\x61-\x7e]+")  # visible ASCII that may stand in a URL


def referrers_tag(digest: Digest) -> str:
    """The tag under which a registry without the referrers API keeps the list."""
    return f"{digest.algorithm[:MAX_TAG_ALGORITHM]}-{digest.hex[:MAX_TAG_ENCODED]}"


def select(index: Index, headers: Mapping[str, str], artifact_type: str | None) -> tuple[Descriptor, ...]:
    """The entries of a page that are of the wanted type.

    Args:
        index: the page.
        headers: header fields of the answer that brought it.
        artifact_type: the type wanted; None for all.

    Returns:
        The entries in order. One without a type counts as wanted when the registry says that it filtered by type, and
        then carries the type.
    """
    if artifact_type is None:
        return index.manifests
    filtered = _was_filtered(index, headers)
    return tuple(
        entry if entry.artifact_type else replace(entry, artifact_type=artifact_type)
        for entry in index.manifests
        if entry.artifact_type == artifact_type or (filtered and not entry.artifact_type)
    )


def _was_filtered(index: Index, headers: Mapping[str, str]) -> bool:
    said = f"{headers.get(FILTERS_HEADER, '')},{index.annotations.get(FILTERS_ANNOTATION, '')}"
    return _ARTIFACT_TYPE_FILTER in (name.strip().lower() for name in said.split(","))


def next_page(page: URL, fields: Iterable[str]) -> URL | None:
    """The URL of the page after this one, None after the last.

    Args:
        page: URL of this page.
        fields: values of the Link fields of the answer; untrusted.

    Raises:
        Undecided: REGISTRY_PROTOCOL, when the link leads to another host or out of the API, or cannot be read.
    """
    for field in fields:
        target = _next_target(page, field)
        if target is None:
            continue
        try:
            url = page.join(URL(target, encoded=True))
            same_host = normalised_host(url.raw_host or "") == normalised_host(page.raw_host or "")
            inside = same_host and url.raw_path.startswith("/v2/") and ".." not in url.path
        except ValueError:
            inside = False
        if not inside or _TARGET.fullmatch(target) is None or url.raw_user is not None or url.raw_password is not None:
            raise _bad_link(page, "leads out of its API")
        # Registries behind a TLS proxy write http:// and their inner port here: the page's own origin is kept.
        return URL(f"{page.origin()}{url.raw_path_qs}", encoded=True)
    return None


def _next_target(page: URL, field: str) -> str | None:
    position = 0
    while len(field) <= MAX_LINK_LENGTH and (link := _LINK.match(field, position)) is not None:
        if _REL_NEXT.search(link[2]):
            return link[1]
        position = link.end()
    if field[position:].strip(" \t,"):  # an unread link may be the one to the next page: no list is better than half
        raise _bad_link(page, "cannot be read")
    return None


def _bad_link(page: URL, problem: str) -> Undecided:
    return Undecided(
        "REGISTRY_PROTOCOL",
        f"the link to the next page of referrers that {page.host_port_subcomponent} gave {problem}",
        expected="a link within /v2/ of the same registry",
    )
