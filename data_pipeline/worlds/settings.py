"""The settings of a generated world: `config.world`, and what each may be."""

from collections.abc import Mapping

from data_pipeline.errors import BadInput
from data_pipeline.kinds import Kind, check_settings, named, one_of, real, row, several, whole
from data_pipeline.worlds import backgrounds, palette
from data_pipeline.worlds.physworld import FAMILIES, MIN_SIDE

MAX_SIDE = 2**13  # pixels
# frames, width, height, frames a second, weight
FORMAT = row(
  whole(1, 2**20), whole(MIN_SIDE, MAX_SIDE), whole(MIN_SIDE, MAX_SIDE),
  real(0.0, 1000.0, above=True), real(0.0, 1e9),
)  # fmt: skip
WORLD: dict[str, Kind] = {
  "world.name": one_of("physworld"),
  "world.seed": whole(0, 2**63 - 1),
  "world.clips": whole(1, 2**30),
  "world.formats": several(FORMAT, least=1),
  "world.held_out_fraction": real(0.0, 1.0),
  "world.backgrounds": several(one_of(*backgrounds.STYLES), least=1),
  "world.sizes": several(one_of(*palette.SIZES), least=1),
  "world.families": named(real(0.0, 1e9), FAMILIES),
}


def check_world(world: Mapping) -> None:
  """Compares a world's settings with `WORLD`.

  Raises:
    BadInput: one is missing, unknown, or of another kind; no format or no family has any weight.
  """
  check_settings({"world": world}, WORLD, "config")
  weights = {
    "world.families": list(world["families"].values()),
    "world.formats": [one[-1] for one in world["formats"]],
  }
  for name, shares in weights.items():
    if not sum(shares) > 0:
      raise BadInput(f"config: {name} gives nothing a weight above 0. Give one of them some.")
