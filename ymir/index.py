"""Index files: which pictures a task is about, a line each, read as a stream (SPEC section 2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from utils.errors import DatasetError
from utils.files import PathLike, open_regular
from ymir.config import Roots, TaskConfig

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16 and UTF-32
HEAD_BYTES, MOST_NULS = 64, 8  # that tell whether a file is text of another coding: /in/assets/ alone has 11 in UTF-16
MOST_TABS = 16  # that are tried as the one between two files: each asks the disk
MOST_LINE_BYTES = 65_536  # sixteen times the longest path that Linux opens


@dataclass(frozen=True)
class Candidate:
    """One line of a candidate index."""

    index: int  # from 0, blank lines not counted, repeated ones counted
    line: str  # the line's own text, as result.tsv repeats it; bytes that are no UTF-8 are surrogate escapes
    path: Path  # the file to open
    refused: Optional[str] = None  # why it must not be opened: it counts as an unreadable picture

    @property
    def name(self) -> str:
        """The base name, by which the platform knows the picture."""
        return self.path.name


@dataclass(frozen=True)
class CandidateIndex:
    """A candidate index file; each iteration reads it anew and holds one line at a time.

    A line is the path of a picture, whatever it holds. Only when there is no such file is it read as others write
    it: `IMAGE<TAB>ANNOTATION`, of which the picture's part counts (and stands in result.tsv), or with blanks around.
    A relative path is meant from root_dir, or else from assets_dir. `..` must not lead out of both.
    """

    file: Path
    root_dir: Path
    assets_dir: Path
    roots: Roots

    def __iter__(self) -> Iterator[Candidate]:
        for index, text in enumerate(read_lines(self.file)):
            line, path = self._find(text)
            yield Candidate(index, line, Path(path), self._refusal(line, path))

    def count(self) -> int:
        """Count the candidates without keeping them."""
        return sum(1 for _ in read_lines(self.file))

    def _find(self, text: str) -> tuple[str, str]:
        """Give the part of a line that names the picture, and the file it means."""
        path = self._place(text)
        if "\t" not in text and text == text.strip():
            return text, path
        if os.path.isfile(path):  # noqa: PTH113  # a NUL byte would make Path.is_file raise on Python 3.9
            return text, path
        image = text.split("\t", 1)[0]
        for part, line in ((image, image), (image.strip(), image), (text.strip(), text)):
            other = self._place(part)
            if os.path.isfile(other):  # noqa: PTH113
                return line, other
        return text, path

    def _place(self, text: str) -> str:
        return _place(text, self.roots, self.root_dir, self.assets_dir)

    def _refusal(self, line: str, path: str) -> Optional[str]:
        return _refusal(line, path, self.root_dir, self.assets_dir)


@dataclass(frozen=True)
class Pair:
    """One line of a training or validation index."""

    index: int
    image: Path
    annotation: Optional[Path]  # None: the line names none
    refused: Optional[str] = None


@dataclass(frozen=True)
class PairIndex:
    """A training or validation index file, `IMAGE<TAB>ANNOTATION`; read anew at each iteration, None holds no line.

    Of several tabs the first counts between two files that are there (MOST_TABS are tried), else the first.
    """

    file: Optional[Path]
    root_dir: Path
    assets_dir: Path
    annotations_dir: Path
    roots: Roots

    def __iter__(self) -> Iterator[Pair]:
        if self.file is None:
            return
        for index, text in enumerate(read_lines(self.file)):
            image, annotation = self._split(text)
            refused = _refusal(image, self._image(image), self.root_dir, self.assets_dir)
            if annotation:
                label = self._annotation(annotation)
                refused = refused or _refusal(annotation, label, self.root_dir, self.annotations_dir)
                yield Pair(index, Path(self._image(image)), Path(label), refused)
            else:
                yield Pair(index, Path(self._image(image)), None, refused)

    def _split(self, text: str) -> tuple[str, str]:
        parts = text.split("\t")
        if len(parts) > 2:
            for place in range(1, min(len(parts), MOST_TABS + 1)):
                image, annotation = "\t".join(parts[:place]), "\t".join(parts[place:])
                if os.path.isfile(self._image(image)) and os.path.isfile(self._annotation(annotation)):  # noqa: PTH113
                    return image, annotation
        return parts[0], "\t".join(parts[1:]).strip()

    def _image(self, text: str) -> str:
        return _place(text, self.roots, self.root_dir, self.assets_dir)

    def _annotation(self, text: str) -> str:
        return _place(text, self.roots, self.root_dir, self.annotations_dir)


def _place(text: str, roots: Roots, root_dir: Path, folder: Path) -> str:
    """Give the absolute path that a text means: relative ones from root_dir, or else from `folder`."""
    path = roots.map_text(text)
    if not path.startswith("/"):
        below_root, below_folder = f"{root_dir}/{path}", f"{folder}/{path}"
        in_root = os.path.exists(below_root) or not os.path.exists(below_folder)  # noqa: PTH110
        path = below_root if in_root else below_folder
    # By letters: /in/assets may be a link, and the system would go up from where it leads.
    return os.path.normpath(path) if ".." in path else path


def _refusal(text: str, path: str, *folders: Path) -> Optional[str]:
    """Say why a path must not be opened: its `..` leads out of every folder of the task."""
    if ".." not in text.split("/") or any(path.startswith(f"{folder}/") for folder in folders):
        return None
    return f"'..' leads out of {folders[0]}"


def candidate_index(task: TaskConfig) -> CandidateIndex:
    """Give the task's candidate index. Raises DatasetError where env.yaml names none, or it can't be opened."""
    env = task.env
    if env.input.candidate_index_file is None:
        raise DatasetError("input.candidate_index_file: is empty, need the index of the pictures (env.yaml)")
    open_regular(env.input.candidate_index_file, DatasetError).close()
    return CandidateIndex(env.input.candidate_index_file, env.input.root_dir, env.input.assets_dir, task.roots)


def training_index(task: TaskConfig) -> PairIndex:
    """Give the task's training index. Raises DatasetError where env.yaml names none, or it can't be opened."""
    file = task.env.input.training_index_file
    if file is None:
        raise DatasetError("input.training_index_file: is empty, need the index of the training set (env.yaml)")
    return _pair_index(task, file)


def validation_index(task: TaskConfig) -> PairIndex:
    """Give the task's validation index, which holds no line where env.yaml names none."""
    return _pair_index(task, task.env.input.val_index_file)


