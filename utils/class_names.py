"""Names of classes as two sides give them."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 5


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
