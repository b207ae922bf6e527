"""A data.yaml gives the pictures of a split in every form that YOLOv5 users write it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from utils.datasets import list_pictures, read_yolo_dataset
from utils.errors import DatasetError


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A folder with five pictures (by name) and what is no picture."""
    for name in ("a/2.JPG", "a/1.jpeg", "a/猫 x.TIFF", "b/1.jpg", "b/deep er/0.webp"):
        path = tmp_path / "set/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("a/notes.txt", "a/.hidden.jpg", "b/movie.mp4"):
        (tmp_path / "set/images" / name).touch()
    return tmp_path


def write(folder: Path, **content: Any) -> Path:
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"names": ["cat"], **content}, allow_unicode=True), encoding="utf-8")
    return path


def names_of(data_yaml: Path, split: str = "train") -> list[str]:
    base = data_yaml.parent / "set/images"
    return [image.resolve().relative_to(base).as_posix() for image in read_yolo_dataset(data_yaml, split).images]


def test_coco128_has_128_pictures_and_80_names(shared: Path, coco_images: list[Path]) -> None:
    data = read_yolo_dataset(shared / "data/coco128/coco128.yaml", "val")
    assert [image.resolve() for image in data.images] == [image.resolve() for image in coco_images]
    assert (data.class_count, data.names[0], data.names[79]) == (80, "person", "toothbrush")


A = ["a/1.jpeg", "a/2.JPG", "a/猫 x.TIFF"]
B = ["b/1.jpg", "b/deep er/0.webp"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"path": "set", "train": "images"}, A + B),
        ({"path": "set", "train": ["images/b", "images/a"]}, B + A),
        ({"train": "set/images/a"}, A),
        ({"train": "../set/images/a"}, A),
        ({"path": "set", "train": "lists/some.txt"}, ["b/1.jpg", "a/2.JPG"]),
        ({"path": "set", "train": ["lists/some.txt", "images/b"]}, ["b/1.jpg", "a/2.JPG", *B]),
    ],
)
def test_a_split_is_a_folder_a_list_file_or_several(data_set: Path, content: Any, expected: list[str]) -> None:
    lists = data_set / "set/lists/some.txt"
    lists.parent.mkdir()
    lists.write_text(f"../images/b/1.jpg\r\n\n{data_set}/set/images/a/2.JPG", encoding="utf-8")
    assert names_of(write(data_set, **content)) == expected


def test_path_may_be_meant_from_where_the_command_runs(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_set / "data").mkdir()
    data_yaml = write(data_set / "data", path="set", train="images/b")
    monkeypatch.chdir(data_set)
    assert len(read_yolo_dataset(data_yaml, "train").images) == 2


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"names": ["猫", 7, "no"]}, ("猫", "7", "no")),
        ({"names": {1: "b", 0: "a"}}, ("a", "b")),
        ({"names": ["a", "b"], "nc": 2}, ("a", "b")),
        ({"names": None, "nc": 2}, ("class0", "class1")),
        ({"names": {number: str(number) for number in range(12)}}, tuple(map(str, range(12)))),
    ],
)
def test_names_are_a_list_or_numbered(data_set: Path, content: Any, names: tuple[str, ...]) -> None:
    assert read_yolo_dataset(write(data_set, train="set/images", **content), "train").names == names


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "train: missing"),
        ({"train": ""}, "train: missing"),
        ({"train": "nowhere"}, "train: .*nowhere is neither a folder nor"),
        ({"train": "nowhere.txt"}, "No such file"),
        ({"train": {"a": 1}}, "train: need a folder"),
        ({"train": [3]}, "train: need a folder"),
        ({"train": "empty"}, "train: no pictures"),
        ({"path": "nowhere", "train": "x"}, "path: no folder"),
        ({"path": 3, "train": "x"}, "path: need the name"),
        ({"names": ["a"], "nc": 2, "train": "set"}, "nc: is 2, but names has 1"),
        ({"names": {0: "a", 2: "b"}, "train": "set"}, "names: the ids have to be 0 to 1"),
        ({"names": {"x": "a"}, "train": "set"}, "names: the ids"),
        ({"names": "cat", "train": "set"}, "names: need a list"),
        ({"names": [], "train": "set"}, "names: need a list"),
        ({"names": [["a"]], "train": "set"}, "names: need a list"),
        ({"names": None, "train": "set"}, "names: need a list"),
        ({"names": ["a", "b" * 201], "train": "set"}, "names: .* at most 200 letters, that of class 1 has 201"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(data_set: Path, content: Any, says: str) -> None:
    (data_set / "empty").mkdir()
    with pytest.raises(DatasetError, match=says) as error:
        read_yolo_dataset(write(data_set, **content), "train")
    assert str(data_set) in str(error.value)


def test_a_yaml_that_is_no_mapping_is_an_error(data_set: Path) -> None:
    path = data_set / "data.yaml"
    path.write_text("- 1")
    with pytest.raises(DatasetError, match=r"data\.yaml: is no data set"):
        read_yolo_dataset(path, "train")


def test_links_are_followed_and_a_loop_ends(data_set: Path) -> None:
    (data_set / "set/images/b/up").symlink_to(data_set / "set/images", target_is_directory=True)
    (data_set / "linked").symlink_to(data_set / "set/images/a", target_is_directory=True)
    assert [path.name for path in list_pictures(data_set / "linked")] == ["1.jpeg", "2.JPG", "猫 x.TIFF"]
    assert len(list_pictures(data_set / "set")) == 5
