"""The ground on which the models of the custom resources stand: base class, field types, and faults in plain words.

Rules:
- Unknown keys are faults, with the key that was probably meant. Types are strict: the text "yes" is no boolean and 5 no
  text, because a reader that guesses makes a policy mean something else than was written.
- Everything wrong in a section is found at once, each with its key path.
- A fault never quotes more than a short scalar, and no text of several lines: that is where keys and certificates are.
- What only those may say who administer the whole cluster is said of the field's type: every path (AbsolutePath), and
  what `cluster_only` marks. Who may write resources in a namespace must get at nothing that is the provider's own.

What does not belong here: any resource (the siblings), where text comes from (manifests.py, cluster.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, NoReturn, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from provider.errors import printable

MAX_FLAWS: Final = 100  # of one section; nobody reads more
MAX_QUOTED: Final = 64  # characters of a found scalar that a fault repeats
_SIMPLE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"  # RFC 1123, as Kubernetes demands
OBJECT_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
NAMESPACE_NAME: Final = re.compile(rf"(?=.{{1,63}}\Z){_LABEL}")
_HOST: Final = re.compile(  # a DNS name (RFC 1123), an IPv4 address or a bracketed IPv6 address
    r"(?=.{1,260}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
)
CLUSTER_ONLY: Final = "is for resources of the whole cluster only"  # how faults begin that only a tenant gets
_FLAW: Final = "flaw"  # pydantic error type of problems that already are in our words


class Flaw(NamedTuple):
    """One thing wrong in a section: key path from the section's root, and what is wrong."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a field may need to know beyond its value.

    Attributes:
        folder: folder of the manifest, that relative paths begin at; None when there is none (a resource of a cluster).
        tenant: namespace of a resource that belongs to one; empty for one of the whole cluster.
    """

    folder: Path | None = None
    tenant: str = ""


class Section(BaseModel):
    """Base of every model: closed, strict, immutable, keys in camelCase, and silent about values in its own errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    def oddities(self) -> Iterable[Flaw]:
        """What is no fault but should be told: settings without effect, settings that contradict each other."""
        return ()


SectionT = TypeVar("SectionT", bound=Section)
T = TypeVar("T")

Listed = Annotated[tuple[T, ...], Field(strict=False)]  # a list in the manifest, immutable here
Text = Annotated[str, Field(min_length=1)]


def inspect(model: type[SectionT], value: Any, surroundings: Surroundings) -> tuple[SectionT | None, list[Flaw]]:
    """Read a section.

    Args:
        model: what it should be.
        value: what the manifest holds, untrusted.
        surroundings: handed to the fields.

    Returns:
        The section, or None and everything that is wrong with it.
    """
    try:
        return model.model_validate(value, context=surroundings), []
    except ValidationError as error:
        return None, [_flaw(model, details) for details in error.errors(include_url=False)[:MAX_FLAWS]]


def reject(flaws: Iterable[Flaw]) -> NoReturn:
    """Raise what a field validator raises, when it has found several things wrong beneath the field's path."""
    raise ValidationError.from_exception_data(
        _FLAW,
        [
            InitErrorDetails(
                type=PydanticCustomError(_FLAW, "{message}", {"message": flaw.message, "path": flaw.path}), input=None
            )
            for flaw in flaws
        ],
    )


def flaw(message: str) -> PydanticCustomError:
    """What a field validator raises for one problem with the field itself."""
    return PydanticCustomError(_FLAW, "{message}", {"message": message, "path": ""})


def join(*paths: str) -> str:
    """Join key paths: `spec`, `parameters`, `[0].name` -> `spec.parameters[0].name`."""
    joined = ""
    for path in paths:
        joined += path if not joined or not path or path.startswith("[") else f".{path}"
    return joined


def step(key: str | int) -> str:
    """One step of a key path; keys with characters of their own meaning are quoted."""
    if isinstance(key, int):
        return f"[{key}]"
    return key if _SIMPLE_KEY.fullmatch(key) else f'["{printable(key, MAX_QUOTED)}"]'


