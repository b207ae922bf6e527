"""A hostile zip in the layout of torch.save -> members whose place, size and checksum are checked. No pickle here.

Our own reader, because zipfile makes an object for every entry of a directory before anyone can count them, bends
offsets to fit, and hides the fields which tell that a directory and a local header disagree. Layout: PKWARE's
APPNOTE 6.3 sections 4.3 (records) and 4.5.3 (zip64).
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from utils.errors import WeightsError
from utils.files import open_regular

_LOCAL = struct.Struct("<4s5H3L2H")  # signature, version, flags, method, time, date, crc, packed, size, name, extra
_ENTRY = struct.Struct("<4s6H3L5H2L")  # the same after two versions, then comment, disk, attributes, offset
_END = struct.Struct("<4s4H2LH")  # signature, disk, first disk, entries here, entries, size, offset, comment
_END64 = struct.Struct("<4sQ2H2L4Q")  # signature, record size, versions, disks, entries here, entries, size, offset
_LOCATOR64 = struct.Struct("<4sLQL")  # signature, disk, offset of _END64, disks

_ASK_ZIP64_16, _ASK_ZIP64_32 = 0xFFFF, 0xFFFFFFFF  # "too large for this field, see zip64"
_STORED, _DEFLATED = 0, 8
# Deflate's options (bits 1, 2), sizes after the data (3), UTF-8 names (11). Not encryption (0, 6, 13) nor patches (5).
_KNOWN_FLAGS = 0x080E
_SIZES_FOLLOW = 0x0008

# yolov5x6 with its optimizer has some 3,000 members; a directory entry costs about 300 bytes of memory.
_MAX_MEMBERS = 100_000
# Weights deflate to a half at best (torch itself doesn't compress), so what unpacks to more holds something else.
_MAX_RATIO, _RATIO_ALLOWANCE = 4, 1 << 20

_MEMBER_NAME = re.compile(rb"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*")
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that torch < 1.6 begins with


@dataclass(frozen=True)
class Member:
    """One file inside the zip, as the directory describes it; its local header is checked when it is read."""

    name: bytes  # as stored, with the folder
    flags: int
    method: int
    crc: int
    packed: int  # bytes in the zip
    size: int  # bytes after inflating
    header: int  # offset of the local header
    end: int  # offset of what comes next: nothing of this member may lie there


@dataclass(frozen=True)
class Archive:
    """An open checkpoint. members: by name without the one folder they lie in, such as data.pkl or data/0."""

    path: Path
    file: IO[bytes]
    size: int  # bytes of the whole file
    members: dict[str, Member]

    @property
    def most_bytes(self) -> int:
        """What its contents may come to in memory, all together."""
        return _most_bytes(self.size)

    def read(self, name: str) -> bytearray:
        """All bytes of a member, checked against its CRC; writable, and the caller's own. Raises WeightsError."""
        member = self.members[name]
        packed = _read_at(self.path, self.file, _check_local(self, member), member.packed)
        content = packed if member.method == _STORED else _inflate(self.path, member, packed)
        if zlib.crc32(content) != member.crc:
            raise _refusal(self.path, f"{name} doesn't have the checksum that is written for it, the file is damaged")
        return content


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open a file that torch.save wrote and check its directory. Raises WeightsError, in words a user can act on."""
    with open_regular(path, WeightsError) as file:
        size = os.fstat(file.fileno()).st_size
        _check_beginning(path, _read_at(path, file, 0, min(size, 16)))
        yield Archive(path, file, size, _named(path, _directory(path, file, size)))


def _most_bytes(file_size: int) -> int:
    return _MAX_RATIO * file_size + _RATIO_ALLOWANCE


def _refusal(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: {reason}")


def _read_at(path: Path, file: IO[bytes], offset: int, count: int) -> bytearray:
    """`count` bytes from `offset`; the caller has compared count with the file's size."""
    content = bytearray(count)
    try:
        file.seek(offset)
        got = file.readinto(content)  # type: ignore[attr-defined]  # IO lacks readinto
    except OSError as cause:
        raise _refusal(path, f"can't be read: {cause.strerror}") from cause
    if got != count:
        raise _refusal(path, "became shorter while it was read")
    return content


