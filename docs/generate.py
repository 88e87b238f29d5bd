"""Writes the parts of docs/ that are made from code: `python -m docs.generate [--check]`.

    PAGES       errors.md, options.md: whole pages
    SECTIONS    what stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->` of a page that people write

Rules:
- Output depends on the code alone; `--check` writes nothing and exits 1 when a file differs from what would be written.
- What is said of a setting or field is said once, in the docstring of its class or the help of an option.
- A setting, field or option of which nothing is said is an error, not an empty cell.

What does not belong here: prose (the pages themselves).
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union

import click
from prometheus_client.metrics import MetricWrapperBase
from pydantic.fields import FieldInfo

from provider.cli import commands
from provider.configuration.key_providers import (
    AzureKeyVaultParameters,
    Duration,
    InlineParameters,
    VaultObjectParameters,
)
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.resources import (
    KINDS,
    LATER,
    CertificateStoreSpec,
    KeyManagementProviderSpec,
    PolicySpec,
    StoreSpec,
    VerifierSpec,
)
from provider.configuration.sections import AbsolutePath, Host, Section
from provider.configuration.stores import (
    AwsEcrParameters,
    AzureManagedIdentityParameters,
    AzureWorkloadIdentityParameters,
    DockerConfigParameters,
    GoogleWorkloadIdentityParameters,
    KubernetesSecretsParameters,
    OciLayoutParameters,
    OrasParameters,
    RegistryHost,
    RegistryParameters,
    SecretReference,
)
from provider.configuration.verifiers import NotationParameters, RevocationParameters
from provider.errors import CODES, Kind
from provider.executor import ExecutorSettings
from provider.figures import FAMILIES
from provider.gatekeeper.settings import ListenerSettings, RequestLimits, ServerSettings
from provider.notation.trust_policy import TrustPolicyDocument
from provider.patience import PatienceSettings
from provider.stores.profile import OrasStoreSettings
from provider.telemetry import Metrics

HERE: Final = Path(__file__).parent

Row = Sequence[str]


def table(heads: Row, rows: Iterable[Row]) -> list[str]:
    """A Markdown table. A bar inside a cell is escaped."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return lines


def attribute_texts(cls: type) -> dict[str, str]:
    """What the docstring of a class, and of those it is made from, says of each attribute."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(base.__doc__ or ""), re.MULTILINE)
        for entry in re.split(r"\n(?= {4}\w)", section[1].rstrip()) if section else ():
            name, _, text = entry.strip().partition(":")
            texts[name] = " ".join(text.split())
    return texts


def sentence(text: str) -> str:
    """A docstring's words as a sentence of their own."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


# -- errors.md --------------------------------------------------------------------------------------------------------

_KINDS: Final = {
    Kind.INVALID_KEY: ("The key is wrong", "Answered as the item's `error`. Gatekeeper keeps it: it will not heal."),
    Kind.REFUSED: (
        "Refused",
        "A decision: `isSuccess` is false, `code` and the reports say why. Gatekeeper keeps it for its cache's time.",
    ),
    Kind.UNDECIDED: (
        "Could not decide",
        "The image is denied this time. The key is left out of the answer and `systemError` names the cause; nobody "
        "keeps it, so the next attempt asks again.",
    ),
    Kind.CONFIGURATION: (
        "Configuration",
        "Reported by `countersign check-config`, in the log, and at start. The last good configuration stays active.",
    ),
    Kind.USAGE: ("Command line", "Exit code 2."),
}


def errors_page() -> str:
    """docs/errors.md."""
    lines = [
        "# Error codes",
        "",
        "Made from `provider/errors.py` by `make docs`. A code never changes its meaning.",
        "",
        "Every refusal says its code, what happened, what was expected and found, and what to do. The code is in the",
        "verdict's `code` and in each report's `code`, in the message of a denied pod, in the log and in",
        "`countersign verify`.",
    ]
    for kind, (title, meaning) in _KINDS.items():
        lines += ["", f"## {title}", "", meaning, "", "| code | meaning | what to do |", "|---|---|---|"]
        lines += [
            f"| `{code}` | {entry.meaning} | {entry.remediation} |"
            for code, entry in CODES.items()
            if entry.kind is kind
        ]
    return "\n".join(lines) + "\n"


# -- options.md -------------------------------------------------------------------------------------------------------

