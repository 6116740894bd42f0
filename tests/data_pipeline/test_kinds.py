"""Kinds of values at their edges, and the three ways in which a config can differ from a table."""

import math

import numpy as np
import pytest

from data_pipeline.errors import BadInput
from data_pipeline.kinds import (
  FLAG,
  TEXT,
  WORD,
  check_settings,
  compare,
  named,
  one_of,
  real,
  row,
  several,
  whole,
)

TABLE = {"a.rows": whole(1, 8), "a.rate": real(0.0, 1.0), "name": one_of("x", "y")}


@pytest.mark.parametrize(
  "kind, good, bad",
  [
    (whole(1, 8), (1, 8), (0, 9, 1.0, np.float64(1), True, None, "1", 10**30, math.nan)),
    (real(0.0, 1.0), (0, 0.0, 1, 1.0, 0.5), (-1e-9, 1.1, math.nan, math.inf, False, "0", None)),
    (real(0.0, 1.0), (np.float64(0.5),), (np.float64(2), np.float64("nan"), np.array([0.5]))),
    (real(0.0, above=True), (1e-30, 5, 1e300), (0, 0.0, -1, math.inf, 10**301)),
    (FLAG, (True, False), (0, 1, "True", None)),
    (TEXT, ("", "x"), (None, 0, ())),
    (WORD, ("x",), ("", "  ", None, 0)),
    (one_of("x", "y"), ("x",), ("", "z", None, (), {}, 0)),
    (row(whole(), real()), ((1, 0.5), [0, 2]), ((), (1,), (1, 2, 3), (0.5, 1), 3, "ab", None)),
    (several(whole()), ((), (1,), [1, 2]), ((1.5,), ((),), "12", None, {})),
    (several(TEXT, least=1), (("a",),), ((), (1,), "a")),
    (named(real(), ("p", "q")), ({}, {"p": 1}), ({"r": 1}, {"p": -1}, {"p": None}, (), None)),
  ],
)
def test_what_fits(kind, good, bad):
  assert all(kind.fits(value) for value in good)
  assert not [value for value in bad if kind.fits(value)]


def test_says_all_that_is_missing_then_unknown_then_wrong():
  config = {"a": {"rows": 0, "rats": 1}, "b": 2}
  assert compare(config, TABLE) == (
    ["a.rate", "name"],
    ["a.rats", "b"],
    ["a.rows=0 must be a whole number in [1, 8]"],
  )
  with pytest.raises(BadInput) as caught:
    check_settings(config, TABLE, "config", "mine.py", before={"name": "x"})
  assert str(caught.value) == (
    "config: a.rate, name (as before: 'x') are missing (mine.py). Add what it lacks."
  )
  config = {"a": {"rows": 0, "rate": 0.5, "rats": 1}, "name": "z", "b": 2}
  with pytest.raises(BadInput, match=r"a.rats, b are no setting \(mine.py\). Did you mean a.rate?"):
    check_settings(config, TABLE, "config", "mine.py")
  del config["b"], config["a"]["rats"]
  with pytest.raises(BadInput, match="a.rows=0 must be .*; name='z' must be one of"):
    check_settings(config, TABLE, "config")
  check_settings({"a": {"rows": 1, "rate": 1}, "name": "x"}, TABLE, "config")


def test_a_group_that_is_none():
  with pytest.raises(BadInput, match="a=None must be a group of settings, such as a.rows"):
    check_settings({"a": None, "name": "x"}, TABLE, "config")
