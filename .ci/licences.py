"""List the licences of everything that the images install, and how each was found: docs/licences.md.

    for row in cuda cuda111 cuda102; do docker run --rm -i ymir-yolov5:$row python3 - <.ci/licences.py >$row.json; done
    python .ci/licences.py cuda.json cuda111.json cuda102.json      # writes docs/licences.md

Without arguments it tells, as JSON, what the packages of its own Python say of themselves, and imports nothing of
theirs. With files it writes the page; the exit code is 1 where a licence is one that nobody has looked at.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import MappingProxyType

PAGE = Path("docs/licences.md")
SHORT = 60  # characters: a longer licence field is the text itself
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|eula)[^/]*$", re.IGNORECASE)
# What a licence's text says, the first that is found counts.
PHRASES = (
    ("NVIDIA Corporation and its affiliates", "NVIDIA's own terms"),
    ("End User License Agreement", "NVIDIA's own terms"),
    ("Apache License", "Apache-2.0"),
    ("Mozilla Public License", "MPL-2.0"),
    ("GNU LESSER GENERAL PUBLIC LICENSE", "LGPL"),
    ("GNU GENERAL PUBLIC LICENSE", "GPL"),
    ("PYTHON SOFTWARE FOUNDATION LICENSE", "PSF-2.0"),
    ("Permission is hereby granted, free of charge", "MIT"),
    ("Redistribution and use in source and binary forms", "BSD"),
)
# Looked up by hand where a package tells nothing.
BY_HAND: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ymir-exc": ("unstated", "looked up: its metadata say UNKNOWN, and it holds no licence file"),
        "cuda-toolkit": ("NVIDIA's own terms", "looked up: holds no files, only names NVIDIA's other packages"),
    }
)
# Part of the stand-ins for base images only (../shared/tools/containers): Debian's venv brings it.
NOT_OURS = ("pkg-resources",)
STRONG_COPYLEFT = re.compile(r"(?<!L)GPL|GNU (Affero )?General Public", re.IGNORECASE)
# Which licences may be joined with ours (Apache-2.0) in an image, and on what terms.
KINDS = (
    (re.compile(r"NVIDIA", re.IGNORECASE), "proprietary", "may be redistributed as part of an application"),
    (re.compile(r"unstated"), "unstated", "no right is given in words; used as published, on PyPI, for this platform"),
    (re.compile(r"LGPL|Lesser", re.IGNORECASE), "weak copyleft", "used as it is; a user can replace it"),
    (re.compile(r"MPL|Mozilla", re.IGNORECASE), "weak copyleft", "used as it is; its files keep their licence"),
    (
        re.compile(
            r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|HPND|Zlib|CNRI|Unlicense|MIT-CMU|Dual License"
            r"|matplotlib|3-Clause)",
            re.IGNORECASE,
        ),
        "permissive",
        "its notice stays in the image",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """What one package says of itself."""

    name: str
    version: str
    licence: str
    how: str


def main(arguments: Sequence[str]) -> int:
    """Tell of this Python, or write the page; gives the exit code."""
    if not arguments:
        packages = sorted((told(one) for one in distributions()), key=lambda one: one.name)
        sys.stdout.write(json.dumps([asdict(one) for one in packages], indent=1) + "\n")
        return 0
    rows = {Path(file).stem: [Package(**one) for one in json.loads(Path(file).read_text())] for file in arguments}
    PAGE.write_text(page(rows), encoding="utf-8")
    unknown = {one.name for row in rows.values() for one in row if not kind_of(one.licence)[0]} - set(NOT_OURS)
    if unknown:
        sys.stderr.write(f"licences.py: nobody has looked at the licences of {', '.join(sorted(unknown))}\n")
    return 1 if unknown else 0


def told(package: Distribution) -> Package:
    """Find a package's licence: what its metadata say, else what its licence file is, else what was looked up."""
    name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
    licence, how = next(findings(package, name), ("", "not found"))
    return Package(name, package.version, licence, how)


def findings(package: Distribution, name: str) -> Iterator[tuple[str, str]]:
    """Give each licence that is found, and how, the surest first."""
    metadata = package.metadata
    expression = str(metadata["License-Expression"] or "").strip()
    if expression:
        yield expression, "License-Expression"
    field = str(metadata["License"] or "").strip()
    if field and "\n" not in field and len(field) <= SHORT and field.upper() not in ("UNKNOWN", "DUAL LICENSE"):
        yield field, "License field"
    named = [one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier") or () if one.startswith("License :: ")]
    named = [one for one in named if one != "OSI Approved"]
    if named:
        yield " or ".join(sorted(set(named))), "classifier"
    texts = [(field, "the text in the License field")]
    texts += [(text, f"the text of {file}") for file, text in licence_files(package)]
    for text, where in texts:
        for phrase, licence in PHRASES:
            if phrase.lower() in " ".join(text.split()).lower():
                yield licence, where
    if name in BY_HAND:
        yield BY_HAND[name]


def licence_files(package: Distribution) -> Iterator[tuple[str, str]]:
    """Give the name and the text of each licence file in a package's metadata."""
    for file in package.files or ():
        if LICENCE_FILE.search(file.name) and ".dist-info" in str(file):
            path = Path(str(file.locate()))
            if path.is_file():
                yield file.name, path.read_text(encoding="utf-8", errors="replace")


def kind_of(licence: str) -> tuple[str, str]:
    """Give what kind of licence it is, and what that means for an image; ("", "") for one that isn't known."""
    if STRONG_COPYLEFT.search(licence):
        return "", ""
    return next(((kind, means) for pattern, kind, means in KINDS if pattern.search(licence)), ("", ""))


def page(rows: Mapping[str, Sequence[Package]]) -> str:
    """Give docs/licences.md."""
    names = sorted({one.name for row in rows.values() for one in row} - set(NOT_OURS))
    by_row = {row: {one.name: one for one in packages} for row, packages in rows.items()}
    lines = [
        "# Licences of what the images hold",
        "",
        "Written by `.ci/licences.py` from the images themselves; the source of this project is Apache-2.0.",
        "",
        f"| package | {' | '.join(rows)} | licence | kind | found in |",
        f"| --- |{' --- |' * len(rows)} --- | --- | --- |",
    ]
    kinds: dict[str, int] = {}
    for name in names:
        found = [by_row[row][name] for row in rows if name in by_row[row]]
        kind = kind_of(found[0].licence)[0] or "**not looked at**"
        kinds[kind] = kinds.get(kind, 0) + 1
        versions = " | ".join(by_row[row][name].version if name in by_row[row] else "" for row in rows)
        lines.append(f"| {name} | {versions} | {found[0].licence or '?'} | {kind} | {found[0].how} |")
    lines += ["", "| kind | packages | in an image |", "| --- | --- | --- |"]
    for kind in sorted(kinds):
        means = sorted({meaning for _, other, meaning in KINDS if other == kind})
        lines.append(f"| {kind} | {kinds[kind]} | {'; '.join(means)} |")
    lines += [
        "",
        "Beside them: Python (PSF-2.0), Debian's packages of the base image (each with its",
        "`/usr/share/doc/*/copyright`) and the font fonts-wqy-microhei (Apache-2.0, or GPL-3.0 with font exception).",
        "opencv-python-headless holds FFmpeg (LGPL-2.1), loaded as a library. The images hold no weights unless you",
        "put some into `weights/`: YOLOv5's own are AGPL-3.0.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
