"""Hostile zips around a true pickle, and files that are no zip."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Optional

from tests.attacks import Attack
from tests.attacks.writing import Call, Entry, Name, Writer, checkpoint, deflate, members, root, zipped

TRUE = members(root())
CONTRADICTION = "contradict"
OVERLAP = "over one another"
ODD_NAME = "a name that torch.save doesn't give"


def _zip(name: str, says: Optional[str], change: Callable[[list[Entry]], Sequence[Entry]], **end: int) -> Attack:
    """A true checkpoint with its members changed. end: lies of the end record."""
    return Attack(name, lambda _: zipped(change(list(TRUE)), None, **end), says)


def _same(entries: list[Entry]) -> Sequence[Entry]:
    return entries


def _first(**lies: object) -> Callable[[list[Entry]], Sequence[Entry]]:
    """data.pkl with lies."""
    return lambda entries: [replace(entries[0], **lies), *entries[1:]]  # type: ignore[arg-type]  # fields of Entry


def _local(**lies: object) -> Callable[[list[Entry]], Sequence[Entry]]:
    """A local header of data.pkl that tells something else than the directory."""
    return _first(local=lies)


def _storage(**lies: object) -> Callable[[list[Entry]], Sequence[Entry]]:
    """data/0 with lies."""
    return lambda entries: [entries[0], replace(entries[1], **lies), *entries[2:]]  # type: ignore[arg-type]  # as above


def _also(name: bytes, content: bytes = b"") -> Callable[[list[Entry]], Sequence[Entry]]:
    return lambda entries: [*entries, Entry(name, content)]


def _renamed(folder: bytes) -> Callable[[list[Entry]], Sequence[Entry]]:
    return lambda entries: [replace(entry, name=entry.name.replace(b"archive", folder, 1)) for entry in entries]


def _zip64(name: str, says: Optional[str], locator: Sequence[int], record: Sequence[int], **end: int) -> Attack:
    """A zip with zip64 records. locator: disk, shift of the offset, disks; record: shifts of count and offset."""

    def content(_: str) -> bytes:
        plain = zipped(TRUE)
        count, _count, length, start = struct.unpack("<2H2L", plain[-14:-2])
        disk, shift, disks = locator
        wide = struct.pack(
            "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count + record[0], count, length, start + record[1]
        )
        place = struct.pack("<4sLQL", b"PK\6\7", disk, start + length + shift, disks)
        return zipped(TRUE, tail=wide + place, **end)

    return Attack(name, content, says)


def _legacy(command: str) -> bytes:
    """How torch < 1.6 saved: five pickles, the third being the object."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return magic + Writer().pickle(Call(Name("os", "system"), (command,)))


def _bare(command: str) -> bytes:
    return Writer().pickle(Call(Name("os", "system"), (command,)))


