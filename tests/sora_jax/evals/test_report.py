"""The page is read back by an HTML parser, the plot by PIL."""

from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import BadInput
from sora_jax.evals import report

SCORE = {
  "score": 0.9062,
  "interval": [0.83, 0.95],
  "chance": 0.1667,
  "p_value": 1.234e-33,
  "ceiling": 0.99,
  "held_out": 0.84,
}
METRICS = {
  "adherence": {"colour": SCORE, "shape": SCORE},
  "seconds": {"total": 571.25, "install": 58},
  "samples": 96,
  "hardware": "<2 cores> & a fan",
}
CURVES = {
  "VAE/training": (range(200), np.linspace(2, 1, 200)),
  "DiT/training": ([1, 2], [3.0, 2.0]),
  "DiT/held out": ([2], [2.5]),
}


def sample(number, **changes):
  name = f"samples/{number}"
  base = {"file": f"{name}.mp4", "poster": f"{name}.png", "caption": f"a red disc {number}"}
  return {**base, "judged": {"colour": True, "shape": False, "direction": None}, **changes}


def write(folder, **changes):
  given = {"title": "Demo", "summary": "Two cores.", "metrics": METRICS, "curves": CURVES}
  return report.write_report(folder, **{**given, "samples": [sample(0), sample(1)], **changes})


class Page(HTMLParser):
  """Every tag with its attributes, and the text between tags."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.texts = [], []
    self.feed(path.read_text(encoding="utf-8"))

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.texts.append(data)

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def test_page_shows_each_sample_beside_its_caption_and_verdict(tmp_path):
  page = Page(write(tmp_path))
  videos = page.all("video")
  assert [v["src"] for v in videos] == ["samples/0.mp4", "samples/1.mp4"]
  assert [v["poster"] for v in videos] == ["samples/0.png", "samples/1.png"]
  assert all({"loop", "muted", "autoplay", "playsinline"} <= set(v) for v in videos)
  assert page.texts.count("a red disc 0") == 1
  for verdict in ("✓ colour", "✗ shape", "– direction"):
    assert page.texts.count(verdict) == 2


def test_page_shows_every_number(tmp_path):
  texts = Page(write(tmp_path)).texts
  for text in ("90.6 %", "83.0 % – 95.0 %", "16.7 %", "1.2e-33", "99.0 %", "84.0 %"):
    assert texts.count(text) + texts.count(f"{text} ") == 2, text  # colour and shape
  assert texts[texts.index("seconds · total") + 1] == "571.2"
  assert texts[texts.index("samples") + 1] == "96"


def test_bars_stand_where_the_numbers_say(tmp_path):
  fill, interval, *marks = [i["style"] for i in Page(write(tmp_path)).all("i")][:5]
  assert (fill, interval) == ("width:90.6%", "left:83.0%;width:12.0%")
  assert marks == ["left:16.7%", "left:99.0%", "left:84.0%"]


def test_page_needs_no_network_and_no_script(tmp_path):
  page = Page(write(tmp_path))
  links = [a[k] for _, a in page.tags for k in ("src", "href", "poster") if k in a]
  assert links and not [link for link in links if ":" in link or link.startswith("/")]
  assert not page.all("script") and not page.all("link")


def test_all_text_is_escaped(tmp_path):
  bad = '<script>alert("1")</script> & $title'
  page = Page(
    write(
      tmp_path,
      title=bad,
      summary=bad,
      metrics={**METRICS, bad: bad, "adherence": {bad: {**SCORE, bad: 1}}},
      samples=[sample(0, caption=bad, file=f'{bad}"', judged={bad: True}, group=bad)],
    )
  )
  assert not page.all("script")
  assert page.texts.count(bad) >= 6
  assert page.all("video")[0]["src"] == f'{bad}"'


def test_groups_have_headings_in_order(tmp_path):
  samples = [sample(0, group="seen"), sample(1, group="new"), sample(2, group="seen")]
  page = Page(write(tmp_path, samples=samples))
  names = ["seen", "a red disc 0", "a red disc 2", "new", "a red disc 1"]
  assert [text for text in page.texts if text in names] == names


def test_plot_has_a_panel_for_each_model(tmp_path):
  write(tmp_path)
  with Image.open(tmp_path / "loss.png") as image:
    width, height = image.size
  assert width == pytest.approx(2 * 5.4 * 130, abs=2) and height == pytest.approx(3.6 * 130, abs=2)
  first = (tmp_path / "loss.png").read_bytes()
  write(tmp_path)
  assert (tmp_path / "loss.png").read_bytes() == first


def test_plot_refuses_uneven_curves(tmp_path):
  with pytest.raises(ValueError, match="DiT/training has 2 x for 1 y"):
    report.plot_curves(tmp_path / "loss.png", {"DiT/training": ([1, 2], [1.0])})
  assert not list(tmp_path.iterdir())


def test_running_mean_of_a_line_is_the_line():
  x = np.arange(100.0)
  means = report.running_mean(x, 3 * x + 1, 7)
  assert means[0].size == 94
  assert np.allclose(means[1], 3 * means[0] + 1, rtol=1e-12)


def test_folder_that_is_not_there_is_bad_input(tmp_path):
  with pytest.raises(BadInput, match="no folder to go to"):
    write(tmp_path / "none")
