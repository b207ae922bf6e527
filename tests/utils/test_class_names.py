"""Names of classes as two sides give them."""

from __future__ import annotations

from utils.class_names import name_differences


def test_equal_names_are_no_matter() -> None:
    assert name_differences(["cat", "dog"], ("cat", "dog"), "task", "written") == ""


def test_differing_names_are_counted_and_the_first_five_are_shown() -> None:
    assert name_differences(["cat", "dog"], ["cat", "hound"], "task", "written") == (
        "1 of 2 class names differ between weights and task, the task's are written: dog / hound"
    )
    told = name_differences("abcdefgh", "ABCDEFGh", "data", "shown")
    assert told.startswith("7 of 8 class names differ between weights and data, the data's are shown: a / A, ")
    assert told.endswith("e / E")
