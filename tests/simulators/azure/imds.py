"""The instance metadata service of a node in Azure: tokens of managed identities, over plain HTTP.

    GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=<resource>[&client_id=<id>]    Metadata: true

Its address, 169.254.169.254, cannot be simulated: lead a client here with AZURE_POD_IDENTITY_AUTHORITY_HOST, which the
SDK knows.
"""

from __future__ import annotations

import time

from aiohttp import web

from tests.simulators.azure.entra import CLIENT, TENANT, EntraSimulator, as_json
from tests.simulators.listener import Listener, Reply


class MetadataSimulator(Listener):
    """The service of one node.

    Args:
        entra: who the tokens are from.

    Attributes:
        identities: client ids of the node's identities.
    """

    def __init__(self, entra: EntraSimulator) -> None:
        super().__init__()
        self.identities = [CLIENT]
        self._entra = entra

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        if seen.path != "/metadata/identity/oauth2/token":
            return Reply(404, {}, b"")
        if seen.headers.get("Metadata") != "true" or "X-Forwarded-For" in seen.headers:
            return as_json({"error": "invalid_request", "error_description": "Required metadata header"}, status=400)
        resource = seen.query.get("resource", "")
        client = seen.query.get("client_id") or (self.identities[0] if self.identities else "")
        if not seen.query.get("api-version") or not resource or resource.endswith("/.default"):
            return as_json({"error": "invalid_request", "error_description": "Bad parameter"}, status=400)
        if client not in self.identities:
            return as_json({"error": "invalid_request", "error_description": "Identity not found"}, status=400)
        document = {
            "access_token": self._entra.mint(TENANT, client, resource),
            "client_id": client,
            "expires_in": str(self._entra.lifetime),
            "expires_on": str(int(time.time()) + self._entra.lifetime),
            "ext_expires_in": str(self._entra.lifetime),
            "not_before": str(int(time.time())),
            "resource": resource,
            "token_type": "Bearer",
        }
        return as_json(document)
