"""Writes GIFs block by block (GIF89a specification): any delay, disposal and transparency."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
  """A frame: palette indices uint8 [h,w] at (left, top); delay in 1/100 s, None for no block."""

  indices: np.ndarray
  delay: int | None = 10
  place: tuple[int, int] = (0, 0)
  disposal: int = 0
  transparent: int = -1


def write_gif(path, size: tuple[int, int], palette, parts: Sequence[Part], *, back=0) -> Path:
  """Writes a GIF of a size (width, height), with 4 colours (RGB) and a background."""
  data = b"GIF89a" + struct.pack("<HHBBB", *size, 0x91, back, 0)
  data += bytes(np.uint8(palette).ravel()) + b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
  for part in parts:
    height, width = part.indices.shape
    if part.delay is not None:
      flags = part.disposal << 2 | (part.transparent >= 0)
      data += struct.pack("<BBBBHBB", 0x21, 0xF9, 4, flags, part.delay, max(0, part.transparent), 0)
    data += struct.pack("<BHHHHB", 0x2C, *part.place, width, height, 0)
    data += _compress(part.indices.ravel().tolist())
  Path(path).write_bytes(data + b";")
  return Path(path)


def _compress(indices: list[int]) -> bytes:
  """LZW of two-bit pixels that never grows its table: every pair of codes follows a clear code."""
  pairs = [(4, *indices[start : start + 2]) for start in range(0, len(indices), 2)]
  codes = [code for pair in pairs for code in pair] + [5]
  bits = sum(code << 3 * place for place, code in enumerate(codes))
  data = bits.to_bytes(3 * len(codes) // 8 + 1, "little")
  blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
  return b"\2" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
