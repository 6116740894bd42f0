"""Pictures, and animated WebP and AVIF, which Pillow reads better than FFmpeg does.

Only the formats below, each from the open file alone. A picture's size is looked at before memory
is taken for its pixels. What turns or crops a picture is applied (EXIF orientation; the rotation,
mirroring and clean aperture of HEIF); a palette or alpha is laid over black; 16-bit channels are
brought to 8; embedded colour profiles are not applied, HDR is not tone-mapped. Of several pictures
in a file the primary one is taken, or the first; `Still.pictures` tells.

Frames of an animated WebP last as long as in browsers: 100 ms where it says at most 10 ms.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from data_pipeline.curate.colours import over_black
from data_pipeline.curate.container import Limits
from data_pipeline.curate.heif import Edges, clean_aperture, count_pictures, picture_format
from data_pipeline.curate.jpeg import is_jpeg_stream
from data_pipeline.curate.types import Refused

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP"}
_MAGIC |= {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF"}
_MAGIC |= {b"\xffO\xffQ": "JPEG2000", b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000"}
_MAGIC |= {b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL"}
_UNREADABLE = ("JPEG XL", "raw file of a Canon camera")
_ANIMATED = ("WEBP", "AVIF")
_MOST_CHUNKS = 10_000
_LONGEST_INSTANT_MS, _INSTEAD_MS = 10, 100
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, RuntimeError)
_UNKNOWN = ("nsupported", "has not been built in")  # what libheif says of other codecs
_PREVIEW = (254, 1)  # TIFF's NewSubfileType, and its bit of a reduced picture


def still_format(file: BinaryIO) -> str:
  """Pillow's name of a picture's format, "" if a video decoder has to read the file.

  GIF and animated PNG are FFmpeg's: Pillow disposes of GIF's frames and blends those of PNG in ways
  of its own.
  """
  file.seek(0)
  head = file.read(16)
  if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
    return "WEBP"
  if head[:4] == b"II*\0" and head[8:10] == b"CR":  # a TIFF that begins with a preview of its own
    return _UNREADABLE[1]
  name = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
  if name == "PNG":
    return "" if _is_animated_png(file) else name
  if name == "JPEG":
    return "" if is_jpeg_stream(file) else name
  return name or picture_format(file)


def _is_animated_png(file: BinaryIO) -> bool:
  """Tells whether a chunk `acTL` stands before the picture, whatever precedes it."""
  file.seek(8)
  for _ in range(_MOST_CHUNKS):
    head = file.read(8)
    if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
      return False
    if head[4:] == b"acTL":
      return True
    file.seek(int.from_bytes(head[:4], "big") + 4, 1)
  return False


@dataclasses.dataclass(frozen=True)
class Still:
  """An open picture or animation.

  Attributes:
    image: Pillow's, at its current frame.
    part: of the stored picture that is shown; None for all of it.
    pictures: in the file. Only one is read; an animation counts as one.
    count: frames; 1 if it is not an animation.
    size: of the file, bytes.
  """

  image: Any
  part: Edges | None
  pictures: int
  count: int
  size: int

  @property
  def is_transparent(self) -> bool:
    """Tells whether the current frame has alpha, or a transparent colour."""
    return self.image.mode in _ALPHA or "transparency" in self.image.info

  def times(self, limits: Limits) -> Iterator[tuple[int, int]]:
    """Goes through the frames: yields when each begins and how long it is shown, in ms.

    It ends early where the file does.

    Raises:
      Refused: "too_many_frames", "too_large", "bomb".
    """
    if self.count > 1:
      limits.check_count(self.count, self.image.width, self.image.height, self.size)
    if self.count > limits.max_frames:
      raise Refused("too_many_frames", f"{self.count} frames")
    start = 0.0
    for number in range(self.count):
      try:
        self._go_to(number, limits)
      except _BROKEN:
        if number == 0:
          raise
        return
      start, duration = self._duration(start)
      yield round(start), round(start + duration) - round(start)
      start += duration

  def _go_to(self, number: int, limits: Limits) -> None:
    if self.count > 1:
      self.image.seek(number)
    self.image.load()
    limits.check_size(self.image.width, self.image.height)

  def _duration(self, start: float) -> tuple[float, float]:
    """When the current frame begins, and how long it is shown."""
    duration = float(self.image.info.get("duration", 0))
    if self.image.format == "AVIF":
      return float(self.image.info["timestamp"]), duration
    return start, duration if duration > _LONGEST_INSTANT_MS else float(_INSTEAD_MS)

  def paint(self) -> np.ndarray:
    """uint8 [H, W, 3] of the current frame, upright.

    Raises:
      Refused: "colours".
    """
    image, has_alpha = self.image, self.is_transparent or self.image.mode == "P"
    if image.mode in ("I", "F"):
      raise Refused("colours", f"{image.format} of 32 bits a channel: what is white is not said")
    if image.mode.startswith("I;16"):
      image = Image.fromarray((np.asarray(image).astype(np.float32) / 257 + 0.5).astype(np.uint8))
    if image.mode == "La":
      image = image.convert("LA")
    if has_alpha:
      image = Image.fromarray(over_black(np.asarray(image.convert("RGBA"))))
    picture = image.convert("RGB")
    picture = _upright(picture.crop(self.part) if self.part else picture, self.image)
    return np.array(picture)


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """uint8 [h, w, 3] to [H, W, 3], `size` being (W, H); bicubic."""
  if picture.shape[1::-1] == size:
    return picture
  return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _upright(picture: Image.Image, stored: Image.Image) -> Image.Image:
  """Turns a picture as the EXIF orientation of another says."""
  orientation = stored.getexif().get(ExifTags.Base.Orientation)
  if orientation not in range(2, 9):
    return picture
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  picture.info["exif"] = exif.tobytes()
  return ImageOps.exif_transpose(picture)


@contextmanager
def open_still(file: BinaryIO, form: str, limits: Limits) -> Iterator[Still]:
  """Opens a picture of a format; what is wrong with it becomes `Refused`."""
  if form in _UNREADABLE:
    raise Refused("no_decoder", form)
  if form == "HEIF":
    _register_heif()
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of damaged metadata, and of the size, which is checked here
      file.seek(0)
      with Image.open(file, formats=(form,)) as image:
        limits.check_size(image.width, image.height)
        yield _described(file, form, image)
  except MemoryError:
    raise
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise Refused("too_large", str(error)) from error
  except UnidentifiedImageError as error:  # its text names the file object
    raise Refused("damaged", f"{form}: cannot be opened") from error
  except _BROKEN as error:
    is_unknown = any(words in str(error) for words in _UNKNOWN)
    reason = "no_decoder" if is_unknown else "damaged"
    raise Refused(reason, f"{form}: {error}"[:200]) from error


def _described(file: BinaryIO, form: str, image: Any) -> Still:
  count, size = getattr(image, "n_frames", 1), file.seek(0, 2)
  part = clean_aperture(file, image.width, image.height) if form == "AVIF" else None
  if form in _ANIMATED and count > 1:
    return Still(image, part, 1, count, size)
  if form == "TIFF":
    count = _count_pages(image)
  return Still(image, part, count_pictures(file) if form in ("AVIF", "HEIF") else count, 1, size)


def _count_pages(image: Any) -> int:
  """Pages of a TIFF that are no reduced copies of others; the first has to be one."""
  tag, bit = _PREVIEW
  is_page = []
  for number in range(image.n_frames):
    image.seek(number)
    is_page.append(not int(image.tag_v2.get(tag, 0)) & bit)
  image.seek(0)
  if not is_page[0]:
    raise Refused("no_decoder", "TIFF that begins with a preview, as the raw files of cameras do")
  return sum(is_page)


@functools.cache
def _register_heif() -> None:
  """Makes Pillow read HEIC, with libheif."""
  try:
    import pi_heif
  except ImportError as error:
    detail = "HEIC needs a package that is not here. Run: pip install 'sora_jax[data]'"
    raise Refused("no_decoder", detail) from error
  pi_heif.register_heif_opener(
    decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
  )
