"""YAML from strangers: what is read, what is refused, and that refusing takes neither long nor the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import ConfigError, DatasetError
from utils.safe_yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_yaml, read_yaml


def bomb(line: str) -> bytes:
    """Twelve levels, each of nine aliases of the one before: 9 ** 12 values in a few hundred bytes."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} " + line.replace("*", ", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 13)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"", None),
        (b"---\n", None),
        (b"a: 1\nb: [x, 2.5, true, null]\n", {"a": 1, "b": ["x", 2.5, True, None]}),
        ("größe: 图片".encode(), {"größe": "图片"}),
        ("a: 1".encode("utf-16"), {"a": 1}),
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
        (b"lr: 1e-05", {"lr": "1e-05"}),  # YAML 1.1 wants a point; the configuration converts it
        (b"base: &b {x: 1, y: 2}\nuse: {<<: *b, y: 3}", {"base": {"x": 1, "y": 2}, "use": {"x": 1, "y": 3}}),
        (b"a: &a [1]\nb: *a", {"a": [1], "b": [1]}),
        (b"%d" % 10**99, 10**99),
    ],
)
def test_ordinary_files_are_read(text: bytes, value: Any) -> None:
    assert parse_yaml(text, "f.yaml") == value


@pytest.mark.parametrize(
    "key", ["2305843009213693951", "0x1fffffffffffffff", "1.000000000000001", "!!int '9999999999999999'"]
)
def test_keys_that_could_hash_alike_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"f line 2: a key that is a number of more than 15 digits"):
        parse_yaml(f"a: 1\n{key}: 2\n".encode(), "f")
    assert parse_yaml(f"123456789012345: {key}\nb: 1\n".encode(), "f")


@pytest.mark.parametrize(
    "text",
    [
        b'!!python/object/apply:os.system ["echo SECRET"]',
        b"!!python/name:os.system SECRET",
        b"!!python/object/new:SECRET.x {}",
        b"%TAG ! tag:yaml.org,2002:python/\n--- !name:SECRET.system x",
        b"!SECRET x",
        b"- *SECRET",
        b"[SECRET",
        b"'SECRET",
        b"SECRET: a: b",
        b"{[SECRET]: b}",
        b"? {SECRET: b}\n: c",
        b"<<: SECRET",
        b"SECRET: 1\n---\nb: 2",
        b"SECRET: \xff\xfe\xfa",
        b"SECRET: \x01",
        b"SECRET\0",
        b"!!bool SECRET",
        b"!!timestamp SECRET",
        b"!!float SECRET",
        b"!!int SECRET",
        b'!!int ""',
        b'!!float ""',
        b"!!omap [SECRET, b]",
        b"!!pairs [[SECRET]]",
        b"!!set [SECRET]",
        b"!!binary '\xc3\xa9'",
        b"date: 2020-13-45",
    ],
)
def test_what_is_no_safe_yaml_is_refused_in_one_line_without_its_content(text: bytes) -> None:
    with pytest.raises(DatasetError) as caught:
        parse_yaml(text, "f.yaml", DatasetError)
    message = str(caught.value)
    assert message.startswith("f.yaml")
    assert "\n" not in message
    assert "SECRET" not in message


def test_message_tells_the_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: 1\nb: 2\nc: [\n")
    with pytest.raises(ConfigError, match=r"config\.yaml line 4: is not valid YAML"):
        read_yaml(path)


@pytest.mark.parametrize("line", ["[*]", "{<<: [*]}", "{k: [*]}"])
def test_alias_bombs_are_counted_as_often_as_they_are_used(line: str) -> None:
    with pytest.raises(ConfigError, match="100000 values"):
        parse_yaml(bomb(line), "f.yaml")


def test_aliases_count_to_the_value() -> None:
    shared = b"a: &a [" + b"1, " * 999 + b"1]\n"  # 1000 values and the list itself
    uses = (MAX_NODES - 3) // 1001 - 1  # less the map, the keys, the list of uses
    assert len(parse_yaml(shared + b"b: [" + b"*a, " * uses + b"]", "f.yaml")["b"]) == uses
    with pytest.raises(ConfigError, match="values"):
        parse_yaml(shared + b"b: [" + b"*a, " * (uses + 1) + b"]", "f.yaml")


@pytest.mark.parametrize("text", [b"&a [*a]", b"&a {x: *a}", b"&a {*a : x}", b"&a {<<: *a}", b"&a [&b [*a, *b]]"])
def test_anchors_that_refer_to_themselves_are_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="refers to itself"):
        parse_yaml(text, "f.yaml")


@pytest.mark.parametrize("opening", [b"[", b"{a: ", b"- ", b"? ", b"[? ", b"[{a: "])
@pytest.mark.parametrize("closing", [b"", b"]" * 1000])
def test_deep_nesting_is_refused_and_does_not_end_the_process(opening: bytes, closing: bytes) -> None:
    with pytest.raises(ConfigError, match=f"deeper than {MAX_DEPTH}|not valid YAML"):
        parse_yaml(opening * 100_000 + closing, "f.yaml")


def test_nesting_up_to_the_limit_is_read() -> None:
    assert parse_yaml(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "f.yaml") is not None


@pytest.mark.parametrize(
    "number", [b"9" * 900_000, b"1" + b":1" * 400_000, b"1" + b":1" * 400_000 + b".5", b"0x1" + b"f" * 200]
)
def test_endless_numbers_are_refused_before_they_are_computed(number: bytes) -> None:
    with pytest.raises(ConfigError, match=r"line 2: a number of more than 100 digits"):
        parse_yaml(b"x: 1\na: " + number, "f.yaml")


def test_file_of_up_to_a_megabyte_is_read_and_no_larger_one(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: " + b"x" * (MAX_BYTES - 3))
    assert len(read_yaml(path)["a"]) == MAX_BYTES - 3
    path.write_bytes(b"a: " + b"x" * (MAX_BYTES - 2))
    with pytest.raises(ConfigError, match="larger than 1000000 bytes"):
        read_yaml(path)


@pytest.mark.parametrize("what", ["missing", "folder", "device"])
def test_only_regular_files_are_read(what: str, tmp_path: Path) -> None:
    path = {"missing": tmp_path / "none", "folder": tmp_path, "device": Path("/dev/zero")}[what]
    with pytest.raises(DatasetError, match=str(path)):
        read_yaml(path, DatasetError)


@given(text=st.one_of(st.binary(max_size=200), st.text("&*a[]{}:,-?!<'\"|> \n1.#%@", max_size=80).map(str.encode)))
def test_any_bytes_give_a_value_or_the_error_asked_for(text: bytes) -> None:
    try:
        parse_yaml(text, "f.yaml", DatasetError)
    except DatasetError as error:
        assert "\n" not in str(error)
