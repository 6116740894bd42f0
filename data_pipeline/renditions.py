"""Renditions: which frames of a clip are encoded, at what size and rate. Pure numpy.

Every rule makes renditions of every clip, from the index alone:

- **Size.** With `pixels`, a frame is resized, keeping its aspect ratio, until its shorter side is
  the multiple of `side` (the VAE's factor times the patch side) nearest to that of a frame of so
  many pixels; then the longer side is cropped, by less than one `side`. Nothing is enlarged unless
  `upsample`: a smaller frame stays as it is, and both of its sides are cropped.
- **Rate.** With `fps`, frames are dropped. Where the clip's rate is m times that, m whole (to 1 %),
  every m-th frame stays, and the rate is the clip's over m. Elsewhere frame i is the one nearest to
  the time i / fps, the later of two equally near. No frame is repeated: a slower clip keeps its
  rate.
- **Length.** With `max_seconds`, windows follow each other without a gap, each of 1+k·`time_factor`
  frames, at most that long. The last one takes what remains, less the frames over
  1+k·`time_factor`; it is left out when it would be a single frame. Windows below `min_seconds` are
  left out.
- **Images.** A rule with `images` takes so many single frames of every clip, evenly spaced.

Two rules may come to the same rendition: it is made once.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipeline.errors import BadInput

# One rendition. `start` and `step` count frames of the clip: frame j is `start + round(j * step)`.
# `resized` is (height, width) before `crop` (top, left, bottom, right) is cut off, `height` and
# `width` what remains.
RENDITION = np.dtype([
  ("row", np.int64),
  ("start", np.int64),  # frame of the clip that it begins with
  ("first", np.int64),  # the same, counted at its own rate from the clip's beginning
  ("frames", np.int32),
  ("height", np.int32),
  ("width", np.int32),
  ("fps", np.float32),
  ("step", np.float64),
  ("resized", np.int32, 2),
  ("crop", np.int32, 4),
])
# What a rendition shows; the id says all of it but the resizing, and that where it has to.
_SHOWN = ("row", "start", "frames", "height", "width", "fps", "resized")
_WHOLE = 0.01  # a rate this near to a whole multiple is one: frames are dropped, not chosen by time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """What is made of every clip; 0 leaves a side of it as it is.

  Attributes:
    pixels: of a frame, about.
    fps: frames a second, at most or about.
    max_seconds: of a window, at most.
    min_seconds: shorter windows, and shorter clips, are left out; images are not.
    min_pixels: clips of smaller frames are left out.
    images: single frames of each clip, instead of windows.
    upsample: smaller frames are enlarged to `pixels`.
  """

  pixels: int = 0
  fps: float = 0.0
  max_seconds: float = 0.0
  min_seconds: float = 0.0
  min_pixels: int = 0
  images: int = 0
  upsample: bool = False


def read_rules(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Rule]:
  """Rules by name, of a config's `encode.renditions`.

  Raises:
    BadInput: no rules, an unknown setting, or a value that is no number of its kind, or negative.
  """
  if not settings:
    raise BadInput(
      "encode: encode.renditions names no rendition. Give one, such as "
      "encode.renditions = dict(small=dict(pixels=65536))."
    )
  return {name: _read_rule(name, values) for name, values in settings.items()}


def _read_rule(name: str, values: Mapping[str, Any]) -> Rule:
  if not isinstance(values, Mapping):
    raise BadInput(
      f"encode: encode.renditions.{name}={values!r} is no rendition. Give its settings, such as "
      "dict(pixels=65536)."
    )
  known = {field.name: field.type for field in dataclasses.fields(Rule)}
  for key, value in values.items():
    where = f"encode: encode.renditions.{name}.{key}={value!r}"
    if key not in known:
      raise BadInput(f"{where} is not a setting. Use {', '.join(known)}.")
    kinds = (float, int) if known[key] is float else (known[key],)
    if type(value) not in kinds or not 0 <= value < math.inf:
      kind = {int: "whole number", float: "number", bool: "True or False"}[kinds[0]]
      raise BadInput(f"{where} is not a {kind}, 0 or more. Correct it.")
  return Rule(**values)


def snap_length(frames: int, time_factor: int) -> int:
  """The largest 1 + k·time_factor up to `frames`, which is at least 1."""
  return 1 + (frames - 1) // time_factor * time_factor


def centre_crop(height: int, width: int, h: int, w: int) -> tuple[int, int, int, int]:
  """(top, left, bottom, right) pixels to cut off a picture so that h by w remain."""
  top, left = (height - h) // 2, (width - w) // 2
  return top, left, height - h - top, width - w - left


def plan_renditions(
  index: Mapping[str, np.ndarray], rules: Mapping[str, Rule] | None, *, time_factor: int, side: int
) -> np.ndarray:
  """All renditions of a clip dataset: RENDITION [n], by row, then by rule, then by time.

  Args:
    index: has the columns `frames`, `height`, `width` and `fps` of the clips.
    rules: None for every clip as it is, cropped to what the VAE takes.
    time_factor: frames of a latent after the first.
    side: pixels that a rendition's sides are multiples of.
  Raises:
    BadInput: a clip is smaller than `side`, or nothing remains.
  """
  names = ("frames", "height", "width", "fps")
  facts = np.stack([np.asarray(index[name], np.float64) for name in names], axis=1)
  kinds, kind = np.unique(facts, axis=0, return_inverse=True)
  kind = kind.reshape(-1)
  counts = np.bincount(kind, minlength=len(kinds))
  parts = []
  for rule in [Rule()] if rules is None else rules.values():
    _check_sizes(kinds, counts, rule, side)
    parts.append(_expand([_render_kind(k, rule, time_factor, side) for k in kinds.tolist()], kind))
  table = np.concatenate(parts)
  table = table[np.argsort(table["row"], kind="stable")]
  table = _drop_twins(table) if len(parts) > 1 else table
  if not len(table):
    raise BadInput(
      f"encode: no rendition of the {len(kind)} clips is left. Lower min_seconds or min_pixels."
    )
  return table


def _check_sizes(kinds: np.ndarray, counts: np.ndarray, rule: Rule, side: int) -> None:
  frames, height, width = kinds[:, :3].T
  asked = height * width >= rule.min_pixels
  small = asked & ((frames < 1) | (height < side) | (width < side))
  if small.any():
    f, h, w = kinds[small][0, :3].astype(int).tolist()
    raise BadInput(
      f"encode: {counts[small].sum()} of {counts.sum()} clips are smaller than one patch "
      f"({side}x{side} pixels; one is {w}x{h}, {f} frames). "
      "Leave them out, or use a smaller patch."
    )


def _render_kind(facts: list[float], rule: Rule, time_factor: int, side: int) -> np.ndarray:
  """Renditions, by one rule, of a clip of these frames, height, width and rate; `row` is 0."""
  frames, height, width = map(int, facts[:3])
  fps = facts[3]
  if height * width < rule.min_pixels:
    return np.empty(0, RENDITION)
  resized, crop = fit_size(height, width, rule, side)
  h, w = resized[0] - crop[0] - crop[2], resized[1] - crop[1] - crop[3]
  if rule.images:
    starts = np.unique((2 * np.arange(rule.images) + 1) * frames // (2 * rule.images))
    windows, step = [(start, start, 1) for start in starts.tolist()], 1.0
  else:
    step, fps, count = choose_rate(frames, fps, rule.fps)
    windows = _cut(count, frames == 1, fps, rule, time_factor)
    windows = [(int(choose_frames(first, 1, step)[0]), first, n) for first, n in windows]
  found = [(0, start, first, n, h, w, fps, step, resized, crop) for start, first, n in windows]
  return np.array(found, RENDITION)


def fit_size(height: int, width: int, rule: Rule, side: int):
  """Size to resize to, (height, width), and what to crop then; see the rules above."""
  resized = height, width
  scale = math.sqrt(rule.pixels / (height * width)) if rule.pixels else 1.0
  if scale < 1 or (scale > 1 and rule.upsample):
    short = min(height, width)
    snapped = max(1, round(short * scale / side)) * side
    if snapped > short and not rule.upsample:
      snapped = short // side * side
    resized = round(height * snapped / short), round(width * snapped / short)
  h, w = (size // side * side for size in resized)
  return resized, centre_crop(*resized, h, w)


def choose_rate(frames: int, native: float, fps: float) -> tuple[float, float, int]:
  """(frames of the clip a frame of the rendition, its rate, its frames); see the rules above."""
  ratio = native / fps if fps else 1.0
  multiple = max(1, round(ratio))
  if ratio <= 1 or abs(ratio / multiple - 1) <= _WHOLE:
    multiple = 1 if ratio <= 1 else multiple
    return float(multiple), native / multiple, -(-frames // multiple)
  count = max(1, math.ceil((frames - 0.5) / ratio))
  while count > 1 and choose_frames(0, count, ratio)[-1] >= frames:
    count -= 1  # the last digit of a product
  return ratio, fps, count


def choose_frames(first: int, frames: int, step: float) -> np.ndarray:
  """int64 [frames]: frames of the clip that a rendition shows. Frame i at its rate is that nearest
  to i / fps, whichever window it falls into.
  """
  places = (first + np.arange(frames)) * step
  return np.floor(places + (0.5 + 1e-6)).astype(np.int64)  # a tie is one, whatever its last digit


def _cut(count: int, is_image: bool, fps: float, rule: Rule, time_factor: int):
  """(first frame, length) of the windows of `count` frames at `fps`."""
  longest = snap_length(count, time_factor)
  if rule.max_seconds:
    asked = max(1, math.floor(rule.max_seconds * fps + 1e-6))
    longest = min(longest, snap_length(asked, time_factor))
  windows = []
  for first in range(0, count, longest) if rule.max_seconds else (0,):
    length = snap_length(min(longest, count - first), time_factor)
    is_rest = first > 0 and length == 1 < longest
    if is_image or not (is_rest or length / fps < rule.min_seconds - 1e-6):
      windows.append((first, length))
  return windows


def _expand(templates: list[np.ndarray], kind: np.ndarray) -> np.ndarray:
  """Gives every clip the renditions of its kind."""
  lengths = np.array([len(template) for template in templates], np.int64)
  offsets = np.cumsum(lengths) - lengths
  counts = lengths[kind]
  rows = np.repeat(np.arange(len(kind)), counts)
  places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
  table = np.concatenate(templates)[offsets[kind[rows]] + places]
  table["row"] = rows
  return table


def _drop_twins(table: np.ndarray) -> np.ndarray:
  """The first of those that show the same."""
  columns = [table[name].astype(np.float64).reshape(len(table), -1) for name in _SHOWN]
  _, first = np.unique(np.concatenate(columns, axis=1), axis=0, return_index=True)
  return table[np.sort(first)]


def clip_of(rendition_id: str) -> str:
  """Id of the clip of a rendition, by the id that `name_rendition` gave it."""
  return rendition_id.rsplit("@", 2)[0]


def name_rendition(clip_id: str, rendition) -> str:
  """Its id: `clip@WIDTHxHEIGHTxFRAMES@FPS+START`, unique among the clip's renditions.

  `~WIDTHxHEIGHT`, to which it was resized, follows where a side was cropped then.
  """
  fps = str(np.float32(rendition["fps"])).removesuffix(".0")
  size = f"{rendition['width']}x{rendition['height']}x{rendition['frames']}"
  h, w = rendition["resized"].tolist()
  whole = (h, w) == (rendition["height"], rendition["width"])
  return f"{clip_id}@{size}@{fps}+{rendition['start']}" + ("" if whole else f"~{w}x{h}")
