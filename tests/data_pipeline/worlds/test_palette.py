"""Geometry of the shapes against painting them on a fine grid."""

import colorsys
import itertools

import numpy as np
import pytest

from data_pipeline.worlds import palette

LINE = np.linspace(-0.5, 0.5, 1001)
STEP = LINE[1] - LINE[0]
KINDS = list(itertools.product(palette.SHAPES, palette.SIZES.values()))


def paint(shape, radius, angle=0.0):
  return palette.signed_distance(shape, LINE[None], LINE[:, None], radius, angle) <= 0


@pytest.mark.parametrize("shape, radius", KINDS)
@pytest.mark.parametrize("angle", [0.0, 0.4, -0.3])
def test_area_centroid_and_reach(shape, radius, angle):
  painted = paint(shape, radius, angle)
  y, x = np.nonzero(painted)
  assert painted.sum() * STEP**2 == pytest.approx(palette.area(shape, radius), rel=0.01)
  np.testing.assert_allclose([LINE[x].mean(), LINE[y].mean()], 0, atol=0.002)
  sides = [-LINE[x].min(), LINE[x].max(), -LINE[y].min(), LINE[y].max()]
  np.testing.assert_allclose(palette.reach(shape, radius, angle), sides, atol=2 * STEP)
  assert palette.radius_of_area(shape, palette.area(shape, radius)) == pytest.approx(radius)


@pytest.mark.parametrize("shape, radius", KINDS)
def test_foot_is_the_reach_downwards(shape, radius):
  assert palette.foot(shape, radius) == pytest.approx(palette.reach(shape, radius, 0.0)[3])


@pytest.mark.parametrize("first, second", list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize("horizontal", [True, False])
def test_shapes_touch_at_the_contact_distance(first, second, horizontal):
  distance = palette.contact_distance(first, second, horizontal)
  one, other = (paint(*k) if horizontal else paint(*k).T for k in (first, second))

  def overlap(at):
    shift = round(at / STEP)
    return (one[:, shift:] & other[:, :-shift]).any()

  assert not overlap(distance + 3 * STEP)
  assert overlap(distance - 3 * STEP)


def test_hues_lie_apart():
  hues = [360 * colorsys.rgb_to_hsv(*(c / 255 for c in rgb))[0] for rgb in palette.COLOURS.values()]
  gaps = [min(abs(a - b), 360 - abs(a - b)) for a, b in itertools.combinations(hues, 2)]
  assert min(gaps) >= 26, dict(zip(palette.COLOURS, hues, strict=True))
  assert len(palette.COLOURS) == 8