def describe(value: Any) -> str:
    """A found value for a fault: short scalars as they are, the rest by kind."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > 64:  # Python refuses to write out thousands of digits
            return "a very large number"
        case int() | float():
            return f"the number {value}"
        case str() if "\n" in value or len(value) > MAX_QUOTED:
            return f"a text of {len(value)} characters"
        case str():
            return f"the text {quote(value)}"
        case list() | tuple():
            return "a list"
        case _:
            return "a mapping"


def quote(text: str) -> str:
    """A short foreign text in quotes."""
    return f"'{printable(text, MAX_QUOTED)}'"


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or what there is to choose from."""
    choices = sorted(known) if len(word) <= MAX_QUOTED else []
    # Case first: difflib counts `usehttp` and `useHttp` as further apart than people do.
    folded = {choice.lower(): choice for choice in choices}
    near = folded.get(word.lower()) or next(iter(difflib.get_close_matches(word, choices, n=1, cutoff=0.7)), None)
    if near is not None:
        return f"; did you mean {near}?"
    return f"; known: {', '.join(choices)}" if choices else ""


def surroundings_of(info: ValidationInfo) -> Surroundings:
    """What was handed to the field that is being read."""
    return info.context if isinstance(info.context, Surroundings) else Surroundings()


def cluster_only(why: str) -> BeforeValidator:
    """Marks a field that a resource of one namespace may not set to anything but nothing.

    Args:
        why: what it would let a tenant do, for the fault.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if value and surroundings_of(info).tenant:
            raise flaw(f"{CLUSTER_ONLY}: it {why}")
        return value

    return BeforeValidator(check)


def _absolute(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str):
        raise flaw(f"must be a path, found {describe(value)}")
    if not value or "\0" in value:
        raise flaw("must be a path, found an empty text or one with a NUL character")
    if surroundings_of(info).tenant:
        raise flaw(f"{CLUSTER_ONLY}: it names a file of the provider's own")
    path = Path(value)
    folder = surroundings_of(info).folder
    if not path.is_absolute() and folder is None:
        raise flaw(f"must be an absolute path, found {describe(value)}")
    return path if folder is None else folder / path


AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]  # relative ones begin at the manifest's folder


def _host(value: str) -> str:
    match = _HOST.fullmatch(value)
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise flaw(f"must be a host or host:port, without scheme and path, found {quote(value)}")
    return value


Host = Annotated[str, AfterValidator(_host)]


def _flaw(model: type[Section], details: ErrorDetails) -> Flaw:
    location, context, found = details["loc"], details.get("ctx", {}), details["input"]
    path = join(*(step(key) for key in location))
    if details["type"] == _FLAW:
        return Flaw(join(path, context["path"]), context["message"])
    if details["type"] == "extra_forbidden":
        key = str(location[-1])
        return Flaw(path, f"is not a known key{suggest(key, _known_keys(model, location[:-1]))}")
    wording = _WORDINGS.get(details["type"])
    return Flaw(path, wording(context, found) if wording else details["msg"])


def _wanted(what: str) -> Callable[[Mapping[str, Any], Any], str]:
    return lambda _context, found: f"must be {what}, found {describe(found)}"


def _wanted_text(_context: Mapping[str, Any], found: Any) -> str:
    quotes = " (put it in quotes)" if isinstance(found, (bool, int, float)) else ""
    return f"must be text, found {describe(found)}{quotes}"


_WORDINGS: Final[Mapping[str, Callable[[Mapping[str, Any], Any], str]]] = {
    "missing": lambda _context, _found: "is required",
    "string_type": _wanted_text,
    "string_too_short": lambda _context, _found: "must not be empty",
    "bool_type": _wanted("true or false"),
    "int_type": _wanted("a whole number"),
    "float_type": _wanted("a number"),
    "finite_number": _wanted("a finite number"),
    "tuple_type": _wanted("a list"),
    "dict_type": _wanted("a mapping"),
    "model_type": _wanted("a mapping"),
    "literal_error": lambda context, found: f"must be {context['expected']}, found {describe(found)}",
    "greater_than_equal": lambda context, found: f"must be at least {context['ge']:g}, found {describe(found)}",
    "greater_than": lambda context, found: f"must be more than {context['gt']:g}, found {describe(found)}",
    "less_than_equal": lambda context, found: f"must be at most {context['le']:g}, found {describe(found)}",
    "too_short": lambda context, _found: f"must have at least {context['min_length']} entries",
    "too_long": lambda context, _found: f"must have at most {context['max_length']} entries",
}


def _known_keys(model: type[Section], location: tuple[str | int, ...]) -> tuple[str, ...]:
    """The keys that a mapping at this place may have."""
    section: type[Section] | None = model
    for key in location:
        if isinstance(key, str) and section is not None:  # numbers are places in a list of sections
            fields = section.model_fields.values()
            section = next((_section_in(field.annotation) for field in fields if field.alias == key), None)
    return () if section is None else tuple(field.alias or name for name, field in section.model_fields.items())


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that an annotation is about: itself, or the first in a union, a list or Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section_in(part)) is not None), None)
