"""A configuration put to use for the time of one command."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from provider.assembly import Assembler
from provider.configuration.manifests import load
from provider.executor import Executor, ExecutorSettings
from provider.parts import Environment


@asynccontextmanager
async def executor_for(config: Path, settings: ExecutorSettings) -> AsyncIterator[Executor]:
    """An executor that decides with the manifests of a file or folder, as `serve` would. Warnings go to standard error.

    Raises:
        ConfigurationError: the manifests are wrong; every fault is in it.
    """
    resources = load(config)
    for warning in resources.warnings:
        click.echo(f"warning: {warning}", err=True)
    executor = Executor(settings)
    assembler = Assembler(executor.use, environment=Environment.from_variables(os.environ))
    try:
        await assembler.apply(resources)
        yield executor
    finally:
        await executor.aclose()
        await assembler.aclose()
