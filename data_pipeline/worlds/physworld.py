"""physworld: generated clips of coloured shapes in motion, with captions, attributes and truth.

    clip = make_clip(seed=0, index=17, frames=16, height=64, width=64, fps=8.0,
                     families={"drift": 2, "fall": 1}, held_out_fraction=0.05)

A clip is a pure function of its arguments; (seed, index, families) choose the world, the rest how
it is filmed, so the same index at another rate, length or resolution (of the same aspect ratio)
shows the same world.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipeline import hashing
from data_pipeline.errors import BadInput
from data_pipeline.worlds import backgrounds, captions, palette, render, scenes, splits
from data_pipeline.worlds.draws import Draws

WORLD_VERSION = 1  # raised whenever the same arguments give another clip
FAMILIES = tuple(scenes.FAMILIES)
MIN_SIDE = 8
MIN_MOTION = 0.1  # world units that every moving object must cover before a clip claims directions
_SPEC_SALT = 0x73706563
Families = Mapping[str, float] | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Description:
  """A clip without its pixels. Fields as in `WorldClip`."""

  captions: tuple[str, ...]
  attributes: dict
  split: str
  source: str


@dataclasses.dataclass(frozen=True, eq=False)
class WorldClip:
  """A clip and all that is known of it.

  Attributes:
    video: uint8 [F, H, W, 3].
    captions: wordings that are each true of this clip.
    attributes: JSON-able: `family`; `objects`, each with `colour`, `shape`, `size`, `heading`
      (the world's) and `direction` (what this clip shows: None in an image, in a clip too short,
      or at rest); `background` (`style`, `tone`); `scenery` (tone of bar or ramp, else None);
      `events` (counts within the clip); `seconds`.
    truth: `positions` and `velocities` float64 [F, objects, 2] in world units (x right, y down, 1
      = shorter side of the frame, origin top left) and per second; `visibility` float64 [F,
      objects] in 0..1; `masks` uint8 [F, H, W], 0 or 1 + place of the object in
      `attributes["objects"]`.
    split: see `splits`.
    source: unique to the world: "physworld/seed0/000123".
  """

  video: np.ndarray
  fps: float
  captions: tuple[str, ...]
  attributes: dict
  truth: dict[str, np.ndarray]
  split: str
  source: str


@dataclasses.dataclass(frozen=True)
class _World:
  scene: scenes.Scene
  backdrop: backgrounds.Backdrop
  split_draw: float


def _weigh(families: Families) -> Mapping[str, float]:
  weights = families if isinstance(families, Mapping) else dict.fromkeys(families, 1.0)
  unknown = [name for name in weights if name not in scenes.FAMILIES]
  if unknown or not weights or min(weights.values()) < 0 or not sum(weights.values()) > 0:
    raise BadInput(
      f"physworld: families={dict(weights)} must give positive weights to some of "
      f"{', '.join(FAMILIES)}. Correct the name or weight."
    )
  return weights


def _check_film(frames: int, height: int, width: int, fps: float) -> None:
  sides = (frames, height, width)
  if not all(isinstance(side, (int, np.integer)) for side in sides):
    raise BadInput(
      f"physworld: frames, height, width={sides} are not all whole numbers. Drop the fractions."
    )
  if frames < 1 or not 0 < fps < np.inf:
    raise BadInput(f"physworld: frames={frames}, fps={fps} must be positive. Raise it.")
  if min(height, width) < MIN_SIDE:
    raise BadInput(
      f"physworld: width x height={width}x{height} is under {MIN_SIDE} pixels. Make it larger."
    )


def _check_fraction(held_out_fraction: float) -> None:
  if not 0 <= held_out_fraction <= 1:
    raise BadInput(
      f"physworld: held_out_fraction={held_out_fraction} is no share of the clips. "
      "Set it in [0, 1]."
    )


def _check_words(name: str, words: Sequence[str], known: Sequence[str]) -> None:
  if not words or any(word not in known for word in words):
    raise BadInput(
      f"physworld: {name}={list(words)} must be some of {', '.join(known)}. Correct the name."
    )


def _imagine(
  seed: int,
  index: int,
  side: tuple[float, float],
  families: Families,
  styles: Sequence[str],
  sizes: Sequence[str],
) -> _World:
  _check_words("styles", styles, backgrounds.STYLES)
  _check_words("sizes", sizes, tuple(palette.SIZES))
  draws = Draws(seed, index)
  family = draws.weighted("family", _weigh(families))
  scene = scenes.FAMILIES[family](draws, side, sizes)
  return _World(scene, backgrounds.draw_backdrop(draws, styles), draws.unit("split"))


def _film(world: _World, frames: int, fps: float) -> tuple[np.ndarray, np.ndarray]:
  """Positions and velocities [F, objects, 2] at the frames' times."""
  time = np.arange(frames) / fps
  paths = [body.path(time) for body in world.scene.bodies]
  return np.stack([p for p, _ in paths], axis=1), np.stack([v for _, v in paths], axis=1)


def _shows_motion(scene: scenes.Scene, positions: np.ndarray) -> bool:
  covered = [
    ((positions[:, i] - positions[0, i]) @ np.array(palette.DIRECTIONS[body.heading])).max()
    for i, body in enumerate(scene.bodies)
    if body.heading is not None
  ]
  return min(covered) >= MIN_MOTION