def _bomb(megabytes: int, told: int) -> Callable[[list[Entry]], Sequence[Entry]]:
    """data.pkl of zeros, deflated, with `told` as its size in the directory."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # can be put one after another
    return _first(deflated=True, raw=block * megabytes + packer.flush(), size=told)


def _packed(change: Callable[[bytes], bytes]) -> Callable[[list[Entry]], Sequence[Entry]]:
    """data.pkl, deflated, and then changed."""
    return _first(deflated=True, raw=change(deflate(TRUE[0].content)))


ZIPS = [
    _zip("as it should be", None, _same),
    _zip("deflated", None, lambda entries: [replace(entry, deflated=True) for entry in entries]),
    _zip("in a folder of any name", None, _renamed("最佳 best".encode())),
    _zip(
        "two data.pkl in one folder",
        "two members of the zip are named data.pkl",
        lambda entries: [entries[0], *entries],
    ),
    _zip("two of a storage", "two members of the zip are named data/0", lambda entries: [*entries, entries[1]]),
    _zip("a second data.pkl in another folder", ODD_NAME, _also(b"other/data.pkl")),
    _zip("a data.pkl further down", None, _also(b"archive/inner/data.pkl")),
    _zip("no data.pkl", "without data.pkl", lambda entries: entries[1:]),
    _zip("data.pkl without a folder", ODD_NAME, _first(name=b"data.pkl")),
    _zip("an absolute name", ODD_NAME, _also(b"/etc/passwd")),
    _zip("a name that climbs", ODD_NAME, _also(b"archive/../../etc/passwd")),
    _zip("a name with backslashes", ODD_NAME, _also(b"archive/..\\x")),
    _zip("a name with a NUL", ODD_NAME, _also(b"archive/data/0\0")),
    _zip("a name without letters", ODD_NAME, _also(b"")),
    _zip("a folder for a member", ODD_NAME, _also(b"archive/data/")),
    _zip("a local header of another name", CONTRADICTION, _local(name=b"archive/data.pkx")),
    _zip("a local header of a longer name", CONTRADICTION, _local(name=b"archive/data.pkl.x")),
    _zip("a local header of another size", CONTRADICTION, _local(size=3)),
    _zip("a local header of another packed size", CONTRADICTION, _local(packed=3)),
    _zip("a local header of another checksum", CONTRADICTION, _local(crc=1)),
    _zip("a local header of another method", CONTRADICTION, _local(method=8)),
    _zip("a local header of other flags", CONTRADICTION, _local(flags=8)),
    _zip("another checksum", "checksum", _first(crc=1)),
    _zip("another checksum of a storage", "checksum", _storage(crc=1)),
    _zip("sizes that differ without compression", "two sizes differ", _first(size=3)),
    _zip("an encrypted member", "encrypted", _first(flags=1)),
    _zip("a member encrypted otherwise", "encrypted", _first(flags=0x2001)),
    _zip("a member packed by LZMA", "packed in a way", _first(method=14)),
    _zip("a member in another volume", "another volume", _first(disk=1)),
    _zip("a member behind the file", OVERLAP, _first(offset=1 << 31)),
    _zip("a member larger than the file", OVERLAP, _first(packed=1 << 31, size=1 << 31)),
    _zip("two members in one place", "one and the same place", _storage(offset=0)),
    _zip("a member inside another", OVERLAP, _storage(offset=40)),
    _zip("zip64 figures that aren't there", "zip64 figures are missing", _first(size=0xFFFFFFFF, packed=0xFFFFFFFF)),
    _zip(
        "zip64 figures beyond the file",
        OVERLAP,
        _first(size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<2H2Q", 1, 16, 1 << 60, 1 << 60)),
    ),
    _zip("zip64 figures cut short", "zip64 figures are missing", _first(size=0xFFFFFFFF, extra=b"\1\0\x08\0\0")),
    _zip("a bomb", "far more than weights", _bomb(1000, 1000 << 20)),
    _zip("a bomb that tells a small size", "doesn't unpack to the size", _bomb(1000, 1000)),
    _zip("less than it tells", "doesn't unpack to the size", _packed(lambda _: deflate(bytes(9)))),
    _zip("deflate that goes on", "doesn't unpack to the size", _packed(lambda packed: packed + b"more")),
    _zip("deflate that breaks off", "doesn't unpack to the size", _packed(lambda packed: packed[:-1])),
    _zip("damaged deflate", "is damaged", _first(method=8)),
    _zip("a byteorder of nobody", "neither little nor big", _also(b"archive/byteorder", b"middle")),
    _zip("a TorchScript program", "TorchScript", _also(b"archive/constants.pkl")),
    _zip("code beside the weights", "TorchScript", _also(b"archive/code/x.py")),
    _zip("one part of several", "one part of a zip", _same, disk=1),
    _zip("two counts", "one part of a zip", _same, here=1),
    _zip("a count too large", "isn't where its end says", _same, count=60_000),
    _zip("a count too small", "holds more than it counts", _same, count=2),
    _zip("a count of none", "isn't where its end says", _same, count=0),
    _zip("a directory elsewhere", "isn't where its end says", _same, offset=0),
    _zip("a directory of 4 GB", "isn't where its end says", _same, size=0xFFFFFFFE),
    _zip("a comment", "doesn't end as a zip does", _same, comment=9),
    _zip64("zip64 as torch writes it", None, (0, 0, 1), (0, 0)),
    _zip64("zip64 of another count", "contradicts", (0, 0, 1), (1, 0)),
    _zip64("zip64 of another place", "contradicts", (0, 0, 1), (0, 1)),
    _zip64("zip64 alone, of another place", "isn't where its end says", (0, 0, 1), (0, 1), offset=0xFFFFFFFF),
    _zip64("zip64 of two counts", "one part of a zip", (0, 0, 1), (1, 0), count=0xFFFF),
    _zip64("a locator that points away", "don't fit together", (0, 1, 1), (0, 0)),
    _zip64("a locator beyond the file", "don't fit together", (0, 1 << 62, 1), (0, 0)),
    _zip64("a locator of two disks", "don't fit together", (0, 0, 2), (0, 0)),
]

NO_ZIPS = [
    Attack("a torch older than 1.6", _legacy, "older than 1.6"),
    Attack("a bare pickle", _bare, "a bare pickle", runs_in_pickle=True),
    Attack("nothing", lambda _: b"", "is empty"),
    Attack("one byte", lambda _: b"P", "not a zip"),
    Attack("text", lambda _: b"root:x:0:0:secret\n", "not a zip"),
    Attack("a page that says 404", lambda _: b"<!DOCTYPE html><html>Not Found</html>", "not a zip"),
    Attack("a beginning only", lambda _: b"PK\3\4", "doesn't end as a zip does"),
    Attack("half a file", lambda _: checkpoint(root())[:700], "doesn't end as a zip does"),
    Attack("all but a byte", lambda _: checkpoint(root())[:-1], "doesn't end as a zip does"),
    Attack("something behind", lambda _: checkpoint(root()) + b"\n", "doesn't end as a zip does"),
    Attack("something before", lambda _: b"#!/bin/sh\n" + checkpoint(root()), "not a zip"),
    Attack("an end only", lambda _: b"PK\3\4" + bytes(40) + b"PK\5\6" + bytes(18), "isn't where its end says"),
]

ATTACKS = ZIPS + NO_ZIPS
