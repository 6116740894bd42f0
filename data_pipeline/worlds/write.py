"""Generated worlds to a dataset of clip records."""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from data_pipeline.worlds.physworld import WorldClip, world_clips

LICENCE = "CC0-1.0"
_FORMAT: tuple[str, ...] = ("frames", "width", "height", "fps", "weight")
_ADVICE = f"Give each as ({', '.join(_FORMAT)})."


def clip_record(clip: WorldClip) -> ClipRecord:
  """A generated clip as a record; its truth is a compressed npz of `WorldClip.truth`."""
  truth = io.BytesIO()
  # Any: as a keyword of unknown name, an array could be numpy's own `allow_pickle`.
  np.savez_compressed(truth, **cast(dict[str, Any], clip.truth))
  return ClipRecord(
    id=clip.source,
    source=clip.source,
    licence=LICENCE,
    split=clip.split,
    start_frame=0,
    fps=clip.fps,
    video=clip.video,
    captions=tuple(clip.captions),
    attributes=json.dumps(clip.attributes),
    truth=truth.getvalue(),
  )


def world_records(world: Mapping) -> Iterator[ClipRecord]:
  """Clip records of a world.

  Args:
    world: `name` ("physworld"), `seed`, `clips`, `formats` (tuples of frames, width, height, fps,
      weight), `families` (name -> weight), `backgrounds` (styles), `sizes` (of
      objects), `held_out_fraction`.
  Raises:
    BadInput: unknown world, or a value that it cannot have.
  """
  if world["name"] != "physworld":
    raise BadInput(f"data: world.name={world['name']!r} is not one of ['physworld'].")
  clips = world_clips(
    world["seed"],
    world["clips"],
    specs=_read_formats(world["formats"]),
    families=world["families"],
    styles=world["backgrounds"],
    sizes=world["sizes"],
    held_out_fraction=world["held_out_fraction"],
  )
  return (clip_record(clip) for clip in clips)


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_formats(formats: Sequence) -> list[dict[str, Any]]:
  """Formats by name. Raises BadInput: none, not five numbers each, or no weights."""
  if not isinstance(formats, (list, tuple)) or not formats:
    raise BadInput(f"data: world.formats={formats} is no list of formats. {_ADVICE}")
  for one in formats:
    if not (isinstance(one, (list, tuple)) and len(one) == 5 and all(map(_is_number, one))):
      raise BadInput(f"data: world.formats has {one}, which is not five numbers. {_ADVICE}")
  specs = [dict(zip(_FORMAT, one, strict=True)) for one in formats]
  weights = [spec["weight"] for spec in specs]
  if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
    raise BadInput(
      f"data: weights={weights} of world.formats are not shares. Give none below 0, and one above."
    )
  return specs
