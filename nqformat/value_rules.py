"""How stored numbers become values: codebooks and affine values in tensor records (spec 6.1, 6.2, 7.4)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum

from .cursor import ByteCursor, encode_varint, encode_zigzag
from .dtypes import DType
from .errors import UnsupportedFeatureError
from .raw_records import DirectoryCounts
from .tensor import MAX_AFFINE_K


class AffineOrder(IntEnum):
    """How a stored index becomes k (spec 6.2)."""

    ASCENDING = 0
    ZIGZAG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookValues:
    """Values are entries of codebook number `codebook`, of the group of each unit (spec 6.1)."""

    codebook: int
    groups: int = 1
    width: int = 1
    span: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether there is one codebook of single elements."""
        return self.groups == 1 and self.width == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineRule:
    """Values are ``step * k + offset``; `k_min` is used with ascending order only."""

    step: float
    offset: float
    order: AffineOrder
    k_min: int = 0


ValueRule = CodebookValues | AffineRule


def rule_bytes(rule: ValueRule) -> bytes:
    """Serialize a value rule (spec 7.4, 6.2)."""
    if isinstance(rule, CodebookValues):
        span = encode_varint(rule.span) if rule.groups > 1 else b""
        return encode_varint(rule.codebook) + span
    head = struct.pack("<ffB", rule.step, rule.offset, rule.order)
    return head + (encode_zigzag(rule.k_min) if rule.order is AffineOrder.ASCENDING else b"")


def read_codebook_rule(cursor: ByteCursor, dtype: DType, counts: DirectoryCounts) -> CodebookValues:
    """Parse which codebook a tensor uses; CorruptError if it does not stand before."""
    codebook = cursor.varint()
    if codebook >= len(counts.codebooks):
        raise cursor.corrupt(f"codebook {codebook} does not exist")
    if not dtype.is_float:
        raise cursor.corrupt(f"codebook values of dtype {dtype.label}")
    found = counts.codebooks[codebook]
    if isinstance(found, str):
        raise UnsupportedFeatureError(found)
    span = cursor.varint() if found.n_groups > 1 else 1
    if span < 1:
        raise cursor.corrupt("a codebook group spans nothing")
    return CodebookValues(codebook=codebook, groups=found.n_groups, width=found.width, span=span)


def read_affine(cursor: ByteCursor, dtype: DType) -> AffineRule:
    """Parse affine values (spec 6.2); CorruptError if they are not finite or do not fit the type."""
    step, offset, number = cursor.f32(), cursor.f32(), cursor.u8()
    if not math.isfinite(step) or not math.isfinite(offset):
        raise cursor.corrupt("affine step or offset is not finite")
    if not dtype.is_float and (dtype is DType.BOOL or step != 1.0 or offset != 0.0):
        raise cursor.corrupt(f"affine values of dtype {dtype.label} need step 1 and offset 0")
    if number not in tuple(AffineOrder):
        raise UnsupportedFeatureError(f"affine order {number} is unknown to this reader")
    order = AffineOrder(number)
    k_min = cursor.zigzag() if order is AffineOrder.ASCENDING else 0
    if abs(k_min) >= MAX_AFFINE_K:
        raise cursor.corrupt(f"affine k starts at {k_min}")
    return AffineRule(step=step, offset=offset, order=order, k_min=k_min)
