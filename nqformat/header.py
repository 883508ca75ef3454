"""The 32-byte header (spec 2.1)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from .checksums import DEFAULT_PAGE_LOG2, MIN_PAGE_LOG2, n_pages
from .errors import (
    BadMagicError,
    CorruptError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)

MAGIC = b"\x89NQZ\r\n\x1a\n"
HEADER_BYTES = 32
VERSION_MAJOR = 1
VERSION_MINOR = 0

_FIELDS = struct.Struct("<8sBBBBIQI")
_FLAG_DEFLATED = 0x01
_FLAGS_KNOWN = 0xF1


def check_magic(start: bytes) -> None:
    """Raise BadMagicError unless the first bytes of a file agree with the magic."""
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise BadMagicError("this is not a .nqz file", section="HEADER", offset_abs=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Fixed fields at the start of a file.

    Attributes
    ----------
    major, minor : int
        Format version that the file needs.
    deflated : bool
        Whether the directory is deflated.
    page_log2 : int
        Log2 of the page size of the checksums.
    directory_bytes : int
        Page checksums and stored directory together.
    file_bytes : int
        Length of the whole file.
    directory_crc32 : int
        CRC-32 of the ``directory_bytes`` bytes after the header.
    """

    major: int = VERSION_MAJOR
    minor: int
    deflated: bool
    page_log2: int = DEFAULT_PAGE_LOG2
    directory_bytes: int
    file_bytes: int
    directory_crc32: int

    @property
    def body_start_abs(self) -> int:
        """Offset of the first byte after the directory."""
        return HEADER_BYTES + self.directory_bytes

    @property
    def n_pages(self) -> int:
        """Number of page checksums."""
        return n_pages(self.file_bytes - self.body_start_abs, self.page_log2)

    def to_bytes(self) -> bytes:
        """Serialize, with the header's own checksum."""
        flags = (_FLAG_DEFLATED if self.deflated else 0) | (self.page_log2 - MIN_PAGE_LOG2) << 4
        fields = _FIELDS.pack(
            MAGIC,
            self.major,
            self.minor,
            flags,
            0,
            self.directory_bytes,
            self.file_bytes,
            self.directory_crc32,
        )
        return fields + struct.pack("<I", zlib.crc32(fields))

    @classmethod
    def parse(cls, start: bytes, actual_file_bytes: int) -> Header:
        """Parse and check the first 32 bytes of a file.

        Raises
        ------
        BadMagicError, TruncatedError, CorruptError
            See spec 2.1 for which fault gives which.
        UnsupportedVersionError
            If the major version is another; 0 was that of the drafts.
        UnsupportedFeatureError
            If an unknown critical flag is set.
        """
        check_magic(start)
        if len(start) < HEADER_BYTES:
            raise TruncatedError(
                f"{len(start)} bytes, the header has {HEADER_BYTES}", section="HEADER", offset_abs=0
            )
        _, major, minor, flags, _, directory_bytes, file_bytes, directory_crc32 = _FIELDS.unpack(start[:28])
        if struct.unpack("<I", start[28:32])[0] != zlib.crc32(start[:28]):
            raise CorruptError("header checksum differs", section="HEADER", offset_abs=28)
        if major != VERSION_MAJOR:
            advice = "update nqformat" if major > VERSION_MAJOR else "it is a draft: convert the model again"
            raise UnsupportedVersionError(
                f"the file has format version {major}.{minor}, this reader knows {VERSION_MAJOR}.x; {advice}"
            )
        if flags & ~_FLAGS_KNOWN:
            raise UnsupportedFeatureError(f"header flags {flags:#04x} are unknown to this reader")
        header = cls(
            major=major,
            minor=minor,
            deflated=bool(flags & _FLAG_DEFLATED),
            page_log2=(flags >> 4) + MIN_PAGE_LOG2,
            directory_bytes=directory_bytes,
            file_bytes=file_bytes,
            directory_crc32=directory_crc32,
        )
        header._check_lengths(actual_file_bytes)
        return header

    def _check_lengths(self, actual_file_bytes: int) -> None:
        if actual_file_bytes < self.file_bytes:
            raise TruncatedError(
                f"file has {actual_file_bytes} bytes, {self.file_bytes} are declared",
                section="HEADER",
                offset_abs=16,
            )
        if actual_file_bytes > self.file_bytes:
            raise CorruptError(
                f"file has {actual_file_bytes} bytes, only {self.file_bytes} are declared",
                section="HEADER",
                offset_abs=16,
            )
        if self.body_start_abs > self.file_bytes or self.directory_bytes < 4 * self.n_pages:
            raise CorruptError("directory does not fit the file", section="HEADER", offset_abs=12)