# Options of `serve` and the settings that they set: the reason for a default is told there.
_SET_BY: Final[Mapping[str, tuple[type, str]]] = {
    "client_names": (ListenerSettings, "allowed_client_names"),
    "verify_deadline": (ServerSettings, "verify_seconds"),
    "mutate_deadline": (ServerSettings, "mutate_seconds"),
    "mutation_keep_tag": (ExecutorSettings, "keep_tag"),
    "result_ttl": (ExecutorSettings, "result_ttl_seconds"),
    "result_cache_mib": (ExecutorSettings, "max_result_bytes"),
    "verification_timeout": (ExecutorSettings, "verification_timeout_seconds"),
    "max_keys": (RequestLimits, "max_keys"),
    "max_body_bytes": (RequestLimits, "max_body_bytes"),
    "trace_headers": (ServerSettings, "trace_headers"),
}
# What `serve` sets from other options, or has no use for in a table of limits.
_NOT_FIXED: Final = frozenset({"host", "port", "requests", "background_seconds", "patience"})

_OPTIONS_INTRODUCTION: Final = """\
# Options of every command

Made from the commands by `make docs`. An option can be given on the command line or by its environment variable; the
command line wins. An option that may be given several times takes several values from its variable too: paths are
separated by `:`, other values by blanks. An empty variable counts as not set.

The variables begin with `COUNTERSIGN_`, and so do those that Kubernetes sets in every pod for a Service called
`countersign`: that is why the port's variable is `COUNTERSIGN_LISTEN_PORT` and not `COUNTERSIGN_PORT`.
"""


def options_page() -> str:
    """docs/options.md."""
    lines = [_OPTIONS_INTRODUCTION.rstrip()]
    context = click.Context(commands, info_name="countersign")
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        assert command is not None  # noqa: S101 - its name was listed
        purpose = inspect.cleandoc(command.help or "").split("\n\n")[0]
        lines += ["", f"## countersign {name}", "", " ".join(purpose.split())]
        arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
        lines += [
            line
            for argument in arguments
            for line in ("", f"Argument: `{argument.make_metavar(click.Context(command))}`.")
        ]
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        if options:
            heads = ("option", "variable", "default", "meaning")
            lines += ["", *table(heads, map(_option_row, options))]
        else:
            lines += ["", "It has no options."]
    return "\n".join(lines) + "\n"


def _option_row(option: click.Option) -> Row:
    help_text, _, told_default = (option.help or "").partition("[default: ")
    if not help_text.strip():
        raise LookupError(f"{option.opts[0]} has no help")
    meaning = " ".join(help_text.split())
    if option.name in _SET_BY:
        cls, attribute = _SET_BY[option.name]
        meaning += f" <br>Why: {attribute_texts(cls)[attribute]}"
    default = told_default.removesuffix("]") or _default_text(option)
    names = ", ".join(f"`{name}`" for name in option.opts) + (f" {_values(option)}" if not option.is_flag else "")
    variable = f"`{option.envvar}`" if option.envvar else "-"
    return names, variable, default, meaning + (" May be given several times." if option.multiple else "")


def _default_text(option: click.Option) -> str:
    default = option.to_info_dict()["default"]
    if option.required:
        return "required"
    if option.is_flag:
        return "off"
    if option.multiple:
        return ", ".join(f"`{value}`" for value in default or ()) or "none"
    return "none" if default is None else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _values(option: click.Option) -> str:
    """What may stand behind an option."""
    kind = option.type
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        unit = "number" if isinstance(kind, click.FloatRange) else "whole number"
        upper = "" if kind.max is None else f" to {kind.max:g}"
        return unit if kind.min is None else f"{unit}, {kind.min:g}{upper or ' or more'}"
    return (option.metavar or kind.name).lower()


def fixed_limits() -> list[str]:
    """The settings of the server that have no option, with their values and reasons."""
    optional = {attribute for _, attribute in _SET_BY.values()} | _NOT_FIXED
    rows = []
    for cls in (ServerSettings, ListenerSettings, RequestLimits, ExecutorSettings, PatienceSettings):
        texts = attribute_texts(cls)
        rows += [
            (f"`{entry.name}`", f"{_dataclass_default(entry):g}", sentence(texts[entry.name]))
            for entry in fields(cls)
            if entry.name not in optional
        ]
    return table(("limit", "value", "what, and why"), rows)


def _dataclass_default(entry: Field[Any]) -> Any:
    if entry.default is MISSING:
        raise LookupError(f"{entry.name} has no default to show")
    return entry.default


# -- metrics ----------------------------------------------------------------------------------------------------------

_SUFFIXES: Final = {"counter": "_total", "info": "_info"}  # what the exposition adds to a metric's name


