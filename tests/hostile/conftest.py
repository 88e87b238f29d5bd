"""One server for each module of the suite, with short deadlines."""

from __future__ import annotations

import resource
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.hostile.site import Site, open_site

FILES = 4096  # open at once, by crowds of callers; many systems allow 1024 unless asked


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """The real server among simulators."""
    if sys.platform != "linux":
        pytest.skip("the memory of another process is read from /proc, which only Linux has")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (FILES if hard == resource.RLIM_INFINITY else min(FILES, hard), hard)
        )
    async with open_site(tmp_path_factory.mktemp("site")) as running:
        yield running
