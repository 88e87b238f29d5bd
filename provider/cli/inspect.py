"""`countersign inspect`: what is attached to an image, decoded and not trusted."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.tree import Tree

from provider.cli import EXIT_OK
from provider.cli.options import config_option, log_options, output_option
from provider.cli.rendering import console, line, progress
from provider.cli.running import executor_for
from provider.credentials.docker_config import DockerConfigCredentials
from provider.errors import CountersignError, Refused
from provider.executor import ExecutorSettings
from provider.interfaces import Store
from provider.notation.envelope import InspectedEnvelope, inspect_envelope
from provider.notation.payload import parse_payload
from provider.notation.timestamp import inspect_timestamp
from provider.oci import Descriptor, Manifest, Reference, Subject
from provider.parts import Environment
from provider.stores.oras import OrasStore
from provider.stores.profile import OrasStoreSettings
from provider.telemetry import LogFormat, configure_logging
from provider.verifiers.notation import ARTIFACT_TYPE, MAX_ENVELOPE_BYTES

MAX_DECODED = 100  # signatures decoded; more are only listed


@click.command()
@click.argument("image", metavar="IMAGE")
@config_option(required=False)
@click.option("--plain-http", is_flag=True, help="Speak http to the registry, without --config.")
@output_option
@log_options(level="warning")
def inspect(image: str, config: Path | None, plain_http: bool, output: str, log_level: str, log_format: str) -> int:
    """List what refers to an image and decode each signature: signer, chain, times, time-stamp, attributes.

    Nothing is verified: what is printed is what the artifacts claim. --config gives registries their settings and
    credentials; without it, the Docker configuration's credentials are used.

    \b
    Exit codes: 0 listed, 1 no such image, 2 the registry could not be asked, or bad usage.
    """
    configure_logging(log_level, LogFormat(log_format))
    description = asyncio.run(_inspect(Reference.parse(image), config, plain_http=plain_http))
    if output == "json":
        click.echo(json.dumps(description, indent=2))
    else:
        tree = Tree(line(str(description["reference"])))
        _grow(tree, {key: value for key, value in description.items() if key != "reference"})
        console().print(tree)
    return EXIT_OK


async def _inspect(reference: Reference, config: Path | None, *, plain_http: bool) -> dict[str, Any]:
    if config is None:
        environment = Environment.from_variables(os.environ)
        credentials = (
            DockerConfigCredentials(environment.docker_config, required=False) if environment.docker_config else None
        )
        settings = OrasStoreSettings(plain_http=plain_http)
        store = OrasStore("inspect", settings, credentials=credentials, proxies=environment.proxies)
        try:
            return await _describe(store, reference)
        finally:
            await store.aclose()
    async with executor_for(config, ExecutorSettings()) as executor:
        assert executor.snapshot is not None  # noqa: S101 - executor_for put one to use
        _, scope = executor.snapshot.scope("")
        return await _describe(scope.stores[0], reference)


async def _describe(store: Store, reference: Reference) -> dict[str, Any]:
    with progress(f"asking {reference.domain}"):
        subject = await store.resolve(reference)
        listed = [artifact async for artifact in store.list_referrers(subject, None)]
        decoded = [
            await _describe_artifact(store, subject, artifact, decode=number < MAX_DECODED)
            for number, artifact in enumerate(listed)
        ]
    return {"reference": str(reference), "digest": str(subject.digest), "referrers": decoded}


async def _describe_artifact(store: Store, subject: Subject, artifact: Descriptor, *, decode: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "digest": str(artifact.digest),
        "artifactType": artifact.artifact_type or "",
        "size": artifact.size,
    }
    if artifact.artifact_type != ARTIFACT_TYPE or not decode:
        return facts
    try:
        manifest = Manifest.parse(await store.fetch_manifest(subject, artifact))
        if len(manifest.layers) != 1:
            raise Refused("MANIFEST_INVALID", "a signature manifest has one layer", found=str(len(manifest.layers)))
        layer = manifest.layers[0]
        data = await store.fetch_blob(subject, layer, MAX_ENVELOPE_BYTES)
        facts["signature"] = _describe_envelope(inspect_envelope(data, layer.media_type))
    except CountersignError as error:
        facts["error"] = str(error)
    return facts


def _describe_envelope(envelope: InspectedEnvelope) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "mediaType": envelope.media_type,
        "algorithm": envelope.algorithm,
        "signingAgent": envelope.signing_agent,
        "attributes": {
            attribute.name + (" (critical)" if attribute.critical else ""): attribute.value
            for attribute in envelope.attributes
        },
        "signedArtifact": _describe_payload(envelope.payload),
        "certificates": [
            {
                "subject": certificate.subject_text,
                "issuer": certificate.issuer_text,
                "serial": f"{certificate.serial:x}",
                "notBefore": certificate.not_before.isoformat(),
                "notAfter": certificate.not_after.isoformat(),
                "key": certificate.key_name,
                "sha256": certificate.sha256_fingerprint,
            }
            for certificate in envelope.chain
        ],
        "timestamp": _describe_timestamp(envelope.timestamp_token),
        "faults": list(envelope.faults),
    }
    return {key: value for key, value in facts.items() if value}


def _describe_payload(payload: bytes) -> dict[str, Any]:
    try:
        target = parse_payload(payload).target
    except Refused as error:
        return {"error": str(error)}
    facts = {"mediaType": target.media_type, "digest": str(target.digest), "size": target.size}
    return {**facts, "annotations": dict(target.annotations)} if target.annotations else facts


def _describe_timestamp(token: bytes | None) -> dict[str, Any]:
    if token is None:
        return {}
    try:
        stamp = inspect_timestamp(token)
    except Refused as error:
        return {"error": str(error)}
    return {
        "time": stamp.gen_time.isoformat(),
        "accuracySeconds": stamp.accuracy.total_seconds(),
        "authority": stamp.authority,
        "policy": stamp.policy,
        "hash": stamp.hash_algorithm,
    }


def _grow(tree: Tree, facts: Mapping[str, Any]) -> None:
    """Hang data on a tree: mappings and lists become branches."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            _grow(tree.add(line(key)), value)
        elif isinstance(value, list):
            for number, entry in enumerate(value, 1):
                if isinstance(entry, Mapping):
                    _grow(tree.add(line(key, str(number))), entry)
                else:
                    tree.add(line(key, str(entry)))
            if not value:
                tree.add(line(key, "none"))
        else:
            tree.add(line(key, str(value)))
