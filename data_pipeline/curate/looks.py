"""Tells the parts of a video in which frames lie alike: of one size, pixel aspect and orientation.

Where these change within a stream (a broadcast that goes over to another programme, an adaptive
stream, a phone that is turned), frames of both sides fit no one picture without being squeezed.
"""

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from data_pipeline.curate.colours import Orientation
from data_pipeline.curate.types import Refused

_MOST_PARTS = 1000


class Look(NamedTuple):
  """A frame's stored width and height, its pixel aspect, and how it is set upright.

  A stream may tell the orientation at few frames only: None is that of the frames before.
  """

  width: int
  height: int
  pixel_aspect: Fraction
  orientation: Orientation | None

  @property
  def size(self) -> tuple[int, int]:
    """Width and height, upright."""
    return (self.orientation or Orientation()).size(self.width, self.height)

  def __str__(self) -> str:
    turns = self.orientation.turns if self.orientation else 0
    return f"{self.width}x{self.height}, pixels {self.pixel_aspect}, turned by {90 * turns} degrees"


Seen = tuple[Look, Any]  # a frame, and how it lies


def alike(shown: Iterable[Seen], size: tuple[int, int], start: int) -> Iterator[Seen]:
  """Passes frames from number `start` on, as long as they lie alike.

  Raises:
    Refused: "size_change", for the first frame that lies otherwise, or is not of a size.
  """
  first = None
  for number, (look, frame) in enumerate(shown, start):
    first = first or look
    if look != first or look.size != size:
      raise Refused("size_change", f"frame {number}: {look}; wanted {first}, {size}")
    yield look, frame


def parted(shown: Iterable[Seen]) -> Iterator[tuple[Look, Iterator[Seen]]]:
  """The parts in which frames lie alike, in order; each has to be read before the next.

  Raises:
    Refused: "size_change", after very many of them.
  """
  parts = itertools.groupby(shown, key=lambda seen: seen[0])
  for number, (look, frames) in enumerate(parts):
    if number == _MOST_PARTS:
      raise Refused("size_change", f"frames lie otherwise {_MOST_PARTS} times")
    yield look, frames
