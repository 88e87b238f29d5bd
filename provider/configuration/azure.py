"""Ids of Microsoft Entra ID, as they stand in resources: of a client and of a tenant.

What does not belong here: who uses them (stores.py, key_providers.py).
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from provider.configuration.sections import flaw, quote

_GUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_DOMAIN: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")


def _tenant(value: str) -> str:
    if value and not (_GUID.fullmatch(value) or _DOMAIN.fullmatch(value)):
        raise flaw(f"must be the id of a tenant, or one of its domains, found {quote(value)}")
    return value


def _client(value: str) -> str:
    if value and _GUID.fullmatch(value) is None:
        raise flaw(f"must be the client id of an identity, found {quote(value)}")
    return value


TenantId = Annotated[str, AfterValidator(_tenant), Field(alias="tenantID")]
ClientId = Annotated[str, AfterValidator(_client), Field(alias="clientID")]
