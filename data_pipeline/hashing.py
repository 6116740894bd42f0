"""Counter-based hash: randomness as a pure function of named counters, the same on every platform.

The finaliser is splitmix64's (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators", OOPSLA, fig. 16; variant 13 of Stafford). Counters are absorbed one by one, so
`hash64(seed, epoch, i)` needs no state. No version of a library changes its values.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_G, _A, _B, _WORD = int(_GOLDEN), int(_M1), int(_M2), 2**64 - 1  # for Python's integers
SORTED = 2**16  # items that are permuted by sorting their hashes
_ROUNDS = 8


def _mix(z: np.ndarray) -> np.ndarray:
  z = (z ^ (z >> np.uint64(30))) * _M1
  z = (z ^ (z >> np.uint64(27))) * _M2
  return z ^ (z >> np.uint64(31))


def hash64(*counters) -> np.ndarray:
  """Hashes counters, broadcast against each other, to uniform 64-bit words.

  Args:
    *counters: integers or integer arrays; negative ones wrap. Their order matters.
  Returns:
    uint64 of the broadcast shape.
  """
  state = np.asarray(np.uint64(0))
  with np.errstate(over="ignore"):
    for counter in counters:
      word = np.asarray(counter)
      is_unsigned = word.dtype.kind == "u"
      word = word.astype(np.uint64) if is_unsigned else word.astype(np.int64).view(np.uint64)
      state = _mix((state ^ word) * _M1 + _GOLDEN)
      state = _mix(state + _GOLDEN)
  return state


def uniform(*counters) -> np.ndarray:
  """float64 in [0, 1) with 53 random bits, one per broadcast counter."""
  return (hash64(*counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(size: int, *counters) -> np.ndarray:
  """A permutation of `range(size)`: int64, a pure function of the counters."""
  return np.argsort(hash64(*counters, np.arange(size)), kind="stable")


def permuted(size: int, start: int, stop: int, *counters) -> np.ndarray:
  """Items start .. stop-1 of a permutation of `range(size)`, without making the rest of it.

  Up to a size of 65,536 it is `permutation`; above, a Feistel network of eight rounds on the bits
  of the place, walked along its cycle until it falls below `size` (Black & Rogaway 2002, "Ciphers
  with arbitrary finite domains", CT-RSA, method 3): memory is that of the slice.

  Args:
    size: below 2**62.
    start, stop: with 0 <= start <= stop <= size.
    *counters: integers that name the permutation.
  Returns:
    int64 [stop - start].
  """
  if not 0 <= start <= stop <= size < 2**62:
    raise ValueError(f"permuted: start={start}, stop={stop} is no slice of size={size}.")
  if size <= SORTED:
    return permutation(size, *counters)[start:stop]
  places = np.arange(start, stop, dtype=np.uint64)
  places = _feistel(places, (size - 1).bit_length(), counters)
  outside = np.flatnonzero(places >= size)
  while outside.size:  # less than half of the domain lies outside
    moved = _feistel(places[outside], (size - 1).bit_length(), counters)
    places[outside] = moved
    outside = outside[moved >= size]
  return places.astype(np.int64)


def _feistel(places: np.ndarray, bits: int, counters: tuple) -> np.ndarray:
  """A bijection of `range(2**bits)`: each half is changed in turn by a hash of the other."""
  low_bits = np.uint64((bits + 1) // 2)
  low_mask, high_mask = np.uint64(2 ** ((bits + 1) // 2) - 1), np.uint64(2 ** (bits // 2) - 1)
  high, low = places >> low_bits, places & low_mask
  for turn in range(0, _ROUNDS, 2):
    high = high ^ (hash64(*counters, turn, low) & high_mask)
    low = low ^ (hash64(*counters, turn + 1, high) & low_mask)
  return (high << low_bits) | low


def hash_text(text: str) -> int:
  """64-bit hash of a string: stable across runs, machines and Python versions.

  It is `hash64` of the number of bytes, into which the bytes are absorbed, eight at a time. In
  Python's own integers: numpy takes ten times as long for a single number.
  """
  data = text.encode()
  state = _absorb(0, len(data))
  for start in range(0, len(data), 8):
    state = _absorb(_absorb(0, state), int.from_bytes(data[start : start + 8], "little"))
  return state


def _absorb(state: int, word: int) -> int:
  """One counter of `hash64`, as Python integers."""
  z = ((state ^ word) * _A + _G) & _WORD
  z = ((z ^ (z >> 30)) * _A) & _WORD
  z = ((z ^ (z >> 27)) * _B) & _WORD
  z = ((z ^ (z >> 31)) + _G) & _WORD
  z = ((z ^ (z >> 30)) * _A) & _WORD
  z = ((z ^ (z >> 27)) * _B) & _WORD
  return z ^ (z >> 31)
