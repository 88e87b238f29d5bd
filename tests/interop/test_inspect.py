"""`countersign inspect` and `notation inspect` read the same out of the same signature."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from tests.interop import peers
from tests.interop.authorities import Identity, TimestampAuthority
from tests.interop.countersign import manifests
from tests.interop.notation import Notation, Trust
from tests.interop.registries import Repository


def ours(repository: Repository, digest: str, folder: Path, trust: Trust) -> list[dict[str, Any]]:
    """The signatures that `countersign inspect` lists."""
    (folder / "resources.yaml").write_text(yaml.safe_dump_all(manifests(trust, repository.registry)))
    command: peers.Command = [sys.executable, "-m", "provider", "inspect", "--config", folder, "--output", "json"]
    return list(json.loads(peers.must([*command, repository.at(digest)], cwd=peers.CLONE))["referrers"])


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_both_inspectors_read_the_same(
    app: Repository,
    notation: Notation,
    signer: Identity,
    tsa: TimestampAuthority,
    trust: Trust,
    envelope: str,
    tmp_path: Path,
) -> None:
    digest = app.push_image("inspected")
    options = ("--user-metadata", "build=42", "--expiry", "24h")
    notation.sign(app.at(digest), signer, *options, envelope=envelope, timestamp=tsa)
    [theirs], [entry] = notation.inspect(app.at(digest))["Signatures"], ours(app, digest, tmp_path, trust)
    signature = entry["signature"]
    assert (entry["digest"], signature["mediaType"]) == (theirs["digest"], theirs["mediaType"])
    assert [(one["sha256"], one["subject"], one["issuer"]) for one in signature["certificates"]] == [
        (one["SHA256Fingerprint"], one["issuedTo"], one["issuedBy"]) for one in theirs["certificates"]
    ]
    assert [moment(one["notAfter"]) for one in signature["certificates"]] == [
        moment(one["expiry"]) for one in theirs["certificates"]
    ]
    artifact = dict(signature["signedArtifact"])
    assert artifact.pop("annotations") == theirs["userDefinedAttributes"] == {"build": "42"}
    assert artifact == theirs["signedArtifact"]
    assert signature["signingAgent"] == theirs["unsignedAttributes"]["signingAgent"]

    attributes = {name.removeprefix("io.cncf.notary.").split()[0]: v for name, v in signature["attributes"].items()}
    signed = theirs["signedAttributes"]
    assert attributes["signingScheme"] == signed["signingScheme"]
    for time in ("signingTime", "expiry"):
        assert moment(attributes[time]) == moment(signed[time])

    stamped = theirs["unsignedAttributes"]["timestampSignature"]
    at, accuracy = moment(signature["timestamp"]["time"]), timedelta(seconds=signature["timestamp"]["accuracySeconds"])
    window = [moment(text) for text in stamped["timestamp"].strip("[]").split(", ")]
    assert [at - accuracy, at + accuracy] == window
    assert signature["timestamp"]["authority"] == stamped["certificates"][0]["issuedTo"]
