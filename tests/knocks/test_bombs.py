"""Pictures of a few bytes that would fill the memory, beside good ones: named and counted, and it costs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.knocks.bombs import BOMBS, HARMLESS, Makers
from tests.knocks.few import assert_whole, copied, monitor_of, pictures_task
from tests.knocks.forks import Forks, Ran

MOST_MB = 60  # more than without them; the smallest bomb unpacks to 128


@pytest.fixture(scope="module")
def quiet(forks: Forks, templates: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Give how each task ends without bombs."""
    folder = tmp_path_factory.mktemp("quiet")
    ran = {task: forks.run(copied(templates[task], folder / task)) for task in ("infer", "mining")}
    assert not any(one.code for one in ran.values())
    return ran


def with_bombs(images: list[Path], weights: Path, folder: Path, task: str, bombs: Makers, suffix: str) -> list[str]:
    """Make a task of good pictures with bombs between them in the list; gives the bombs' names."""
    settings = {"mining_algorithm": "entropy"} if task == "mining" else {}
    made = pictures_task(images, weights, folder, task, **settings)
    index = made / "in/candidate-index.tsv"
    lines = index.read_text().splitlines()
    names = []
    for number, (name, make) in enumerate(bombs.items()):
        names.append(f"{name.replace(' ', '_')}.{suffix}")
        (made / "in/assets" / names[-1]).write_bytes(make())
        lines.insert(2 * number, f"/in/assets/{names[-1]}")
    index.write_text("\n".join(lines) + "\n")
    return names


@pytest.mark.parametrize("task", ["infer", pytest.param("mining", marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", BOMBS)
def test_bombs_are_named_and_counted_and_the_others_done(
    task: str,
    suffix: str,
    forks: Forks,
    quiet: dict[str, Ran],
    coco_images: list[Path],
    yolov5n_pt: Path,
    tmp_path: Path,
) -> None:
    few = coco_images[:4]
    names = with_bombs(few, yolov5n_pt, tmp_path, task, BOMBS[suffix], suffix)
    ran = forks.run(tmp_path / "task")
    told = [line for line in ran.output.splitlines() if "can't be read" in line]
    assert ran.code == 0 and monitor_of(tmp_path / "task")[2:] == ["1.0", "2"], ran.output
    assert len(told) == 1 and f" {len(names)} pictures can't be read" in told[0], ran.output
    assert all(name in told[0] for name in names), told[0]
    assert (ran.peak_kb - quiet[task].peak_kb) / 1024 < MOST_MB
    assert_whole(tmp_path / "task")
    out = tmp_path / "task/out"
    if task == "mining":  # all good ones before all bombs
        rows = [Path(row.split("\t")[0]).name for row in (out / "result.tsv").read_text().splitlines()]
        assert set(rows[:4]) == {image.name for image in few} and set(rows[4:]) == set(names)
    else:
        found = json.loads((out / "infer-result.json").read_text())["detection"]
        assert any(found[image.name]["boxes"] for image in few)
        assert not any(found[name]["boxes"] for name in names)


@pytest.mark.parametrize("suffix", HARMLESS)
def test_what_no_pixel_needs_is_never_unpacked(
    suffix: str, forks: Forks, quiet: dict[str, Ran], coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    with_bombs(coco_images[:4], yolov5n_pt, tmp_path, "infer", HARMLESS[suffix], suffix)
    ran = forks.run(tmp_path / "task")
    assert ran.code == 0 and "can't be read" not in ran.output, ran.output
    assert (ran.peak_kb - quiet["infer"].peak_kb) / 1024 < MOST_MB
