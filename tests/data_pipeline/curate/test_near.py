import itertools
import random

import cv2
import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import shifted, texture
from PIL import Image

from data_pipeline.curate import near
from data_pipeline.curate.near import Print


def clip(seed, count=5, shape=(270, 480)):
  picture = texture(seed, 400, 900)
  return [shifted(picture, 12.0 * i, 0, shape) for i in range(count)]


def jpeg(frame, quality=25):
  return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def brighter(frame):
  return np.clip(frame.astype(np.float32) * 1.15 + 20, 0, 255).astype(np.uint8)


def noisy(frame):
  noise = np.random.default_rng(1).normal(0, 8, frame.shape)
  return np.clip(frame + noise, 0, 255).astype(np.uint8)


CHANGES = {
  "compressed": jpeg,
  "smaller": lambda frame: cv2.resize(frame, (200, 113), interpolation=cv2.INTER_AREA),
  "stretched": lambda frame: cv2.resize(frame, (480, 360), interpolation=cv2.INTER_CUBIC),
  "brighter": brighter,
  "noisy": noisy,
  "grey": lambda frame: np.asarray(Image.fromarray(frame).convert("L").convert("RGB")),
  "trimmed": lambda frame: frame[4:-4, 6:-6],
  "all": lambda frame: jpeg(brighter(cv2.resize(frame, (200, 113))), 40),
}


def hashes(frames):
  return tuple(near.hash_frame(frame) for frame in frames)


def made(name, frames, source="", size=(10, 10, 10)):
  return Print(name, source or name, hashes(frames), *size)


@pytest.mark.parametrize("seed", range(10))
def test_the_hash_of_a_small_grey_picture_is_that_of_imagehash(seed):
  luma = np.random.default_rng(seed).integers(0, 256, (32, 32)).astype(np.uint8)
  wanted = int(str(imagehash.phash(Image.fromarray(luma))), 16)
  assert near.hash_frame(np.repeat(luma[..., None], 3, 2)) == wanted


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_of_a_picture_is_nearly_that_of_imagehash(seed):
  frame = clip(seed, 1)[0]  # the filters that reduce the picture differ a little
  wanted = int(str(imagehash.phash(Image.fromarray(frame))), 16)
  assert (near.hash_frame(frame) ^ wanted).bit_count() <= 2


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(4))
def test_copies_are_found_and_share_a_key(change, seed):
  frames = clip(seed)
  copy = [CHANGES[change](frame) for frame in frames]
  a, b = made("a", frames), made("b", copy)
  assert near.distance(a.hashes, b.hashes) <= 6
  assert set(near.keys(a.hashes)) & set(near.keys(b.hashes))
  assert list(near.find_pairs([b, a], max_distance=6, within_source=False)) == [("a", "b")]


def test_different_clips_are_far_apart():
  prints = [hashes(clip(seed)) for seed in range(12)]
  distances = [near.distance(a, b) for a, b in itertools.combinations(prints, 2)]
  assert min(distances) > 15


def test_clips_at_exactly_the_distance_are_near():
  prints = [Print("a", "a", (0,), 9, 1, 1), Print("b", "b", (0b111,), 1, 1, 1)]
  assert near.distance(*(p.hashes for p in prints)) == 3
  assert list(near.find_pairs(prints, max_distance=3, within_source=True)) == [("a", "b")]
  assert list(near.find_pairs(prints, max_distance=2.99, within_source=True)) == []


def test_one_common_frame_does_not_make_a_copy():
  a, b = clip(0), clip(1)
  b[2] = a[2]
  assert near.distance(hashes(a), hashes(b)) > 10


def test_flat_frames_have_no_hash_and_their_clips_no_copies():
  grey = np.full((90, 160, 3), 128, np.uint8)
  assert near.hash_frame(grey) is None
  assert near.hash_frame(noisy(grey)) is None
  flat = [Print(name, name, (), 1, 1, 1) for name in "ab"]
  assert near.keys(()) == []
  assert list(near.find_pairs(flat, max_distance=64 - 1e-9, within_source=False)) == []


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=3))
def test_hashes_that_differ_by_three_bits_always_share_a_key(value, flipped):
  other = value
  for bit in flipped:
    other ^= 1 << bit
  assert set(near.keys([value])) & set(near.keys([other]))


def test_keys_are_few_and_say_where_they_are_from():
  keys = near.keys([0])
  assert len(keys) == 10 and max(keys) < 2**32
  rng = random.Random(0)
  far = [near.keys([rng.getrandbits(64)]) for _ in range(500)]
  shared = sum(bool(set(a) & set(b)) for a, b in itertools.combinations(far, 2))
  assert shared <= 10  # of 124,750 pairs: 2**-25 for each of ten keys, none as a rule


def test_windows_of_one_source_are_compared_only_when_asked():
  a, b = made("a", clip(0), "film"), made("b", clip(0), "film")
  assert not list(near.find_pairs([a, b], max_distance=6, within_source=False))
  assert list(near.find_pairs([a, b], max_distance=6, within_source=True)) == [("a", "b")]


def test_the_better_clip_is_larger_then_longer_then_less_compressed_then_first():
  sizes = [(200, 5, 5), (100, 9, 5), (100, 5, 9), (100, 5, 5), (100, 5, 5)]
  prints = [Print(name, name, (0,), *size) for name, size in zip("abcde", sizes, strict=True)]
  random.Random(0).shuffle(prints)
  assert "".join(p.id for p in sorted(prints, key=lambda p: p.rank)) == "abcde"


def test_of_copies_the_best_stays_and_of_a_chain_every_second():
  prints = [Print(name, name, (0,), 100 - i, 1, 1) for i, name in enumerate("abcde")]
  everyone = list(itertools.combinations("abcde", 2))
  assert near.resolve(everyone, prints) == {name: "a" for name in "bcde"}
  chain = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
  assert near.resolve(chain, prints) == {"b": "a", "d": "c"}
  assert near.resolve([], prints) == {}


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20), st.randoms())
def test_what_goes_depends_on_no_order_and_is_near_to_what_stays(edges, rng):
  prints = [Print(str(i), str(i), (0,), i % 4, i % 3, 1) for i in range(10)]
  pairs = [(str(a), str(b)) for a, b in edges if a != b]
  gone = near.resolve(pairs, prints)
  shuffled = [pair[:: rng.choice((1, -1))] for pair in pairs] * 2
  rng.shuffle(shuffled)
  rng.shuffle(prints)
  assert near.resolve(shuffled, prints) == gone
  ranks = {p.id: p.rank for p in prints}
  for name, other in gone.items():
    assert other not in gone and ranks[other] < ranks[name]
    assert {(name, other), (other, name)} & set(pairs)
  stay = {p.id for p in prints} - set(gone)
  assert not any(a in stay and b in stay for a, b in pairs)


def test_a_large_group_costs_no_square():
  rng = random.Random(0)
  group = [Print(f"{i:05}", f"{i}", (rng.getrandbits(2),), 1, 1, 1) for i in range(2000)]
  pairs = list(near.find_pairs(group, max_distance=6, within_source=False))
  gone = near.resolve(pairs, group)
  assert len(group) - len(gone) == 1 and len(pairs) < 64 * 2000


def test_a_print_is_read_from_the_summary_of_a_clip():
  facts = dict(id="x:0-9", source="x", phash=["00000000000000ff", "ffffffffffffffff"])
  facts |= dict(width=8, height=4, frames=9, bytes=7, more="left alone")
  assert near.read_print(facts) == Print("x:0-9", "x", (255, 2**64 - 1), 32, 9, 7)
