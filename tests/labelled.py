"""Real pictures with their labels in a folder of a test's own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from models.checkpoint import read_checkpoint


def labelled_folder(images: Sequence[Path], weights: Path, folder: Path) -> Path:
    """Copy pictures of coco128 and their labels; gives a data.yaml that trains and validates on them.

    The classes are those of the weights.
    """
    for image in images:
        label = image.parents[2] / "labels/train2017" / f"{image.stem}.txt"
        for kind, file in (("images", image), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            if file.is_file():  # a picture of nothing has no labels
                shutil.copy(file, folder / kind)
    data = folder / "data.yaml"
    names = list(read_checkpoint(weights).names)
    data.write_text(yaml.safe_dump({"path": str(folder), "train": "images", "val": "images", "names": names}))
    return data
