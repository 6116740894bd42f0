"""Which clips training may see.

The rule of held-out combinations: with the places of colour, shape and direction in `palette`'s
tables,

    colour + 3 shape + 2 direction = 0  (mod 8)

is never trained on, in any family and at any length: exactly one colour of eight for every shape
and direction, and so an eighth of all combinations, while each colour, shape and direction is
trained on with other partners.
"""

from data_pipeline.worlds import palette

TRAIN, HELD_OUT, HELD_OUT_COMBINATION = "train", "held_out", "held_out_combination"


def is_held_out(colour: str, shape: str, direction: str | None) -> bool:
  """Applies the rule; an object that rests has no direction and is never held out."""
  if direction is None:
    return False
  c = list(palette.COLOURS).index(colour)
  s = palette.SHAPES.index(shape)
  d = list(palette.DIRECTIONS).index(direction)
  return (c + 3 * s + 2 * d) % 8 == 0


def choose_split(
  looks: list[tuple[str, str, str | None]], unit: float, held_out_fraction: float
) -> str:
  """Split of a clip.

  Args:
    looks: (colour, shape, direction) of every object; one held-out combination holds out the clip.
    unit: the clip's uniform draw: below `held_out_fraction`, its source is held out.
  """
  if any(is_held_out(*look) for look in looks):
    return HELD_OUT_COMBINATION
  return HELD_OUT if unit < held_out_fraction else TRAIN
