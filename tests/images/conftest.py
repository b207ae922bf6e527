"""Tests of built images are left out, not skipped, unless YMIR_IMAGES names images that an engine has."""

from __future__ import annotations

import pytest

from tests.images import engine


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    of_images = [item for item in items if item.get_closest_marker("image")]
    if of_images and not engine.images():
        config.hook.pytest_deselected(items=of_images)
        items[:] = [item for item in items if item not in of_images]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "image" in metafunc.fixturenames:
        metafunc.parametrize("image", engine.images() or ("none",))
