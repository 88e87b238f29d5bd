"""Credential configurations of Google. What is done with them: tests/integration/test_gar.py."""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from provider.credentials.google import Federation, is_registry
from provider.errors import Undecided

_SCALARS = st.none() | st.booleans() | st.integers() | st.text()
_FLAT = _SCALARS | st.lists(_SCALARS, max_size=3) | st.dictionaries(st.text(max_size=8), _SCALARS, max_size=3)
_JSON = _FLAT | st.dictionaries(st.sampled_from(["file", "format", "url"]), _FLAT)
_MEMBERS = ("audience", "token_url", "subject_token_type", "credential_source", "service_account_impersonation_url")


@given(st.binary(max_size=200) | st.dictionaries(st.sampled_from(_MEMBERS), _JSON).map(
    lambda document: json.dumps({"type": "external_account", **document}).encode()
))  # fmt: skip
def test_any_configuration_is_read_or_refused_by_our_error(data: bytes) -> None:
    with suppress(Undecided):
        assert Federation.parse(data).token_url.startswith("https://sts.")


@given(st.text(max_size=60) | st.from_regex(r"[a-z0-9.:-]{0,30}(gcr\.io|-docker\.pkg\.dev)[a-z.:]{0,10}"))
def test_n07_whatever_is_a_registry_of_google_has_a_name_of_google(domain: str) -> None:
    if is_registry(domain):
        assert domain == "gcr.io" or domain.endswith((".gcr.io", "-docker.pkg.dev"))
        assert domain.count(".") <= 2
