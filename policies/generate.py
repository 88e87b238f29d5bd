"""Writes the Azure Policy definitions of this folder: `python -m policies.generate [--check]`.

Rules:
- `customazurepolicy.json` carries template.yaml itself, byte for byte, as Base64: what is enforced is what was
  reviewed.
- `customazurepolicy-publicurl.json` differs in one thing only, where the template comes from. Its address is a
  placeholder in the domain `.invalid`, which no name server answers, so that nobody enforces a stranger's template.
- Output depends on template.yaml alone. `--check` writes nothing and exits 1 when a file differs from what would be
  written.

What does not belong here: the template, and anything that runs in the provider. Sources: Azure Policy's pages on the
effects deny and audit and on definition structure; Ratify v1.4's definition for names, parameters and their defaults.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
TEMPLATE: Final = HERE / "template.yaml"
PLACEHOLDER_URL: Final = "https://replace-with-your-host.invalid/countersign/template.yaml"

# Azure's own definitions take both spellings, Ratify's the capital one: whatever a script passes is taken.
EFFECTS: Final = ("deny", "Deny", "audit", "Audit", "disabled", "Disabled")

_SELECTOR_SCHEMA: Final = {
    "description": "A Kubernetes label selector. All of its conditions must hold; an empty one selects everything.",
    "type": "object",
    "properties": {
        "matchLabels": {
            "description": "Labels that a resource must have, with their values.",
            "type": "object",
            "additionalProperties": {"type": "string"},
            "minProperties": 1,
        },
        "matchExpressions": {
            "description": "Conditions on labels.",
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "key": {"description": "The label.", "type": "string"},
                    "operator": {
                        "description": "What must hold between the label and the values.",
                        "type": "string",
                        "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                    },
                    "values": {
                        "description": "At least one for In and NotIn, none for Exists and DoesNotExist.",
                        "type": "array",
                        "items": {"type": "string"},
                    },
                },
                "required": ["key", "operator"],
                "additionalProperties": False,
            },
            "minItems": 1,
        },
    },
    "additionalProperties": False,
}

_PARAMETERS: Final = {
    "effect": {
        "type": "String",
        "metadata": {
            "displayName": "Effect",
            "description": "Deny refuses pods with an image that is not verified. Audit lets them in and reports "
            "them as non-compliant. Disabled does nothing.",
        },
        "allowedValues": list(EFFECTS),
        "defaultValue": "Deny",
    },
    "excludedNamespaces": {
        "type": "Array",
        "metadata": {
            "displayName": "Namespace exclusions",
            "description": "Namespaces whose pods are not verified. The add-on itself always spares kube-system and "
            "gatekeeper-system.",
        },
        "defaultValue": ["kube-system", "gatekeeper-system"],
    },
    "namespaces": {
        "type": "Array",
        "metadata": {
            "displayName": "Namespace inclusions",
            "description": "The only namespaces whose pods are verified. Empty: all but the excluded ones.",
        },
        "defaultValue": [],
    },
    "labelSelector": {
        "type": "Object",
        "metadata": {
            "displayName": "Label selector",
            "description": "Labels of the pods that are verified. Empty: all pods. Whoever creates a pod chooses its "
            "labels, so a selector is a way around this policy.",
        },
        "defaultValue": {},
        "schema": _SELECTOR_SCHEMA,
    },
}


def pinned(template: bytes) -> dict[str, Any]:
    """The definition that carries the template itself."""
    return _definition({"sourceType": "Base64Encoded", "content": base64.b64encode(template).decode("ascii")})


def by_url(url: str) -> dict[str, Any]:
    """The definition that names where the add-on shall fetch the template, anonymously and over https."""
    return _definition({"sourceType": "PublicURL", "url": url})


def _definition(template_info: Mapping[str, str]) -> dict[str, Any]:
    return {
        "mode": "Microsoft.Kubernetes.Data",
        "parameters": _PARAMETERS,
        "policyRule": {
            "if": {"field": "type", "in": ["Microsoft.ContainerService/managedClusters"]},
            "then": {
                "effect": "[parameters('effect')]",
                "details": {
                    "templateInfo": dict(template_info),
                    "apiGroups": [""],
                    "kinds": ["Pod"],
                    "excludedNamespaces": "[parameters('excludedNamespaces')]",
                    "namespaces": "[parameters('namespaces')]",
                    "labelSelector": "[parameters('labelSelector')]",
                },
            },
        },
    }


def files(template: bytes) -> dict[str, str]:
    """Every generated file of this folder: name and text."""
    definitions = {
        "customazurepolicy.json": pinned(template),
        "customazurepolicy-publicurl.json": by_url(PLACEHOLDER_URL),
    }
    return {name: json.dumps(definition, indent=2) + "\n" for name, definition in definitions.items()}


def main(arguments: list[str], folder: Path = HERE) -> int:
    """Write or check every file; the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m policies.generate [--check]", file=sys.stderr)
        return 2
    stale = []
    for name, text in files(TEMPLATE.read_bytes()).items():
        path = folder / name
        if path.exists() and path.read_bytes() == text.encode():
            continue
        stale.append(name)
        if not arguments:
            path.write_bytes(text.encode())
            print(f"wrote policies/{name}")
    if arguments and stale:
        print(f"stale: {', '.join(stale)}; run `make policies`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
