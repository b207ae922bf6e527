"""Names of classes as two sides give them."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 5
# What our weights can hold, so what any task may ask for: names are checked before a training, not when it hands over.
MOST_CLASSES, MOST_NAME_LETTERS = 10_000, 200


def unusable_names(names: Sequence[str]) -> str:
    """Say what is needed of names that no weights of ours could hold; '' where all is well."""
    if len(names) > MOST_CLASSES:
        return f"need at most {MOST_CLASSES} names, there are {len(names)}"
    for index, name in enumerate(names):
        if len(name) > MOST_NAME_LETTERS:
            return f"need names of at most {MOST_NAME_LETTERS} letters, that of class {index} has {len(name)}"
    return ""


def name_differences(stored: Sequence[str], given: Sequence[str], whose: str, use: str) -> str:
    """Say in one sentence where names in weights differ from those of something else, such as a task; '' if nowhere.

    Both sides have the same number of names. whose: what has the other names, such as task. use: what those are, such
    as written.
    """
    differing = [f"{one} / {other}" for one, other in zip(stored, given) if one != other]
    if not differing:
        return ""
    count, shown = f"{len(differing)} of {len(given)}", ", ".join(differing[:SHOWN])
    return f"{count} class names differ between weights and {whose}, the {whose}'s are {use}: {shown}"
