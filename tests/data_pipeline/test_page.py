"""Histograms count everything once; pages stand alone and show hostile text as text."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline import page

NUMBERS = st.floats(-1e12, 1e12).filter(lambda v: v == 0 or abs(v) > 1e-9)


@given(st.lists(NUMBERS, min_size=1, max_size=60))
def test_every_value_is_counted_once(values):
  counted = page.histogram(np.array(values))
  assert sum(counted.counts) == len(values)
  assert len(counted.edges) == len(counted.counts) + 1
  slack = 1e-5 * max(map(abs, values))
  assert counted.edges[0] <= min(values) + slack and counted.edges[-1] >= max(values) - slack
  assert len(counted.counts) <= 22 or counted.edges[-1] > 40 * counted.edges[0] > 0


def test_edges_are_round():
  linear = page.histogram(np.linspace(2, 20, 181))
  assert linear.edges == list(range(2, 21)) and linear.counts == [10] * 17 + [11]
  assert page.histogram(np.full(7, 2.5)) == ([2.5, 2.5], [7])
  assert page.histogram(np.array([])) == ([], [])


def test_bins_grow_where_few_values_are_large():
  counted = page.histogram(np.array([256] * 100 + [30_000, 50_000 - 1]))
  assert counted.edges == [200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000]
  assert counted.counts == [100, 0, 0, 0, 0, 0, 2]


def test_whole_numbers_have_bins_of_their_own():
  assert page.histogram(np.array([0, 2, 2, 1, 2])) == ([0, 1, 2, 3], [1, 1, 3])
  assert page.histogram(np.array([4, 4])) == ([4, 5], [2])


class Reader(HTMLParser):
  """Collects tags, addresses and text; complains about tags that do not match."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.addresses, self.text, self._open = [], [], "", []
    self.feed(text)
    self.close()
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.addresses += [v for k, v in attrs if k in ("src", "href")]
    if tag not in ("img", "meta"):
      self._open.append(tag)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.text += data


HOSTILE = "</figure><script>alert(1)</script>\"'&\ud800"


@pytest.fixture
def written(tmp_path):
  frames = [np.full((200, 60, 3), 80 * i, np.uint8) for i in range(3)]
  sections = [
    page.draw_section("S", [page.draw_table({HOSTILE: HOSTILE})], least=0),
    page.draw_section(
      HOSTILE,
      [
        page.draw_histogram(HOSTILE, page.histogram(np.arange(5)), HOSTILE),
        page.draw_histogram("none", page.histogram(np.array([]))),
        page.draw_bars("many", {f"{i}{HOSTILE}": 30 - i for i in range(30)}),
        page.draw_clip(frames, HOSTILE, HOSTILE),
      ],
    ),
  ]
  page.write_page(tmp_path / "page.html", HOSTILE, HOSTILE, sections)
  return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_text_stays_text_and_nothing_is_loaded(written, tmp_path):
  reader = Reader(written)
  assert "script" not in reader.tags and reader.text.count("alert(1)") == 30 - 10 + 9 + 1
  assert all(address.startswith("data:image/jpeg;base64,") for address in reader.addresses)
  assert "http" not in written and "url(" not in written and "@import" not in written
  assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_bars_show_their_share_and_what_is_left_out(written):
  widths = [float(w) for w in re.findall(r"width:([\d.]+)%", written)]
  assert len(widths) == 20 and widths[0] == 100 and widths[-1] == pytest.approx(100 * 11 / 30, 0.1)
  assert "and 10 more" in written


def test_a_strip_holds_its_frames_in_order(written):
  (data,) = re.findall(r'base64,([^"]+)"', written)
  image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
  assert image.shape == (120, 108, 3)
  assert [int(image[60, x].mean().round()) for x in (18, 54, 90)] == pytest.approx(
    [0, 80, 160], abs=3
  )