def _check_beginning(path: Path, head: bytearray) -> None:
    if head.startswith(b"PK\3\4"):
        return
    if not head:
        raise _refusal(path, "is empty, not a checkpoint")
    if head.startswith(_LEGACY_MAGIC):
        raise _refusal(
            path, "was saved by a torch older than 1.6 (or without its zip format); load and save it with a newer one"
        )
    kind = "a bare pickle" if head[0] == 0x80 else "something else"
    raise _refusal(path, f"is {kind}, not a zip as torch.save writes one")


def _directory(path: Path, file: IO[bytes], size: int) -> list[Member]:
    """All members in the order of the directory, each inside the file, none over another."""
    count, start, stop = _find_directory(path, file, size)
    content = _read_at(path, file, start, stop - start)
    entries: list[tuple[Any, ...]] = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(content):
            raise _refusal(path, "the zip's directory is broken off")
        fields = _ENTRY.unpack_from(content, at)
        name_end = at + _ENTRY.size + fields[10]
        extra_end = name_end + fields[11]
        if fields[0] != b"PK\1\2" or extra_end + fields[12] > len(content):
            raise _refusal(path, "the zip's directory is damaged")
        name, extra = content[at + _ENTRY.size : name_end], content[name_end:extra_end]
        entries.append(_entry(path, bytes(name), extra, fields))
        at = extra_end + fields[12]
    if at != len(content):
        raise _refusal(path, "the zip's directory holds more than it counts")
    return _placed(path, entries, start, size)


def _find_directory(path: Path, file: IO[bytes], size: int) -> tuple[int, int, int]:
    """(entries, first byte, byte after the last) of the directory, from the records at the end of the file."""
    broken = "doesn't end as a zip does: broken off, or something was added"
    if size < _END.size:
        raise _refusal(path, broken)
    end_at = size - _END.size
    signature, disk, disk0, here, count, length, start, comment = _END.unpack(_read_at(path, file, end_at, _END.size))
    if signature != b"PK\5\6" or comment:
        raise _refusal(path, broken)
    plain: tuple[int, ...] = (disk, disk0, here, count, length, start)
    stop = end_at
    locator_at = end_at - _LOCATOR64.size
    if locator_at >= 0:
        signature, disk_of_record, record_at, disks = _LOCATOR64.unpack(_read_at(path, file, locator_at, 20))
        if signature == b"PK\6\7":
            if record_at + _END64.size != locator_at or disk_of_record or disks != 1:
                raise _refusal(path, "the zip64 records at its end don't fit together")
            stop = record_at
            wide = _END64.unpack(_read_at(path, file, record_at, _END64.size))
            plain = _widened(path, plain, wide)
    disk, disk0, here, count, length, start = plain
    if disk or disk0 or here != count:
        raise _refusal(path, "is one part of a zip in several")
    if start + length != stop or not 0 < count <= _MAX_MEMBERS or count * _ENTRY.size > length:
        raise _refusal(path, "the zip's directory isn't where its end says, or its count is false")
    if length > _MAX_MEMBERS * 300:
        raise _refusal(path, "the zip's directory is too large")
    return count, start, stop


def _widened(path: Path, plain: tuple[int, ...], wide: tuple[Any, ...]) -> tuple[int, ...]:
    """The zip64 end record's figures, which must repeat the plain record's wherever that one has room for them."""
    limits = (_ASK_ZIP64_16,) * 4 + (_ASK_ZIP64_32,) * 2
    if wide[0] != b"PK\6\6" or any(small not in (large, limit) for small, large, limit in zip(plain, wide[4:], limits)):
        raise _refusal(path, "the zip64 record contradicts the zip's own end")
    return tuple(wide[4:])


def _entry(path: Path, name: bytes, extra: bytearray, fields: tuple[Any, ...]) -> tuple[Any, ...]:
    """(name, flags, method, crc, packed, size, header) of a directory entry, zip64 figures put in."""
    flags, method, crc, disk = fields[3], fields[4], fields[7], fields[13]
    packed, size, header = fields[8], fields[9], fields[16]
    if flags & ~_KNOWN_FLAGS or method not in (_STORED, _DEFLATED) or disk:
        raise _refusal(path, "a member is encrypted, in another volume or packed in a way that torch doesn't write")
    if _ASK_ZIP64_32 in (packed, size, header):
        large = iter(_zip64_extra(extra))
        try:  # only the figures that don't fit are there, in this order
            size = next(large) if size == _ASK_ZIP64_32 else size
            packed = next(large) if packed == _ASK_ZIP64_32 else packed
            header = next(large) if header == _ASK_ZIP64_32 else header
        except StopIteration:
            raise _refusal(path, "a member's zip64 figures are missing") from None
    return name, flags, method, crc, packed, size, header


