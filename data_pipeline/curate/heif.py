"""Reads what the boxes of HEIF pictures (AVIF, HEIC) say and their decoders do not tell.

Source: ISO/IEC 14496-12 (boxes, items, tracks) and ISO/IEC 23008-12 (HEIF). What is broken reads
as not there: the decoder refuses it.
"""

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

_AVIF = {b"avif", b"avis"}
_STILL = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"miaf"}
_SEQUENCE = {b"hevc", b"hevx", b"hevm", b"hevs", b"msf1"}
_MOST_BOXES = 100_000
_MOST_BYTES = 16 << 20  # of the boxes that describe items


class Box(NamedTuple):
  """A box: its content is the bytes `start` to `stop` of the file."""

  kind: bytes
  start: int
  stop: int


class Edges(NamedTuple):
  """Part of a picture, in pixels."""

  left: int
  top: int
  right: int
  bottom: int


def picture_format(file: BinaryIO) -> str:
  """Pillow's name of a format, AVIF or HEIF, by the brands; "" for all else, such as a video.

  A sequence of HEVC pictures is a video; one of AV1 pictures is not.
  """
  box = next(_boxes(file, 0, 1 << 16), None)
  if not box or box.kind != b"ftyp":
    return ""
  names = _read(file, box)
  major, brands = names[:4], {names[i : i + 4] for i in range(0, len(names), 4)}
  if major not in _AVIF | _STILL | _SEQUENCE:
    return ""
  if brands & _AVIF:
    return "AVIF"
  return "HEIF" if major in _STILL else ""


def clean_aperture(file: BinaryIO, width: int, height: int) -> Edges:
  """The part of the primary picture that is to be shown, before it is turned (`clap`).

  Args:
    width, height: pixels that are stored.
  """
  whole = Edges(0, 0, width, height)
  found = [box for box in _primary_properties(file) if box.kind == b"clap"]
  values = _read(file, found[0]) if found else b""
  if len(values) < 32:
    return whole
  part = struct.unpack(">IIIIiIiI", values[:32])
  if not all(part[1::2]):
    return whole
  clean_width, clean_height, right, down = (Fraction(part[i], part[i + 1]) for i in range(0, 8, 2))
  left = round((width - clean_width) / 2 + right)
  top = round((height - clean_height) / 2 + down)
  edges = Edges(left, top, left + round(clean_width), top + round(clean_height))
  inside = 0 <= left < edges.right <= width and 0 <= top < edges.bottom <= height
  return edges if inside else whole


def count_pictures(file: BinaryIO) -> int:
  """Pictures of the file that stand for themselves: no tiles, thumbnails, alpha or depth; >= 1."""
  meta = _find(file, None, b"meta")
  shown: set[int] = set()
  for box in _children(file, _find(file, meta, b"iinf"), _count_bytes):
    data = _read(file, box)
    if box.kind == b"infe" and len(data) >= 12 and data[0] in (2, 3):
      number, kind = (data[4:6], data[8:12]) if data[0] == 2 else (data[4:8], data[10:14])
      is_picture = kind not in (b"Exif", b"mime", b"uri ") and not data[3] & 1
      shown |= {int.from_bytes(number, "big")} if is_picture else set()
  references = _find(file, meta, b"iref")
  wide = 4 if references and _version(file, references) else 2
  for box in _children(file, references, lambda version: 0):
    data = _read(file, box)
    numbers = [int.from_bytes(data[:wide], "big")]
    if box.kind == b"dimg":  # what a picture is made of
      numbers = [
        int.from_bytes(data[i : i + wide], "big") for i in range(wide + 2, len(data), wide)
      ]
    shown -= set(numbers) if box.kind in (b"dimg", b"thmb", b"auxl") else set()
  return max(1, len(shown))


def has_alpha_track(file: BinaryIO) -> bool:
  """Tells whether a track of the file is only auxiliary to another, such as its alpha."""
  moov = _find(file, None, b"moov")
  for box in _boxes(file, moov.start, moov.stop) if moov else ():
    handler = _find(file, _find(file, box, b"mdia"), b"hdlr") if box.kind == b"trak" else None
    if handler and _read(file, handler)[8:12] == b"auxv":
      return True
  return False


def _primary_properties(file: BinaryIO) -> Iterator[Box]:
  """The properties of the primary item, in order."""
  meta = _find(file, None, b"meta")
  primary, parent = _find(file, meta, b"pitm"), _find(file, meta, b"iprp")
  held, links = _find(file, parent, b"ipco"), _find(file, parent, b"ipma")
  if not (primary and held and links):
    return
  number = int.from_bytes(_read(file, primary)[4:], "big")
  properties = list(_boxes(file, held.start, held.stop))
  for item, indices in _associations(_read(file, links)):
    if item == number:
      yield from (properties[i - 1] for i in indices if 0 < i <= len(properties))


def _associations(data: bytes) -> Iterator[tuple[int, list[int]]]:
  """(item, numbers of its properties from 1 on) of an `ipma` box."""
  if len(data) < 8:
    return
  id_bytes, link_bytes = (4 if data[0] else 2), (2 if data[3] & 1 else 1)
  mask, at = (1 << (8 * link_bytes - 1)) - 1, 8
  for _ in range(min(int.from_bytes(data[4:8], "big"), _MOST_BOXES)):
    if at + id_bytes >= len(data):
      return
    item, count = int.from_bytes(data[at : at + id_bytes], "big"), data[at + id_bytes]
    at += id_bytes + 1
    links = [data[at + i * link_bytes : at + (i + 1) * link_bytes] for i in range(count)]
    at += count * link_bytes
    yield item, [int.from_bytes(link, "big") & mask for link in links]


# ---- boxes


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[Box]:
  """The boxes within a range of bytes, as far as they are whole."""
  for _ in range(_MOST_BOXES):
    file.seek(start)
    head = file.read(16)
    if start + 8 > stop or len(head) < 8:
      return
    size, skip = int.from_bytes(head[:4], "big"), 8
    if size == 1:
      size, skip = int.from_bytes(head[8:], "big"), 16
    end = start + size if size else stop
    if size and size < skip or end > stop:
      return
    yield Box(head[4:8], start + skip, end)
    start = end


def _find(file: BinaryIO, parent: Box | None, kind: bytes) -> Box | None:
  """The first box of a kind in another; in the file for `meta` and `moov`."""
  if kind in (b"meta", b"moov"):
    found = (box for box in _boxes(file, 0, file.seek(0, 2)) if box.kind == kind)
    return next(found, None)
  if not parent:
    return None
  skip = 4 if parent.kind == b"meta" else 0  # its version
  found = (box for box in _boxes(file, parent.start + skip, parent.stop) if box.kind == kind)
  return next(found, None)


def _children(file: BinaryIO, parent: Box | None, count_bytes: Any) -> Iterator[Box]:
  """The boxes in one that begins with a version and a count."""
  if parent:
    skip = 4 + count_bytes(_version(file, parent))
    yield from _boxes(file, parent.start + skip, parent.stop)


def _count_bytes(version: int) -> int:
  return 4 if version else 2


def _version(file: BinaryIO, box: Box) -> int:
  return (_read(file, box) or b"\0")[0]


def _read(file: BinaryIO, box: Box) -> bytes:
  file.seek(box.start)
  return file.read(min(box.stop - box.start, _MOST_BYTES))
