"""Error classes of the three packages; every message says what, where and what to do."""

from __future__ import annotations


class NqError(Exception):
    """Root of all errors that nqformat, nqruntime and nqconvert raise on their own account."""


class FormatError(NqError, ValueError):
    """The bytes are not a well-formed .nqz file.

    Attributes
    ----------
    section : str or None
        Structure in which the fault was found, by its name in the specification.
    offset_abs : int or None
        Offset in bytes from the start of the file, where one is known.
    detail : str
        What is wrong.
    """

    def __init__(self, detail: str, *, section: str | None = None, offset_abs: int | None = None) -> None:
        self.detail = detail
        self.section = section
        self.offset_abs = offset_abs
        where = "" if section is None else f"section {section}"
        if offset_abs is not None:
            where += f"{' ' if where else ''}at byte {offset_abs:#x}"
        super().__init__(f"{where}: {detail}" if where else detail)


class BadMagicError(FormatError):
    """The file does not start with the .nqz magic."""


class TruncatedError(FormatError):
    """The file, or a structure in it, ends before its declared length."""


class CorruptError(FormatError):
    """A checksum differs, a code is invalid or a stored number contradicts another."""


class LimitExceededError(FormatError):
    """The file asks for more than :class:`nqformat.Limits` allows."""


class UnsupportedVersionError(NqError):
    """The file's major version is newer than this reader."""


class UnsupportedFeatureError(NqError):
    """The file uses a critical feature that this reader does not know."""


class ConversionError(NqError):
    """The model or tensor cannot be represented; the message names the node or tensor."""


class MissingDependencyError(NqError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{package} is not installed; run: pip install 'nqformat[{extra}]'")