def _zip64_extra(extra: bytearray) -> tuple[int, ...]:
    """The 64-bit figures in an entry's extra fields; none if there is no such field or it is cut."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            return struct.unpack_from(f"<{len(field) // 8}Q", field)
        at += 4 + length
    return ()


def _placed(path: Path, entries: list[tuple[Any, ...]], directory: int, file_size: int) -> list[Member]:
    """Members with their ends, after a check that they lie side by side before the directory."""
    headers = sorted(entry[6] for entry in entries)
    ends = dict(zip(headers, [*headers[1:], directory]))
    members = []
    for name, flags, method, crc, packed, size, header in entries:
        if header + _LOCAL.size + len(name) + packed > ends[header]:
            raise _refusal(path, "members of the zip lie over one another or outside the file")
        if method == _STORED and packed != size:
            raise _refusal(path, "a member's two sizes differ, though it isn't compressed")
        members.append(Member(name, flags, method, crc, packed, size, header, ends[header]))
    if len(ends) != len(entries):
        raise _refusal(path, "two members of the zip are one and the same place")
    if sum(member.size for member in members) > _most_bytes(file_size):
        raise _refusal(path, "would unpack to far more than weights can be compressed to")
    return members


def _named(path: Path, members: list[Member]) -> dict[str, Member]:
    """Members by name without the folder they all lie in, whose own name may be anything."""
    folder = members[0].name.split(b"/")[0] + b"/"
    named: dict[str, Member] = {}
    for member in members:
        inner = member.name[len(folder) :]
        if not member.name.startswith(folder) or not _MEMBER_NAME.fullmatch(inner) or b".." in inner:
            raise _refusal(path, "a member of the zip has a name that torch.save doesn't give")
        if inner.decode("ascii") in named:
            raise _refusal(path, f"two members of the zip are named {inner.decode('ascii')[:80]}")
        named[inner.decode("ascii")] = member
    if "constants.pkl" in named or any(name.startswith("code/") for name in named):
        raise _refusal(path, "is a TorchScript program, not a checkpoint; give the .pt that it was exported from")
    if "data.pkl" not in named:
        raise _refusal(path, "is a zip without data.pkl, so torch.save didn't write it")
    return named


def _check_local(archive: Archive, member: Member) -> int:
    """Offset of a member's data, after comparing its local header with the directory."""
    offset = member.header + _LOCAL.size + len(member.name)
    head = _read_at(archive.path, archive.file, member.header, offset - member.header)
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack_from(head)
    # Sizes that follow the data, or stand in zip64, leave these here. The directory's count, in any case.
    absent = (0, _ASK_ZIP64_32) if flags & _SIZES_FOLLOW else (_ASK_ZIP64_32,)
    agrees = (
        signature == b"PK\3\4"
        and (flags, method, name_length) == (member.flags, member.method, len(member.name))
        and head[_LOCAL.size :] == member.name
        and (crc == member.crc or (flags & _SIZES_FOLLOW and crc == 0))
        and (packed == member.packed or packed in absent)
        and (size == member.size or size in absent)
    )
    if not agrees:
        raise _refusal(archive.path, "the zip's directory and a member's own header contradict each other")
    if offset + extra_length + member.packed > member.end:
        raise _refusal(archive.path, "members of the zip lie over one another or outside the file")
    return offset + int(extra_length)


def _inflate(path: Path, member: Member, packed: bytearray) -> bytearray:
    """The unpacked bytes: exactly as many as the directory says, never more in memory."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(packed, member.size + 1)
    except zlib.error as cause:
        raise _refusal(path, "a compressed member is damaged") from cause
    if len(content) != member.size or not inflater.eof or inflater.unused_data:
        raise _refusal(path, "a compressed member doesn't unpack to the size that is written for it")
    return bytearray(content)