def metrics() -> list[str]:
    """Every metric of our own, in the order in which they are exposed."""
    all_of_them = Metrics()
    members = [
        member
        for value in vars(all_of_them).values()
        for member in (value.values() if isinstance(value, dict) else (value,))
    ]
    # There is no public way to a metric's label names before a sample has them.
    labels = {metric._name: metric._labelnames for metric in members if isinstance(metric, MetricWrapperBase)}
    families = [
        family for family in all_of_them.registry.collect() if family.name.startswith(("countersign_", "ratify_"))
    ]
    labels |= {name: family.labels for name, family in FAMILIES.items()}
    rows = [
        (
            f"`{family.name}{_SUFFIXES.get(family.type, '')}`",
            family.type,
            ", ".join(f"`{label}`" for label in labels.get(family.name, ())) or "-",
            family.documentation,
        )
        for family in families
    ]
    return table(("metric", "type", "labels", "meaning"), rows)


# -- configuration.md -------------------------------------------------------------------------------------------------

_EVERY_PARAMETERS: Final = "settings of the type, see below"
# Fields of which their classes say nothing, or nothing that helps without the code beside it.
_MEANINGS: Final[Mapping[tuple[type, str], str]] = {
    (StoreSpec, "name"): "the type: `oras` or `oci-layout`",
    (StoreSpec, "parameters"): _EVERY_PARAMETERS,
    (OrasParameters, "auth_provider"): (
        "where credentials come from; without it Docker's configuration file, if there is one"
    ),
    (VerifierSpec, "name"): "the type: `notation`; with `type` given, a name of your own",
    (VerifierSpec, "parameters"): _EVERY_PARAMETERS,
    (VerifierSpec, "artifact_types"): (
        "artifact types that are verified, separated by commas; `*` is any; for Notary Project signatures "
        "`application/vnd.cncf.notary.signature`"
    ),
    (KeyManagementProviderSpec, "type"): "the type: `inline` or `azurekeyvault`",
    (KeyManagementProviderSpec, "parameters"): _EVERY_PARAMETERS,
    (PolicySpec, "type"): "the type: `config-policy`",
    (PolicySpec, "parameters"): _EVERY_PARAMETERS,
    (CertificateStoreSpec, "provider"): "the type: `inline`",
    (CertificateStoreSpec, "parameters"): _EVERY_PARAMETERS,
}
# Where None means the default of the object that is built from the section.
_BUILT_FROM: Final[Mapping[type[Section], type]] = {OrasParameters: OrasStoreSettings}
_TYPE_NAMES: Final[Sequence[tuple[Any, str]]] = (
    (AbsolutePath, "path"),
    (Duration, "duration"),
    (RegistryHost, "registry host"),
    (Host, "host or host:port"),
    (TrustPolicyDocument, "[trust policy document](trust-policy.md)"),
    (bool, "true or false"),
    (int, "whole number"),
    (float, "number"),
    (str, "text"),
    (Any, "anything"),
)
_ANCHORS: Final[Mapping[type[Section], str]] = {
    RegistryParameters: "entries of registries",
    DockerConfigParameters: "authProvider dockerConfig",
    KubernetesSecretsParameters: "authProvider k8Secrets",
    AzureWorkloadIdentityParameters: "authProvider azureWorkloadIdentity",
    AzureManagedIdentityParameters: "authProvider azureManagedIdentity",
    AwsEcrParameters: "authProvider awsEcrBasic",
    GoogleWorkloadIdentityParameters: "authProvider googleWorkloadIdentity",
    RevocationParameters: "revocation",
}


def section_fields(model: type[Section]) -> Callable[[], list[str]]:
    """The table of a model's fields."""
    return lambda: table(("key", "value", "default", "meaning"), _field_rows(model))


def _field_rows(model: type[Section]) -> Iterator[Row]:
    hints = typing.get_type_hints(model, include_extras=True)
    texts = attribute_texts(model)
    keys = {name: info.alias or name for name, info in model.model_fields.items()}
    other_names = re.compile("|".join(rf"\b{name}\b" for name, key in keys.items() if name != key) or r"(?!)")
    for name, info in model.model_fields.items():
        text = _MEANINGS.get((model, name)) or texts.get(name)
        if not text:
            raise LookupError(f"nothing is said of {model.__name__}.{name}")
        text = other_names.sub(lambda match: f"`{keys[match[0]]}`", text)
        yield f"`{keys[name]}`", _type_text(hints[name]), _field_default(model, name, info), sentence(text)


def _field_default(model: type[Section], name: str, info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True, validated_data={})
    if default is None and model in _BUILT_FROM:
        built = {entry.name: entry.default for entry in fields(_BUILT_FROM[model])}
        default = built.get(name)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return f"{default:g}"
    return "-" if not default or isinstance(default, Section) else str(default)


