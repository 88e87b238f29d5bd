"""Gatekeeper's side of an admission: a review, the answer to the external data call, the shipped Rego, kubectl's text.

    review -> Template.keys -> (the provider is called by whoever uses this file) -> ExternalData -> Template.violations

Rules:
- The Rego is evaluated as it is shipped. Only `external_data`, a function that Gatekeeper adds to the language, is
  supplied: by a second module of the template's package that answers with an ExternalData.
- ExternalData holds what Rego sees, which is not what went over the wire: pairs instead of items, errors apart from
  values, null for both when the call failed.
- An evaluation that does not come to a result is an error, never an empty list of violations.

What does not belong here: HTTP (scenario.py), which images there are (images.py). Not imitated: Gatekeeper's response
cache, and of `match` all but kinds and namespaces; a constraint that uses more is refused.
Sources: github.com/open-policy-agent/frameworks (externaldata), regopy (the Rego interpreter).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import yaml
from regopy import Interpreter, RegoError

from provider.errors import ConfigurationError, Undecided
from provider.strict_json import MalformedJSONError, loads

MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024  # Gatekeeper itself reads without a limit
WEBHOOK: Final = "validation.gatekeeper.sh"
PROVIDER: Final = "ratify-provider"  # name of the Provider object that the shipped templates ask

_EXTERNAL_DATA: Final = """package {package}

external_data(request) := data.answer if request.provider == data.provider
"""


def policies_folder() -> Path:
    """The shipped policies: inside an installed wheel, or beside `provider/` in a source tree.

    Raises:
        ConfigurationError: CONFIG_INVALID, when neither is there.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "policies", here.parent.parent / "policies"):
        if (folder / "template.yaml").is_file():
            return folder
    raise ConfigurationError("CONFIG_INVALID", "the shipped policies are missing", expected=str(here / "policies"))


@dataclass(frozen=True, slots=True)
class ExternalData:
    """What the builtin `external_data` returns for one call.

    Attributes:
        responses: pairs (key, value); None when the call failed.
        errors: pairs (key, error text); None when the call failed.
        status_code: the HTTP status, or Gatekeeper's own 500 when there was no readable answer.
        system_error: the provider's systemError, or Gatekeeper's description of the failed call.
    """

    responses: Sequence[tuple[str, Any]] | None
    errors: Sequence[tuple[str, str]] | None
    status_code: int
    system_error: str

    @classmethod
    def from_response(cls, status: int, body: bytes) -> Self:
        """Turn an HTTP answer into what Rego sees. The status decides nothing; an unreadable body is a failed call."""
        try:
            document = loads(body, max_bytes=MAX_RESPONSE_BYTES)
        except MalformedJSONError as error:
            return cls.failed(f"failed to unmarshal external data response: {error}")
        response = document.get("response") if isinstance(document, dict) else None
        items = response.get("items") if isinstance(response, dict) else None
        entries = [item for item in items or () if isinstance(item, dict) and isinstance(item.get("key"), str)]
        return cls(
            responses=[(item["key"], item.get("value")) for item in entries if not item.get("error")],
            errors=[(item["key"], item["error"]) for item in entries if item.get("error")],
            status_code=status,
            system_error=str(response.get("systemError") or "") if isinstance(response, dict) else "",
        )

    @classmethod
    def failed(cls, description: str) -> Self:
        """The call brought no answer: both lists are null in Rego."""
        return cls(responses=None, errors=None, status_code=500, system_error=description)

    def to_json(self) -> dict[str, Any]:
        """The object that Rego sees."""
        return {
            "responses": self.responses,
            "errors": self.errors,
            "status_code": self.status_code,
            "system_error": self.system_error,
        }


