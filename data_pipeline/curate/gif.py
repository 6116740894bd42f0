"""Shows GIFs at the pace of browsers: what says 10 ms or less is meant as "do not care".

FFmpeg takes 0 for 100 ms, and 10 ms as it stands; browsers show both for 100 ms. So the decoder is
shown the file as if it said 100 ms there.

Source: GIF89a specification, section 23 (Graphic Control Extension).
"""

from bisect import bisect_left
from typing import BinaryIO

_SHORTEST, _INSTEAD = 2, 10  # 1/100 s
_CONTROL, _IMAGE, _EXTENSION = 0xF9, 0x2C, 0x21


class SlowedGif:
  """A GIF as a file for reading, whose shortest delays are those of browsers.

  Args:
    file: seekable, with a GIF.
  """

  def __init__(self, file: BinaryIO):
    self._file = file
    self._places = _instants(file)  # of the low bytes of delays; the high ones are zero
    file.seek(0)

  def read(self, size: int) -> bytes:
    start = self._file.tell()
    data = bytearray(self._file.read(size))
    for place in self._places[bisect_left(self._places, start) :]:
      if place >= start + len(data):
        break
      data[place - start] = _INSTEAD
    return bytes(data)

  def seek(self, offset: int, whence: int = 0) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()


def _instants(file: BinaryIO) -> list[int]:
  """Finds where delays that are too short are stored, as far as the file is whole."""
  places: list[int] = []
  file.seek(0)
  flags = (file.read(13) + bytes(13))[10]
  _skip_palette(file, flags)
  while (kind := file.read(1)) and kind[0] in (_IMAGE, _EXTENSION):
    if kind[0] == _IMAGE:
      _skip_palette(file, (file.read(9) + bytes(9))[8])
      file.seek(1, 1)  # bits of the smallest code
    elif file.read(1) == bytes([_CONTROL]):
      place, block = file.tell() + 2, file.read(6)
      if len(block) == 6 and block[0] == 4 and int.from_bytes(block[2:4], "little") < _SHORTEST:
        places.append(place)
      file.seek(place - 2)
    while size := file.read(1):
      if not size[0]:
        break
      file.seek(size[0], 1)
  return places


def _skip_palette(file: BinaryIO, flags: int) -> None:
  if flags & 0x80:
    file.seek(3 << ((flags & 7) + 1), 1)