def _describe(world: _World, positions: np.ndarray, fps: float) -> dict:
  scene, seconds = world.scene, (len(positions) - 1) / fps
  moves = _shows_motion(scene, positions)
  objects = [
    {
      "colour": body.colour,
      "shape": body.shape,
      "size": body.size,
      "heading": body.heading,
      "direction": body.heading if moves else None,
    }
    for body in scene.bodies
  ]
  return {
    "family": scene.family,
    "objects": objects,
    "background": {"style": world.backdrop.style, "tone": world.backdrop.tone},
    "scenery": world.backdrop.scenery_word if scene.occluder or scene.ramp else None,
    "events": scene.events(seconds),
    "seconds": seconds,
  }


def _label(
  world: _World, positions: np.ndarray, fps: float, source: str, held_out_fraction: float
) -> Description:
  attributes = _describe(world, positions, fps)
  looks = [(body.colour, body.shape, body.heading) for body in world.scene.bodies]
  split = splits.choose_split(looks, world.split_draw, held_out_fraction)
  return Description(captions.write_captions(attributes), attributes, split, source)


def describe(
  seed: int,
  index: int,
  *,
  frames: int,
  height: int,
  width: int,
  fps: float,
  families: Families,
  held_out_fraction: float,
  styles: Sequence[str] = backgrounds.STYLES,
  sizes: Sequence[str] = tuple(palette.SIZES),
) -> Description:
  """What `make_clip` would say of the clip, without painting it. Arguments as there."""
  _check_film(frames, height, width, fps)
  _check_fraction(held_out_fraction)
  unit = min(height, width)
  world = _imagine(seed, index, (width / unit, height / unit), families, styles, sizes)
  positions, _ = _film(world, frames, fps)
  return _label(world, positions, fps, _name_source(seed, index), held_out_fraction)


def _name_source(seed: int, index: int) -> str:
  return f"physworld/seed{seed}/{index:06d}"


def make_clip(
  seed: int,
  index: int,
  *,
  frames: int,
  height: int,
  width: int,
  fps: float,
  families: Families,
  held_out_fraction: float,
  styles: Sequence[str] = backgrounds.STYLES,
  sizes: Sequence[str] = tuple(palette.SIZES),
) -> WorldClip:
  """Generates one clip.

  Args:
    seed, index: choose the world; every index is a source of its own.
    frames: any number from 1, an image whose captions claim no motion.
    height, width: pixels, at least 8.
    fps: frames a second.
    families: weights of the families, or names for equal weights.
    held_out_fraction: part of the sources that goes to the split "held_out".
    styles: of backgrounds, equally often.
    sizes: of objects, equally often; where a large one has no room, it is small all the same.
  Raises:
    BadInput: an unknown word, no frames, a frame too small, or no share.
  """
  _check_film(frames, height, width, fps)
  _check_fraction(held_out_fraction)
  unit = min(height, width)
  world = _imagine(seed, index, (width / unit, height / unit), families, styles, sizes)
  positions, velocities = _film(world, frames, fps)
  label = _label(world, positions, fps, _name_source(seed, index), held_out_fraction)
  picture, bar = backgrounds.draw_set(world.backdrop, world.scene, height, width)
  video = np.repeat((picture + 0.5).astype(np.uint8)[None], frames, axis=0)
  masks = np.zeros((frames, height, width), np.uint8)
  visibility = [
    render.paint_body(video, masks, body, positions[:, i], i + 1, bar)
    for i, body in enumerate(world.scene.bodies)
  ]
  truth = {
    "positions": positions,
    "velocities": velocities,
    "visibility": np.stack(visibility, axis=1),
    "masks": masks,
  }
  return WorldClip(video, fps, label.captions, label.attributes, truth, label.split, label.source)


def choose_specs(seed: int, indices: np.ndarray, weights: Sequence[float]) -> np.ndarray:
  """Place of the film format of every index, drawn by weight; int64 in the shape of `indices`."""
  edges = np.cumsum(weights)
  draw = hashing.uniform(_SPEC_SALT, seed, indices) * edges[-1]
  return np.minimum(np.searchsorted(edges, draw, side="right"), len(edges) - 1)


def world_clips(
  seed: int,
  count: int,
  *,
  specs: Sequence[Mapping],
  families: Families,
  held_out_fraction: float,
  styles: Sequence[str] = backgrounds.STYLES,
  sizes: Sequence[str] = tuple(palette.SIZES),
) -> Iterator[WorldClip]:
  """Clips 0..count-1 of a seed in mixed formats.

  Args:
    specs: dicts of frames, height, width, fps and weight.
    styles: of backgrounds, equally often.
    sizes: of objects, equally often; where a large one has no room, it is small all the same.
  Raises:
    BadInput: at once, a format or share that cannot be; with the first clip, an unknown word.
  """
  for spec in specs:
    _check_film(spec["frames"], spec["height"], spec["width"], spec["fps"])
  _check_fraction(held_out_fraction)
  chosen = choose_specs(seed, np.arange(count), [spec["weight"] for spec in specs])

  def generate(index: int) -> WorldClip:
    film = {name: value for name, value in specs[chosen[index]].items() if name != "weight"}
    return make_clip(
      seed,
      index,
      **film,
      families=families,
      held_out_fraction=held_out_fraction,
      styles=styles,
      sizes=sizes,
    )

  return map(generate, range(count))
