"""Tells a picture from a stream of pictures (Motion JPEG), which begin alike (ITU-T T.81, annex B).

Cameras put other pictures behind a photograph too: a preview, a gain map. Those have another size,
or an index of them (CIPA DC-007, "MPF") stands in the first. Frames of a stream have one size and
no index; few zeros may stand between them.
"""

from typing import BinaryIO, NamedTuple

_START, _END, _SCAN, _INDEX = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xE2
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of frame headers
_MOST_SEGMENTS = 1000
_MOST_STUFFING = 4096  # bytes
_PIECE_BYTES = 1 << 20


class _Head(NamedTuple):
  """The segments before the coded data.

  Attributes:
    size: height and width, as stored.
    has_index: of other pictures in the file.
    scan: byte at which the coded data begins.
  """

  size: bytes
  has_index: bool
  scan: int


def is_jpeg_stream(file: BinaryIO) -> bool:
  """Tells whether a file that begins with a JPEG picture goes on with more frames of its size."""
  first = _read_head(file, 0)
  if first is None or first.has_index:
    return False
  end = _find(file, first.scan, _END)
  if end is None:
    return False
  end += len(_END)
  file.seek(end)
  stuffing = file.read(_MOST_STUFFING)
  second = _read_head(file, end + len(stuffing) - len(stuffing.lstrip(b"\0")))
  return second is not None and second.size == first.size


def _read_head(file: BinaryIO, at: int) -> _Head | None:
  """None for what is no JPEG picture."""
  file.seek(at)
  if file.read(2) != _START:
    return None
  size, has_index = b"", False
  for _ in range(_MOST_SEGMENTS):
    marker = file.read(2)
    length = int.from_bytes(file.read(2), "big")
    if len(marker) < 2 or marker[0] != 0xFF or length < 2:
      return None
    if marker[1] == _SCAN:
      return _Head(size, has_index, file.tell()) if size else None
    content = file.read(length - 2)
    has_index |= marker[1] == _INDEX and content.startswith(b"MPF\0")
    size = content[1:5] if marker[1] in _SIZES else size
  return None


def _find(file: BinaryIO, start: int, word: bytes) -> int | None:
  file.seek(start)
  kept = b""
  while data := file.read(_PIECE_BYTES):
    if (at := (kept + data).find(word)) >= 0:
      return start - len(kept) + at
    start, kept = start + len(data), data[1 - len(word) :]
  return None
