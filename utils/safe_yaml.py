"""YAML from strangers: safe tags only, bounded in bytes and in nodes, aliases counted as often as they are used."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent

from utils.errors import ConfigError, ExecutorError
from utils.files import PathLike, read_bytes

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_DEPTH = 100
MAX_DIGITS = 100  # YAML's 1:1:1:... is a number to base 60, and takes minutes to compute when it fills a file

MAX_KEY_DIGITS = 15  # longer ones can be made to hash alike, which takes a mapping minutes

# libyaml's loader where it was compiled in: ten times faster, the same tags.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_yaml(path: PathLike, error: type[ExecutorError] = ConfigError) -> Any:
    """Read a YAML file into plain Python values.

    Raises `error`, with the file's name and the line but never its content, for a file that is missing, no
    YAML, holds other than the safe tags, or is too large (SPEC section 2).
    """
    return parse_yaml(read_bytes(path, MAX_BYTES, error), str(path), error)


def parse_yaml(text: bytes, name: str, error: type[ExecutorError] = ConfigError) -> Any:
    """Parse YAML text as read_yaml does; `name` is what messages call it."""
    loader = None
    try:
        _check_depth(text, name, error)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, name, error)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        problem = re.split("['\"]", cause.problem or "")[0].strip()  # what it quotes is the file's content
        raise error(f"{name}{where}: is not valid YAML: {problem}") from None
    # `!!bool x` is a KeyError, `!!int ""` an IndexError, `!!timestamp x` an AttributeError.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as cause:
        raise error(f"{name}: is not valid YAML ({type(cause).__name__})") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_depth(text: bytes, name: str, error: type[ExecutorError]) -> None:
    """Walk the events first: to compose a deep tree, libyaml's loader recurses until the process dies."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise error(f"{name}: is nested deeper than {MAX_DEPTH}")


def _count_nodes(root: Any, name: str, error: type[ExecutorError]) -> None:
    """Walk the composed tree before anything is built from it; a node met through an alias counts again."""
    left = MAX_NODES
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        left -= 1
        if left < 0:
            raise error(f"{name}: holds more than {MAX_NODES} values (aliases count each time)")
        if depth > MAX_DEPTH:
            raise error(f"{name}: is nested deeper than {MAX_DEPTH}, or refers to itself")
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            raise error(f"{name} line {node.start_mark.line + 1}: a number of more than {MAX_DIGITS} digits")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag in _NUMBERS and len(key.value) > MAX_KEY_DIGITS:
                    line = key.start_mark.line + 1
                    raise error(f"{name} line {line}: a key that is a number of more than {MAX_KEY_DIGITS} digits")
                stack += [(key, depth + 1), (value, depth + 1)]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(value, depth + 1) for value in node.value]
