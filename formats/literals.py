"""Python's text of a plain value -> the value. What exported files say of themselves is written so.

Not ast.literal_eval: it builds a tree of any expression first, and Python 3.9 dies of a deep one (1+1+1...,
a[0][0]...); where it doesn't die, a megabyte of brackets takes seconds and 400 MB. No value of ours needs more.
"""

from __future__ import annotations

import ast
import re
from typing import Any, Optional

MAX_DEPTH = 8
MAX_DIGITS = 100
_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
    (?P<text>'(?:[^'\\\n\r]|\\[^\n\r])*'|"(?:[^"\\\n\r]|\\[^\n\r])*")
    |(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<word>True|False|None)
    |(?P<sign>[\[\](){},:]))""",
    re.VERBOSE,
)
_BLANK = re.compile(r"[ \t\r\n]*")
_WORDS = {"True": True, "False": False, "None": None}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def read_literal(text: str) -> Any:
    """Read None, a boolean, a number, a text, or a list, a tuple or a dict of such.

    Raises ValueError for anything else, and for what is nested more than MAX_DEPTH deep.
    """
    reader = _Reader(text)
    value = reader.value(reader.token(), 0)
    if _BLANK.fullmatch(text, reader.at) is None:
        raise ValueError("more than one value")
    return value


class _Reader:
    """Where in a text reading has come to."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def token(self) -> re.Match[str]:
        """Give the next token."""
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            raise ValueError("is no plain value")
        self.at = found.end()
        return found

    def value(self, token: re.Match[str], depth: int) -> Any:
        """Give the value that begins with a token."""
        if token["text"]:
            return _text(token["text"])
        if token["number"]:
            return _number(token["number"])
        if token["word"]:
            return _WORDS[token["word"]]
        opening = token["sign"]
        if opening not in _CLOSING or depth == MAX_DEPTH:
            raise ValueError("brackets that don't fit, or too many in one another")
        return self._items(opening, depth + 1)

    def _items(self, opening: str, depth: int) -> Any:
        """Give what stands between brackets, of which the first was read."""
        keys: list[Any] = []
        values: list[Any] = []
        closing, ended_by = _CLOSING[opening], ","
        while ended_by == ",":
            token = self.token()
            if token["sign"] == closing:
                ended_by = "" if values else closing
                break
            value = self.value(token, depth)
            if opening == "{":
                keys.append(_key(value))
                self._sign(":")
                value = self.value(self.token(), depth)
            values.append(value)
            ended_by = self._sign(",", closing)
        if opening == "{":
            return dict(zip(keys, values))
        if opening == "(" and len(values) == 1 and ended_by == closing:
            return values[0]  # brackets around a value
        return values if opening == "[" else tuple(values)

    def _sign(self, *allowed: str) -> str:
        sign: Optional[str] = self.token()["sign"]
        if sign not in allowed:
            raise ValueError(f"need {' or '.join(allowed)}")
        return str(sign)


def _text(token: str) -> str:
    if "\\" not in token:
        return token[1:-1]
    try:
        value = ast.literal_eval(token)  # one string with its escapes: nothing to be nested in it
    except SyntaxError as cause:
        raise ValueError("a text with a wrong escape") from cause
    return str(value)


def _number(token: str) -> Any:
    if len(token) > MAX_DIGITS:
        raise ValueError("a number of too many digits")
    return int(token) if token.lstrip("+-").isdigit() else float(token)


def _key(value: Any) -> Any:
    if isinstance(value, (list, dict, tuple)):
        raise ValueError("a dict's key that is no plain value")
    return value
