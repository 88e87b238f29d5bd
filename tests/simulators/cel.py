"""The part of CEL (the language of validation rules) that our custom resource definitions use.

    evaluate("!has(self.a) || size(self.a) < 3", {"self": {"a": [1]}})

Knows: || && ! == != < <= > >= in ?: () [] . member and index access, has(), size(), .matches(), .contains(), .all(),
text in quotes and r'raw text', numbers, true, false. Anything else is a SyntaxError, so that a rule which this reads
otherwise than an API server would is noticed; tests/e2e/test_crds.py asks the real one about the same objects.

As Kubernetes has it, `has()` is false for what is null.
Source: the CEL language definition; Kubernetes "Validation rules".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<raw>r'[^']*')|(?P<text>'(?:[^'\\]|\\.)*')|(?P<number>[0-9]+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\|\||&&|==|!=|<=|>=|[!<>?:()\[\].,]))"
)
_COMPARISONS: Final = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
    "in": lambda left, right: left in right,
}


def evaluate(expression: str, variables: Mapping[str, Any]) -> Any:
    """The value of an expression.

    Raises:
        SyntaxError: it is none that this knows.
        KeyError: a member is not there, which an API server reports as an error of the rule.
    """
    return _Parser(expression).run()(variables)


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    expression = expression.rstrip()
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise SyntaxError(f"not understood: {expression[position:]}")
        kind = str(match.lastgroup)
        tokens.append((kind, match[kind]))
        position = match.end()
    return tokens


class _Parser:
    """Turns an expression into a function of its variables, by recursive descent."""

    def __init__(self, expression: str) -> None:
        self._tokens = _tokens(expression)
        self._at = 0

    def run(self) -> Any:
        result = self._choice()
        if self._at != len(self._tokens):
            raise SyntaxError(f"not understood: {self._tokens[self._at :]}")
        return result

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        found = self._peek()
        if wanted and found not in wanted:
            raise SyntaxError(f"{wanted} expected, found {found!r}")
        self._at += 1
        return found

    def _choice(self) -> Any:
        condition = self._or()
        if self._peek() != "?":
            return condition
        self._take("?")
        chosen = self._choice()
        self._take(":")
        other = self._choice()
        return lambda known: chosen(known) if condition(known) else other(known)

    def _or(self) -> Any:
        left = self._and()
        while self._peek() == "||":
            self._take()
            left = (lambda one, two: lambda known: bool(one(known)) or bool(two(known)))(left, self._and())
        return left

    def _and(self) -> Any:
        left = self._comparison()
        while self._peek() == "&&":
            self._take()
            left = (lambda one, two: lambda known: bool(one(known)) and bool(two(known)))(left, self._comparison())
        return left

    def _comparison(self) -> Any:
        left = self._not()
        if self._peek() in _COMPARISONS:
            compare, right = _COMPARISONS[self._take()], self._not()
            return lambda known: compare(left(known), right(known))
        return left

    def _not(self) -> Any:
        if self._peek() == "!":
            self._take()
            inner = self._not()
            return lambda known: not inner(known)
        return self._member()

    def _member(self) -> Any:
        value = self._primary()
        while self._peek() in (".", "["):
            if self._take() == "[":
                value = (lambda of, key: lambda known: of(known)[key(known)])(value, self._choice())
                self._take("]")
                continue
            name = self._take()
            value = self._call(value, name) if self._peek() == "(" else _attribute(value, name)
        return value

    def _call(self, value: Any, name: str) -> Any:
        self._take("(")
        if name == "all":
            variable = self._take()
            self._take(",")
            body = self._choice()
            result = lambda known: all(body({**known, variable: each}) for each in value(known))  # noqa: E731 - of a chain
        elif name in ("matches", "contains"):
            argument = self._choice()
            if name == "matches":
                result = lambda known: re.search(argument(known), value(known)) is not None  # noqa: E731
            else:
                result = lambda known: argument(known) in value(known)  # noqa: E731
        else:
            raise SyntaxError(f"no method {name}")
        self._take(")")
        return result

    def _primary(self) -> Any:
        kind = self._tokens[self._at][0] if self._at < len(self._tokens) else ""
        found = self._take()
        if found == "(":
            inner = self._choice()
            self._take(")")
            return inner
        if found == "[":
            items = []
            while self._peek() != "]":
                items.append(self._choice())
                if self._peek() == ",":
                    self._take()
            self._take("]")
            return lambda known: [item(known) for item in items]
        if kind == "name" and self._peek() == "(":
            return self._function(found)
        if kind == "name":
            constants = {"true": True, "false": False}
            return lambda known: constants[found] if found in constants else known[found]
        if kind in ("raw", "text", "number"):
            constant = {"raw": found[2:-1], "text": found[1:-1].replace("\\\\", "\\")}.get(kind, found)
            return lambda _known: int(constant) if kind == "number" else constant
        raise SyntaxError(f"a value expected, found {found!r}")

    def _function(self, name: str) -> Any:
        self._take("(")
        argument = self._choice()
        self._take(")")
        if name == "size":
            return lambda known: len(argument(known))
        if name == "has":
            return lambda known: _has(argument, known)
        raise SyntaxError(f"no function {name}")


def _attribute(value: Any, name: str) -> Any:
    return lambda known: value(known)[name]


def _has(argument: Any, known: Mapping[str, Any]) -> bool:
    try:
        return argument(known) is not None
    except KeyError:
        return False
