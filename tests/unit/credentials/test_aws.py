"""Names of Amazon ECR, and signatures. What is done with them: tests/integration/test_ecr.py."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from provider.credentials.aws import AccessKey, RegistryRegion, registry_region, sign

KEY = AccessKey("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")  # of AWS's own test suite
AT = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)


@pytest.mark.parametrize(
    ("domain", "region"),
    [
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", RegistryRegion("eu-west-1")),
        ("123456789012.dkr.ecr.us-gov-west-1.amazonaws.com", RegistryRegion("us-gov-west-1")),
        ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", RegistryRegion("us-east-1", fips=True)),
        ("123456789012.dkr-ecr.ap-southeast-2.on.aws", RegistryRegion("ap-southeast-2")),
        ("123456789012.dkr-ecr-fips.us-east-1.on.aws", RegistryRegion("us-east-1", fips=True)),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", RegistryRegion("cn-north-1")),
        ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", RegistryRegion("eusc-de-east-1")),
        ("public.ecr.aws", None),
        ("registry.example.com", None),
    ],
)
def test_the_name_of_a_registry_says_its_region(domain: str, region: RegistryRegion | None) -> None:
    assert registry_region(domain) == region


@given(st.text(max_size=80) | st.from_regex(r"[0-9]{12}\.dkr\.ecr\.[a-z0-9.-]{0,30}\.amazonaws\.com[a-z.:]{0,10}"))
def test_n07_whatever_has_a_region_is_a_name_of_aws(domain: str) -> None:
    found = registry_region(domain)
    if found is not None:
        assert domain.endswith((".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".on.aws",
                                ".on.amazonwebservices.com.cn"))  # fmt: skip
        assert re.fullmatch(r"[a-z]+(-[a-z]+)+-[0-9]+", found.name)


@pytest.mark.parametrize(
    ("headers", "body", "signature"),
    [
        ({}, b"", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),  # its case post-vanilla
        (  # its case post-x-www-form-urlencoded
            {"Content-Type": "application/x-www-form-urlencoded"},
            b"Param1=value1",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
)
def test_aws_own_test_vectors_give_aws_signatures(headers: dict[str, str], body: bytes, signature: str) -> None:
    url = URL("https://example.amazonaws.com/")
    fields = sign(KEY, url, headers, body, region="us-east-1", service="service", at=AT)
    assert fields["X-Amz-Date"] == "20150830T123600Z"
    assert fields["Authorization"].startswith(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="
    )
    assert fields["Authorization"].endswith(f"Signature={signature}")


def test_n11_a_key_does_not_show_itself() -> None:
    assert "EXAMPLE" not in repr(AccessKey("AKIDEXAMPLE", "secretEXAMPLE", "tokenEXAMPLE"))
