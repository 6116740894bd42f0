"""Pictures and animated WebP, which Pillow reads better than FFmpeg does.

Only the formats below, each from the open file alone. A picture's size is looked at before memory
is taken for its pixels. EXIF orientation is applied; a palette or alpha is laid over black; 16-bit
grey is brought to 8; embedded colour profiles are not applied.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from data_pipeline.curate.colours import over_black
from data_pipeline.curate.container import Limits
from data_pipeline.curate.types import Refused

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP"}
_MAGIC |= {b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_SHORTEST_MS, _INSTEAD_MS = 11, 100  # as browsers do: shorter ones are meant as "do not care"


def still_format(head: bytes) -> str:
  """Pillow's name of a picture's format, "" if a video decoder has to read the file.

  Args:
    head: the file's first bytes, 512 are enough. GIF and animated PNG are FFmpeg's.
  """
  if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
    return "WEBP"
  name = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
  return "" if name == "PNG" and b"acTL" in head else name


@contextmanager
def open_still(file: BinaryIO, form: str, limits: Limits) -> Iterator[Image.Image]:
  """Opens a picture of a format; what is wrong with it becomes `Refused`."""
  file.seek(0)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of damaged metadata, and of the size, which is checked here
      with Image.open(file, formats=(form,)) as image:
        limits.check_size(image.width, image.height)
        yield image
  except MemoryError:
    raise
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise Refused("too_large", str(error)) from error
  except (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError) as error:
    raise Refused("damaged", f"{form}: {error}"[:200]) from error


def paint_still(image: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
  """uint8 [H, W, 3] of the current frame; `size` is (width, height) upright, None its own."""
  has_alpha = "A" in image.mode or "transparency" in image.info or image.mode == "P"
  if image.mode.startswith("I;16"):
    grey = (np.asarray(image).astype(np.float32) / 257 + 0.5).astype(np.uint8)
    image = Image.fromarray(grey)
  upright = ImageOps.exif_transpose(image)
  if has_alpha:
    picture = Image.fromarray(over_black(np.asarray(upright.convert("RGBA"))))
  else:
    picture = upright.convert("RGB")
  if size and picture.size != size:
    picture = picture.resize(size, Image.Resampling.BICUBIC)
  return np.ascontiguousarray(picture)


def durations_ms(image: Image.Image, max_frames: int) -> Iterator[int]:
  """Goes through the frames of an animation: yields how long each is shown while it is current.

  A picture is one frame.

  Raises:
    Refused: "too_many_frames".
  """
  count = getattr(image, "n_frames", 1) if image.format == "WEBP" else 1
  if count > max_frames:
    raise Refused("too_many_frames", f"{count} frames")
  for number in range(count):
    image.seek(number)
    image.load()
    duration = int(image.info.get("duration", 0))
    yield duration if duration >= _SHORTEST_MS else _INSTEAD_MS
