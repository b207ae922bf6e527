"""Plain values read from hostile text: what Python would read, and nothing that Python could die of."""

from __future__ import annotations

import ast

import pytest

from formats.literals import read_literal


@pytest.mark.parametrize(
    "text",
    [
        "{0: 'person', 1: \"it's\"}",
        "['a', \"b\", ]",
        "(1,)",
        "(1)",
        "()",
        "[]",
        "{}",
        "32",
        "-1.5e3",
        ".5",
        "None",
        "[True, False]",
        "((1, 2),\n [3])",
        r"'a\'b\\ \u732b \x00 \N{CAT}'",
        "{1: 2, 1: 3}",
    ],
)
def test_plain_values_are_those_that_python_reads(text: str) -> None:
    assert read_literal(f" {text} ") == ast.literal_eval(text)
    assert type(read_literal(text)) is type(ast.literal_eval(text))


REFUSED = [
    *("", " ", "a", "1 + 1", "1j", "b'x'", "f'{a}'", "'a' 'b'", "'a", "'\n'", "1 1", "nan", "not 1", "{1, 2}", "f()"),
    *("[", "[1", "[1 2]", "[1,,2]", "[1)", "[,]", "(,)", "{1}", "{1:}", "{1: 2: 3}", "{[]: 1}", "{(1, 2): 3}", "1]"),
    *(r"'\x'", r"'\N{no such letter}'", r"'\U99999999'", "1" * 101, "[" * 9 + "]" * 9),
]


@pytest.mark.parametrize("text", REFUSED)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_literal(text)


@pytest.mark.parametrize(
    "text",
    [
        "1" + "+1" * 400_000,
        "a" + "[0]" * 300_000,
        "a" + ".b" * 400_000,
        "()" * 400_000,
        "-" * 900_000 + "1",
        "[" * 900_000,
    ],
    ids=lambda text: text[:6],
)
def test_what_python_39_dies_of_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_literal(text)


def test_ten_thousand_names_are_read() -> None:
    names = {number: f"it's number {number}" for number in range(10_000)}
    assert read_literal(repr(names)) == names
