"""`countersign version`: what runs, and on what."""

from __future__ import annotations

import importlib.metadata
import platform
import ssl

import click

from provider import __version__

_LIBRARIES = ("aiohttp", "cryptography", "cbor2")  # those that take part in a decision


@click.command()
def version() -> None:
    """Print the version, and those of Python and the libraries that take part in a decision."""
    click.echo(f"countersign {__version__}")
    click.echo(f"python {platform.python_version()} ({ssl.OPENSSL_VERSION})")
    for library in _LIBRARIES:
        click.echo(f"{library} {importlib.metadata.version(library)}")