def _pair_index(task: TaskConfig, file: Optional[Path]) -> PairIndex:
    places = task.env.input
    if file is not None:
        open_regular(file, DatasetError).close()
    return PairIndex(file, places.root_dir, places.assets_dir, places.annotations_dir, task.roots)


def read_lines(file: PathLike) -> Iterator[str]:
    """Give the lines of an index file without their ends: no blank ones, no byte order mark.

    Bytes that are no UTF-8 become surrogate escapes, so that encoding with "surrogateescape" gives them back. Raises
    DatasetError for a file that can't be read, and for one of UTF-16, where every line would be a wrong path.
    """
    with open_regular(file, DatasetError) as content:
        number = 0
        while raw := content.readline(MOST_LINE_BYTES):
            number += 1
            if number == 1:
                _refuse_other_codings(file, raw[:HEAD_BYTES])
            if len(raw) == MOST_LINE_BYTES and not raw.endswith(b"\n"):
                raise DatasetError(f"{file} line {number}: is longer than {MOST_LINE_BYTES} bytes, need a path")
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                raw = raw[len(BYTE_ORDER_MARK) :]
            text = raw.rstrip(b"\r\n")
            if text.strip():
                yield text.decode("utf-8", "surrogateescape")


def _refuse_other_codings(file: PathLike, head: bytes) -> None:
    """Raise DatasetError where a file's first bytes are UTF-16 or UTF-32, or NULs as a crash leaves them.

    A few NULs say nothing: a line that holds one is a picture that can't be read, and the others stay.
    """
    nuls = head.count(b"\0")
    if nuls >= MOST_NULS or (nuls and head.startswith(OTHER_MARKS)):
        raise DatasetError(
            f"{file}: begins with NUL bytes, as UTF-16 text or a damaged file does, need UTF-8; save it again as UTF-8"
        )
