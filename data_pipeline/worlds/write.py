"""Generated worlds to a dataset of clip records."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from data_pipeline.worlds.physworld import WorldClip, world_clips

LICENCE = "CC0-1.0"


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
      weight), `families` (name -> weight), `backgrounds` (styles), `held_out_fraction`.
  Raises:
    BadInput: unknown world.
  """
  if world["name"] != "physworld":
    raise BadInput(f"data: world.name={world['name']!r} is not one of ['physworld'].")
  names = ("frames", "width", "height", "fps", "weight")
  specs = [dict(zip(names, spec, strict=True)) for spec in world["formats"]]
  clips = world_clips(
    world["seed"],
    world["clips"],
    specs=specs,
    families=world["families"],
    styles=world["backgrounds"],
    held_out_fraction=world["held_out_fraction"],
  )
  return (clip_record(clip) for clip in clips)
