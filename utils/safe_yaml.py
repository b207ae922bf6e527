"""YAML from strangers: safe tags only, bounded in bytes and in nodes, aliases counted as often as they are used."""

from __future__ import annotations

from typing import Any

import yaml

from utils.errors import ConfigError, ExecutorError
from utils.files import PathLike, read_bytes

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_DEPTH = 100

# libyaml's loader where it was compiled in: ten times faster, the same tags.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, name, error)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise error(f"{name}{where}: is not valid YAML: {cause.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as cause:
        raise error(f"{name}: is not valid YAML ({type(cause).__name__})") from None
    finally:
        if loader is not None:
            loader.dispose()


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
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                stack += [(key, depth + 1), (value, depth + 1)]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(value, depth + 1) for value in node.value]
