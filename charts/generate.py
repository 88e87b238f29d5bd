"""Writes the generated files of the chart: `python -m charts.generate [--check]`.

    README.md                  from README.md.gotmpl and the comments of values.yaml, as helm-docs would
    files/placeholder-ca.pem   the certificate in the Provider objects until the provider has written its own CA there
    crds/<plural>.yaml         the custom resource definitions, from provider/configuration/schemas.py
    dashboards/countersign.json  the Grafana dashboard, from charts/dashboard.py

Rules:
- Output depends on the sources alone. `--check` writes nothing and exits 1 when a file differs from what would be
  written.
- Every value is documented: a comment that begins with `# --` stands above it, or above a mapping that it is in.
- The placeholder is a CA that nobody can sign for: Gatekeeper wants a certificate there, and before the provider's own
  is known there is none to trust. Its public key is a point of the curve found by hashing a sentence, so that no
  private key to it was ever known; and it has expired, so that the provider does not keep it beside its own. It is the
  same for everybody and for ever, so that Helm, which compares what it rendered last with what it renders now, leaves
  alone what the provider wrote in its place.

What does not belong here: values.schema.json and the templates, which people write.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from charts.dashboard import dashboard
from provider.configuration.schemas import custom_resource_definitions

CHART: Final = Path(__file__).parent / "countersign"
PLACEHOLDER: Final = "files/placeholder-ca.pem"
SENTENCE: Final = "Nobody has the private key of this certificate: Countersign puts its own authority in its place. "

_P: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1  # NIST P-256, SEC 2 section 2.4.2
_B: Final = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B

_KEY_LINE = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z0-9_]+):(?: |$)")
_COMMENT = re.compile(r" *# ?(?P<text>.*)")
_TYPE_HINT = re.compile(r"\((?P<type>[a-z/]+)\) (?P<text>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Value:
    """One documented value: its key path, type, default as JSON, and description."""

    path: str
    type: str
    default: str
    description: str


def documented_values(text: str) -> list[Value]:
    """The values of a values.yaml that have a comment beginning with `# --`, in the order of the file.

    Raises:
        ValueError: a value is neither documented nor part of a documented one.
    """
    defaults = yaml.safe_load(text)
    values = []
    for path, comment in _comments(text):
        hint = _TYPE_HINT.fullmatch(comment)
        default = _at(defaults, path)
        values.append(
            Value(
                ".".join(path),
                hint["type"] if hint else _type(default),
                "" if default is None else json.dumps(default),
                hint["text"] if hint else comment,
            )
        )
    known = {value.path for value in values}
    for path in _leaves(defaults):
        if not any(".".join(path[:length]) in known for length in range(1, len(path) + 1)):
            raise ValueError(f"values.yaml: {'.'.join(path)} has no comment that begins with '# --'")
    return values


def _comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Key paths with the comment directly above them."""
    path: list[tuple[int, str]] = []
    words: list[str] = []
    for line in text.splitlines():
        comment = _COMMENT.fullmatch(line)
        key = _KEY_LINE.match(line)
        if comment is not None:
            if comment["text"].startswith("-- "):
                words = [comment["text"][3:]]
            elif words:
                words.append(comment["text"])
            continue
        if key is not None:
            indent = len(key["indent"])
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key["key"])]
            if words:
                yield tuple(name for _, name in path), " ".join(words)
        words = []


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, Mapping) and node:
        for key, child in node.items():
            yield from _leaves(child, (*path, key))
    else:
        yield path


def _at(node: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def _type(default: Any) -> str:
    names = {bool: "bool", int: "int", float: "float", str: "string", list: "list", dict: "object"}
    return names[type(default)]


def readme() -> str:
    """README.md."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for value in documented_values((CHART / "values.yaml").read_text(encoding="utf-8")):
        default = f"`{value.default}`" if value.default else ""
        cells = (f"`{value.path}`", value.type, default, value.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    text = (CHART / "README.md.gotmpl").read_text(encoding="utf-8")
    for name, replacement in {
        "chart.version": chart["version"],
        "chart.appVersion": chart["appVersion"],
        "chart.valuesTable": "\n".join(rows),
    }.items():
        text = text.replace(f'{{{{ template "{name}" . }}}}', replacement)
    return text


def unowned_point() -> ec.EllipticCurvePublicKey:
    """The first point of P-256 whose x is SHA-256 of the sentence and a number; y is the even one of the two."""
    number = 0
    while True:
        x = int.from_bytes(hashlib.sha256(f"{SENTENCE}{number}".encode()).digest(), "big")
        square = (x**3 - 3 * x + _B) % _P
        y = pow(square, (_P + 1) // 4, _P)  # a root, if there is one: P is 3 modulo 4
        if x < _P and y * y % _P == square:
            y = y if y % 2 == 0 else _P - y
            return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        number += 1


def placeholder() -> str:
    """files/placeholder-ca.pem. Its signature is by another key, one that everybody knows, and so proves nothing."""
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Countersign"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "placeholder that trusts nobody"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(unowned_point())
        .serial_number(1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2000, 1, 2, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ec.derive_private_key(1, ec.SECP256R1()), hashes.SHA256(), ecdsa_deterministic=True)
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


class _Plain(yaml.SafeDumper):
    """YAML without anchors: what stands in two places is written out in both."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature of yaml
        """Never an alias."""
        return True


DEFINITIONS: Final = custom_resource_definitions()


def definition(plural: str) -> str:
    """crds/<plural>.yaml."""
    text = yaml.dump(DEFINITIONS[plural], Dumper=_Plain, sort_keys=False, width=118, allow_unicode=True)
    return f"# Made from provider/configuration/schemas.py by `python -m charts.generate`.\n{text}"


FILES: Final[Mapping[str, Callable[[], str]]] = {
    "README.md": readme,
    PLACEHOLDER: placeholder,
    "dashboards/countersign.json": dashboard,
    **{f"crds/{plural}.yaml": partial(definition, plural) for plural in DEFINITIONS},
}


def main(arguments: list[str]) -> int:
    """Write or check every file; the exit code."""
    check = arguments == ["--check"]
    stale = []
    for name, make in FILES.items():
        path, text = CHART / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote charts/countersign/{name}")
    for path in sorted((CHART / "crds").iterdir()):  # Helm would install it
        if f"crds/{path.name}" not in FILES:
            stale.append(f"crds/{path.name}")
            if not check:
                path.unlink()
                print(f"deleted charts/countersign/crds/{path.name}")
    if check and stale:
        print(f"stale: {', '.join(stale)}; run `python -m charts.generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