@dataclass(frozen=True, slots=True)
class Template:
    """A ConstraintTemplate whose Rego is of version 1.

    Attributes:
        name: name of the template.
        kind: kind of its constraints.
        package: package of its Rego.
        rego: the Rego, verbatim.
    """

    name: str
    kind: str
    package: str
    rego: str

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a template's YAML manifest.

        Raises:
            ConfigurationError: CONFIG_INVALID, when it is no ConstraintTemplate with Rego of version 1.
        """
        document = _manifest(data, "ConstraintTemplate")
        try:
            source = next(
                code["source"]
                for target in document["spec"]["targets"]
                for code in target["code"]
                if code["engine"] == "Rego" and code["source"]["version"] == "v1"
            )
            rego = source["rego"]
            package = next(line.split()[1] for line in rego.splitlines() if line.startswith("package "))
            return cls(document["metadata"]["name"], document["spec"]["crd"]["spec"]["names"]["kind"], package, rego)
        except (KeyError, TypeError, AttributeError, IndexError, StopIteration):
            raise ConfigurationError("CONFIG_INVALID", "the ConstraintTemplate has no Rego of version v1") from None

    def keys(self, review: Mapping[str, Any]) -> tuple[str, ...]:
        """The keys that the template asks the provider about, in their order.

        Raises:
            Undecided: INTERNAL, when the evaluation brings no result.
        """
        return tuple(self._evaluate("keys", review, None))

    def violations(self, review: Mapping[str, Any], answer: ExternalData | None) -> tuple[str, ...]:
        """The messages of the violations, in order; empty means that the object is admitted.

        Args:
            review: `input.review` as Gatekeeper makes it.
            answer: what the builtin returns; None for a builtin that fails and so is undefined.

        Raises:
            Undecided: INTERNAL, when the evaluation brings no result.
        """
        return tuple(sorted(violation["msg"] for violation in self._evaluate("violation", review, answer)))

    def _evaluate(self, rule: str, review: Mapping[str, Any], answer: ExternalData | None) -> list[Any]:
        known = {} if answer is None else {"answer": answer.to_json(), "provider": PROVIDER}
        try:
            interpreter = Interpreter()
            interpreter.add_module(self.name, self.rego)
            interpreter.add_module("external_data", _EXTERNAL_DATA.format(package=self.package))
            interpreter.add_data_json(json.dumps(known))
            interpreter.set_input({"review": review})
            value = interpreter.query(f"data.{self.package}.{rule}").results[0].expressions[0]
        except (RegoError, ValueError, LookupError):  # the latter two: what regopy makes of an empty output
            raise Undecided("INTERNAL", f"the Rego of {self.name} has no result for {rule}") from None
        if not isinstance(value, list):
            raise Undecided("INTERNAL", f"the Rego of {self.name} cannot be evaluated", found=str(value))
        return value


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint: where a template applies and what a violation does.

    Attributes:
        name: name of the constraint; users see it in brackets.
        kind: the template's kind.
        action: enforcement action, such as `deny`.
        kinds: pairs (API group, kind) that it matches.
        namespaces: namespaces that it matches; empty means all.
    """

    name: str
    kind: str
    action: str
    kinds: frozenset[tuple[str, str]]
    namespaces: frozenset[str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a constraint's YAML manifest.

        Raises:
            ConfigurationError: CONFIG_INVALID, when it is no constraint or matches by more than kinds and namespaces.
        """
        document = _manifest(data, None)
        try:
            spec, match = document["spec"], document["spec"]["match"]
            if not set(match) <= {"kinds", "namespaces"}:
                raise ConfigurationError("CONFIG_INVALID", "the constraint matches by more than kinds and namespaces")
            return cls(
                name=document["metadata"]["name"],
                kind=document["kind"],
                action=spec.get("enforcementAction", "deny"),
                kinds=frozenset(
                    (group, kind) for entry in match["kinds"] for group in entry["apiGroups"] for kind in entry["kinds"]
                ),
                namespaces=frozenset(match.get("namespaces", ())),
            )
        except (KeyError, TypeError, AttributeError):
            raise ConfigurationError("CONFIG_INVALID", "the manifest is not a constraint") from None

    def matches(self, review: Mapping[str, Any]) -> bool:
        """Whether Gatekeeper evaluates the constraint on this review."""
        kind = (review["kind"]["group"], review["kind"]["kind"])
        return kind in self.kinds and (not self.namespaces or review["namespace"] in self.namespaces)


def review_of(manifest: Mapping[str, Any], *, operation: str = "CREATE") -> dict[str, Any]:
    """`input.review` of the admission of a manifest with apiVersion, kind and metadata.

    A manifest without a namespace gets `default`, as kubectl and the API server would give it.
    """
    group, _, version = manifest["apiVersion"].rpartition("/")
    metadata = {"namespace": "default", **manifest["metadata"]}
    return {
        "kind": {"group": group, "version": version, "kind": manifest["kind"]},
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "operation": operation,
        "userInfo": {"username": "demo"},
        "dryRun": False,
        "object": {**manifest, "metadata": metadata},
    }


def denial(constraint: str, messages: Sequence[str]) -> str:
    """What kubectl prints when the webhook denies: every message with its constraint, a line each."""
    lines = "\n".join(f"[{constraint}] {message}" for message in messages)
    return f'Error from server (Forbidden): admission webhook "{WEBHOOK}" denied the request: {lines}'


def _manifest(data: bytes, kind: str | None) -> dict[str, Any]:
    try:
        document = yaml.safe_load(data)
    except yaml.YAMLError:
        raise ConfigurationError("CONFIG_INVALID", "the manifest is not YAML") from None
    if (
        not isinstance(document, dict)
        or not isinstance(document.get("kind"), str)
        or (kind and document["kind"] != kind)
    ):
        raise ConfigurationError("CONFIG_INVALID", f"the manifest is not a {kind or 'constraint'}")
    return document
