"""Makes impossible copies of real clips: the same first and last things seen, and no such motion.

Each copy has the clip's frames, size and objects. A judge that sees displacement instead of motion
takes them for the clip; `judge` must not.
"""

from collections.abc import Callable

import numpy as np

from data_pipeline.errors import BadInput
from data_pipeline.worlds.physworld import WorldClip

_MARGIN = 2  # pixels round a mask that the antialiased edge may tint


def teleport(clip: WorldClip, rng: np.random.Generator) -> np.ndarray:
  """Stands as in the first frame, then stands as in the last one."""
  video = clip.video.copy()
  half = len(video) // 2
  video[:half], video[half:] = clip.video[0], clip.video[-1]
  return video


def dissolve(clip: WorldClip, rng: np.random.Generator) -> np.ndarray:
  """Fades from the first frame to the last one."""
  share = np.linspace(0, 1, len(clip.video))[:, None, None, None]
  first, last = clip.video[0].astype(float), clip.video[-1].astype(float)
  return (first + share * (last - first) + 0.5).astype(np.uint8)


def shuffle(clip: WorldClip, rng: np.random.Generator) -> np.ndarray:
  """Puts the frames between the first and the last one into another order."""
  return clip.video[[0, *_disarrange(np.arange(1, len(clip.video) - 1), rng), len(clip.video) - 1]]


def shuffle_all(clip: WorldClip, rng: np.random.Generator) -> np.ndarray:
  """Puts all frames into another order, which is not that of time run backwards."""
  return clip.video[_disarrange(np.arange(len(clip.video)), rng)]


def freeze(clip: WorldClip, rng: np.random.Generator) -> np.ndarray:
  """Moves for half of the time, then stands still."""
  video = clip.video.copy()
  video[len(video) // 2 :] = clip.video[len(video) // 2]
  return video


def stand(clip: WorldClip, rng: np.random.Generator) -> np.ndarray:
  """Shows the first frame throughout."""
  return clip.video[:1].repeat(len(clip.video), axis=0)


def vanish(clip: WorldClip, rng: np.random.Generator) -> np.ndarray:
  """Moves for half of the time, then shows the scene without its objects."""
  video = clip.video.copy()
  half = len(video) // 2
  video[half:] = clear(clip)[None]
  return video


def reverse(clip: WorldClip, rng: np.random.Generator) -> np.ndarray:
  """Runs backwards: possible where motion is elastic, and in the opposite direction."""
  return clip.video[::-1]


Spoiler = Callable[[WorldClip, np.random.Generator], np.ndarray]
IMPOSSIBLE: dict[str, Spoiler] = {
  one.__name__: one for one in (teleport, dissolve, shuffle, shuffle_all, freeze, stand, vanish)
}


def spoil(name: str, clip: WorldClip, seed: int) -> np.ndarray:
  """Makes the impossible copy called `name`.

  Args:
    name: a key of `IMPOSSIBLE`.
    clip: of at least 5 frames, so that there is an order to break.
    seed: of the order of shuffled frames.
  Returns:
    uint8, in the shape of `clip.video`.
  Raises:
    BadInput: an unknown name, or too few frames.
  """
  if name not in IMPOSSIBLE:
    raise BadInput(f"impossible: name={name!r} is not one of {', '.join(IMPOSSIBLE)}. Correct it.")
  if len(clip.video) < 5:
    raise BadInput(
      f"impossible: the clip has frames={len(clip.video)}, fewer than 5. Take a longer one."
    )
  return IMPOSSIBLE[name](clip, np.random.default_rng(seed))


def clear(clip: WorldClip) -> np.ndarray:
  """The scene without objects, uint8 [H, W, 3]: each pixel as it is when nothing covers it.

  A pixel that is covered in all frames takes the value of the nearest one in its row that is not.
  """
  covered = clip.truth["masks"] > 0
  for axis in (1, 2):
    for _ in range(_MARGIN):
      before, after = (np.roll(covered, step, axis) for step in (1, -1))
      covered = covered | before | after
  tint = np.ptp(clip.video, axis=-1).astype(int)  # scenes are grey
  greyest = np.where(covered, 256, tint).argmin(0)
  scene = np.take_along_axis(clip.video, greyest[None, :, :, None], axis=0)[0].copy()
  known = np.logical_not(np.all(covered, axis=0))
  for row, seen in zip(scene, np.asarray(known), strict=True):
    places = np.flatnonzero(seen)
    if len(places):
      hidden = np.flatnonzero(~seen)
      row[hidden] = row[places[abs(hidden[:, None] - places).argmin(1)]]
  return scene


def _disarrange(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Another order of `places`, neither theirs nor the reverse."""
  while True:
    order = rng.permutation(places)
    if not any(np.array_equal(order, same) for same in (places, places[::-1])):
      return order
