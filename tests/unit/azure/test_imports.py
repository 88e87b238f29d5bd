"""What is imported without Azure: nothing of its SDK. Half a second and 10 MiB that nobody pays who is elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

FOREIGN = ("azure", "msal", "boto3", "botocore", "google", "lightkube")
PROBE = """
import sys
{body}
print(*sorted(name for name in sys.modules if name.partition(".")[0] in {foreign!r}))
"""


def loaded(body: str) -> list[str]:
    """The SDKs' modules that a fresh interpreter has after some statements."""
    code = PROBE.format(body=body, foreign=FOREIGN)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


@pytest.mark.parametrize(
    "body",
    [
        "import provider.cli, provider.cli.serve, provider.cli.verify, provider.assembly",
        "import provider.azure.identity, provider.azure.sdk, provider.azure.explanations",
        "import provider.credentials.azure, provider.credentials.aws, provider.credentials.google",
        "from provider.azure.identity import *\n"
        "from provider.credentials.azure import *\n"
        "AzureContainerRegistryCredentials(AzureIdentity(WorkloadIdentity()))",
    ],
)
def test_without_a_token_being_asked_for_no_sdk_is_loaded(body: str) -> None:
    assert loaded(body) == []


def test_the_probe_sees_an_sdk_that_is_loaded() -> None:
    found = loaded("from provider.azure.sdk import load_sdk\nload_sdk()")
    assert {"azure.identity.aio", "msal"} <= set(found)
