"""Motion in one dimension against step-by-step integration and the conservation laws."""

import numpy as np
import pytest

from data_pipeline.worlds import motion


def test_bounce_between_agrees_with_small_steps():
  dt, place, speed, played = 1e-3, 0.3, -0.7, []
  for _ in range(6000):
    played.append(place)
    place += speed * dt
    if place > 0.9:
      place, speed = 1.8 - place, -speed
    if place < 0.2:
      place, speed = 0.4 - place, -speed
  exact, _ = motion.bounce_between(0.3, -0.7, 0.2, 0.9, np.arange(6000) * dt)
  np.testing.assert_allclose(exact, played, atol=1e-9)


@pytest.mark.parametrize("start, speed", [(0.2, 0.5), (0.9, -0.5)])
def test_bounce_between_leaves_the_wall_it_starts_at(start, speed):
  place, velocity = motion.bounce_between(start, speed, 0.2, 0.9, np.array([0.0, 0.1]))
  np.testing.assert_allclose(place, [start, start + 0.1 * speed])
  np.testing.assert_allclose(velocity, speed)
  assert motion.wall_hits(start, speed, 0.2, 0.9, 0.1) == 0


@pytest.mark.parametrize("speed", [0.7, -0.7, 0.05])
@pytest.mark.parametrize("seconds", [0.1, 0.9, 3.0, 17.3])
def test_wall_hits_count_the_turns(speed, seconds):
  time = np.linspace(0, seconds, 200_001)
  _, velocity = motion.bounce_between(0.3, speed, 0.2, 0.9, time)
  turns = int((np.diff(np.sign(velocity)) != 0).sum())
  assert motion.wall_hits(0.3, speed, 0.2, 0.9, seconds) == turns


def test_bounce_on_floor_falls_freely_and_turns_at_the_floor():
  height, gravity = 0.6, 1.7
  time = np.linspace(0, 20, 100_001)
  fallen, velocity = motion.bounce_on_floor(height, gravity, time)
  assert fallen[0] == 0 and fallen.max() == pytest.approx(height, abs=1e-4)
  np.testing.assert_allclose(velocity**2 / 2 - gravity * fallen, 0, atol=1e-12)
  turns = int((np.diff(velocity) < -0.5).sum())
  assert motion.floor_hits(height, gravity, 20.0) == turns > 10
  smooth = np.diff(velocity) > 0
  np.testing.assert_allclose(np.diff(velocity)[smooth] / np.diff(time)[smooth], gravity, atol=1e-6)


@pytest.fixture
def pair():
  return motion.Pair(
    start=(0.3, 0.9),
    speed=(0.5, -0.8),
    mass=(1.0, 2.5),
    low=(0.1, 0.2),
    high=(1.4, 1.3),
    contact=0.3,
  )


def test_pair_conserves_energy_for_ever_and_momentum_in_every_collision(pair):
  _, _, speed, kinds = pair.events(60.0)
  mass = np.array(pair.mass)
  energy = (mass * speed**2).sum(-1)
  np.testing.assert_allclose(energy, energy[0], rtol=1e-9)
  momentum = speed @ mass
  hits = [i for i, kind in enumerate(kinds) if kind == "collision"]
  assert len(hits) > 10
  for i in hits:
    assert momentum[i] == pytest.approx(momentum[i - 1], abs=1e-9)
    approach, part = np.diff(speed[i - 1]), np.diff(speed[i])
    assert part == pytest.approx(-approach)  # elastic: the relative speed turns round


def test_pair_never_overlaps_nor_leaves(pair):
  place, _ = pair.at(np.linspace(0, 60, 20_001))
  assert (place[:, 1] - place[:, 0]).min() >= pair.contact - 1e-9
  assert (place >= np.array(pair.low) - 1e-9).all() and (place <= np.array(pair.high) + 1e-9).all()


def test_pair_positions_integrate_their_velocities(pair):
  time = np.linspace(0, 10, 200_001)
  place, speed = pair.at(time)
  integrated = place[0] + np.cumsum(speed[:-1], axis=0) * (time[1] - time[0])
  np.testing.assert_allclose(place[1:], integrated, atol=5e-4)