def _type_text(annotation: Any) -> str:
    """What may stand in a field, in words."""
    for known, name in _TYPE_NAMES:
        if annotation == known:
            return name
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0]) + _bounds(arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(_type_text(part) for part in arguments if part is not NoneType)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type_text(arguments[0])} to {_type_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        if annotation not in _ANCHORS:
            return "mapping"
        title = _ANCHORS[annotation]
        return f"mapping, see [{title}](#{title.replace(' ', '-').lower()})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    raise LookupError(f"there are no words for {annotation}")


def _bounds(metadata: Iterable[Any]) -> str:
    """Limits of a number, of those that pydantic knows."""
    rules = [rule for info in metadata if isinstance(info, FieldInfo) for rule in info.metadata]
    words = {"ge": "from {:g}", "gt": "more than {:g}", "le": "to {:g}"}
    told = [text.format(getattr(rule, name)) for rule in rules for name, text in words.items() if hasattr(rule, name)]
    return f", {' '.join(told)}" if told else ""


def kinds() -> list[str]:
    """Every kind, what it configures and where it holds."""
    rows = [
        (
            f"`{kind}`",
            f"a {entry.component.value}" if entry.component.value != kind else "-",
            "its namespace" if entry.namespaced else "the cluster",
            "`v1beta1`, and `v1alpha1` with a warning" if entry.former_version else "`v1beta1`",
        )
        for kind, entry in KINDS.items()
    ]
    return table(("kind", "becomes", "holds for", "versions of config.ratify.deislabs.io"), rows)


def later_types() -> list[str]:
    """Types that Ratify has and this version has not."""
    rows = [(component.value, f"`{name}`", reason) for (component, name), reason in LATER.items()]
    return table(("kind", "type", "what is said of it"), rows)


# -- writing ----------------------------------------------------------------------------------------------------------

PAGES: Final[Mapping[str, Callable[[], str]]] = {"errors.md": errors_page, "options.md": options_page}
SECTIONS: Final[Mapping[str, Mapping[str, Callable[[], list[str]]]]] = {
    "operations.md": {"metrics": metrics, "limits": fixed_limits},
    "configuration.md": {
        "kinds": kinds,
        "later": later_types,
        "store": section_fields(StoreSpec),
        "oras": section_fields(OrasParameters),
        "registries": section_fields(RegistryParameters),
        "dockerConfig": section_fields(DockerConfigParameters),
        "k8Secrets": section_fields(KubernetesSecretsParameters),
        "pull-secrets": section_fields(SecretReference),
        "azureWorkloadIdentity": section_fields(AzureWorkloadIdentityParameters),
        "azureManagedIdentity": section_fields(AzureManagedIdentityParameters),
        "awsEcrBasic": section_fields(AwsEcrParameters),
        "googleWorkloadIdentity": section_fields(GoogleWorkloadIdentityParameters),
        "oci-layout": section_fields(OciLayoutParameters),
        "verifier": section_fields(VerifierSpec),
        "notation": section_fields(NotationParameters),
        "revocation": section_fields(RevocationParameters),
        "keymanagementprovider": section_fields(KeyManagementProviderSpec),
        "inline": section_fields(InlineParameters),
        "azurekeyvault": section_fields(AzureKeyVaultParameters),
        "vault-objects": section_fields(VaultObjectParameters),
        "policy": section_fields(PolicySpec),
        "config-policy": section_fields(ConfigPolicyParameters),
        "certificatestore": section_fields(CertificateStoreSpec),
    },
}
_SECTION = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n.*?<!-- end: (?P=name) -->\n", re.DOTALL)


def fill(text: str, sections: Mapping[str, Callable[[], list[str]]]) -> str:
    """A page with its generated sections made anew.

    Raises:
        LookupError: a section of the page is not known, or a known one is not in the page exactly once.
    """
    found = [match["name"] for match in _SECTION.finditer(text)]
    if sorted(found) != sorted(sections):
        raise LookupError(f"the page has the generated sections {sorted(found)}, expected {sorted(sections)}")

    def make(match: re.Match[str]) -> str:
        name = match["name"]
        return "\n".join((f"<!-- generated: {name} -->", "", *sections[name](), "", f"<!-- end: {name} -->", ""))

    return _SECTION.sub(make, text)


def files() -> dict[str, str]:
    """Every file that has a generated part, as it should be."""
    texts = {name: page() for name, page in PAGES.items()}
    for name, sections in SECTIONS.items():
        texts[name] = fill((HERE / name).read_text(encoding="utf-8"), sections)
    return texts


def main(arguments: list[str]) -> int:
    """Write or check every page; the exit code."""
    check = arguments == ["--check"]
    stale = []
    for name, text in files().items():
        path = HERE / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    if check and stale:
        print(f"stale: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
