"""Decodes packets where FFmpeg's own choice would lose something: alpha, and pixel aspects.

FFmpeg's decoders leave out alpha that lies beside the pictures, and show what is behind transparent
pixels: often garbage. VP8 and VP9 keep it in extra blocks of each packet (WebM's BlockAdditions),
which libvpx reads. HEVC keeps it in a second layer, which is not read here.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from av import CodecContext
from av.codec import Codec
from av.codec.codec import UnknownCodecError

from data_pipeline.curate.colours import orientation_of
from data_pipeline.curate.looks import Look
from data_pipeline.curate.types import Refused

_LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_SEI, _ALPHA_INFORMATION = 39, 165  # ITU-T H.265, sections 7.4.2.2 and F.14.2.8


class Decoder:
  """Decodes the packets of a video stream, and knows how each frame lies.

  Attributes:
    context: PyAV's, of the codec.
  Raises:
    Refused: "alpha": alpha lies beside the pictures, and FFmpeg is without libvpx.
  """

  def __init__(self, stream: Any):
    self.context = _context_of(stream)
    self._packets = self._frames = 0
    self._aspects = [(0, None, self._aspect())]  # with the packet and the time that they begin at
    self._found: dict[int, Fraction] = {}  # pixel aspects of the frames that came last, by identity
    self._rotation, self._orientation = 0, None

  def decode(self, packet: Any) -> list[Any]:
    """The frames that a packet completes, in order; raises what PyAV raises."""
    try:
      frames = self.context.decode(packet)
    finally:
      if self._aspect() != self._aspects[-1][2]:  # of frames that may be still to come
        self._aspects.append((self._packets, packet.pts, self._aspect()))
      self._packets += 1
    self._found = {id(frame): self._aspect_of(frame) for frame in frames}
    return frames

  def look(self, frame: Any) -> Look:
    """Tells how a frame lies that the last packet completed."""
    if frame.rotation and frame.rotation != self._rotation:
      self._rotation = frame.rotation
      self._orientation = orientation_of(frame, self.context.name)  # PyAV keeps what is asked
    orientation = self._orientation if frame.rotation else None
    return Look(frame.width, frame.height, self._found[id(frame)], orientation)

  def _aspect(self) -> Fraction:
    return self.context.sample_aspect_ratio or Fraction(1)

  def _aspect_of(self, frame: Any) -> Fraction:
    """Finds the aspect by the frame's time, or by its number if it has none."""
    while len(self._aspects) > 1:
      packet, stamp, _ = self._aspects[1]
      if stamp is None or frame.pts is None:
        is_before = self._frames < packet
      else:
        is_before = frame.pts < stamp
      if is_before:
        break
      del self._aspects[0]
    self._frames += 1
    return self._aspects[0][2]


def _context_of(stream: Any) -> Any:
  """The decoder of a stream; where alpha lies beside the pictures, one that reads it."""
  context = stream.codec_context
  if stream.metadata.get("alpha_mode") != "1" or context.name not in _LIBVPX:
    return context
  try:
    decoder: Any = CodecContext.create(Codec(_LIBVPX[context.name], "r"))
  except UnknownCodecError as error:
    raise Refused("alpha", f"alpha of {context.name}: FFmpeg is without libvpx") from error
  decoder.extradata, decoder.options = context.extradata, dict(context.options)
  decoder.thread_count = 1
  return decoder


def refuse_layer(packet: Any) -> None:
  """Raises Refused ("alpha") for a packet of HEVC that speaks of an alpha layer."""
  context = packet.stream.codec_context
  if context.name != "hevc" or not packet.size:
    return
  setup, data = bytes(context.extradata or b""), bytes(packet)
  is_framed = setup[:1] == b"\1" and len(setup) > 21
  units = [*_units_of_setup(setup), *_framed(data, (setup[21] & 3) + 1)] if is_framed else []
  units = units or [*_after_start_codes(setup), *_after_start_codes(data)]
  if any(unit[0] >> 1 & 63 == _SEI and unit[2] == _ALPHA_INFORMATION for unit in units):
    raise Refused("alpha", "alpha in a second layer of HEVC is not read")


def _units_of_setup(setup: bytes) -> Iterator[bytes]:
  """The first bytes of each unit in an `hvcC` record (ISO/IEC 14496-15, section 8.3.3)."""
  at = 23
  for _ in range(setup[22] if len(setup) > 22 else 0):
    count, at = int.from_bytes(setup[at + 1 : at + 3], "big"), at + 3
    for _ in range(count):
      size = int.from_bytes(setup[at : at + 2], "big")
      unit, at = setup[at + 2 : at + 5], at + 2 + size
      if len(unit) < 3:
        return
      yield unit


def _framed(data: bytes, length_bytes: int) -> Iterator[bytes]:
  """The first bytes of each unit that follows its length."""
  at = 0
  while len(unit := data[at + length_bytes : at + length_bytes + 3]) == 3:
    yield unit
    at += length_bytes + int.from_bytes(data[at : at + length_bytes], "big")


def _after_start_codes(data: bytes) -> Iterator[bytes]:
  at = -1
  while (at := data.find(b"\0\0\1", at + 1)) >= 0:
    if len(unit := data[at + 3 : at + 6]) == 3:
      yield unit
