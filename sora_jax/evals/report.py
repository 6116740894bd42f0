"""The report of a run: one page that opens from disk, without a server or a network.

It shows scores with their interval, chance and ceiling, samples beside their captions, loss curves,
and every number. All text is escaped; videos and pictures are files beside the page.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sora_jax.generate.media import replacing

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
Metrics = Mapping[str, Any]

MARKS = {True: ("yes", "✓"), False: ("no", "✗"), None: ("open", "–")}
SHARES = {"score", "chance", "ceiling", "held_out", "interval"}
SHARES |= {f"held_out_{name}" for name in ("interval", "chance", "ceiling")}
SMOOTHED_FROM = 100  # points; longer lines are drawn faintly under their running mean


def write_report(
  folder: str | Path,
  *,
  title: str,
  summary: str,
  metrics: Metrics,
  samples: Sequence[Mapping[str, Any]],
  curves: Curves,
) -> Path:
  """Writes `index.html` and `loss.png` into a folder that exists.

  Args:
    folder: where the page goes; the files of the samples are under it.
    title: heading of the page.
    summary: one or two sentences under the heading.
    metrics: as in metrics.json, nested as it likes: all of it is shown. `adherence` is drawn:
      attribute -> `score`, `chance`, `ceiling`, `held_out` in [0, 1] and, where they were
      measured, `interval` [low, high], `p_value`, `held_out_interval`, `held_out_p_value`.
    samples: each with `file` (MP4) and `poster` (PNG), both relative to the folder, `caption`,
      `judged` (attribute -> True, False, or None where it could not be judged), and optionally
      `reasons` (attribute -> what is seen instead) and `group`: a heading for the samples that
      share it.
    curves: "panel/line" -> (x, y), plotted as `plot_curves` does.
  Returns:
    Path of the page.
  Raises:
    BadInput: the folder cannot be written.
  """
  folder = Path(folder)
  plot_curves(folder / "loss.png", curves)
  page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
  with replacing(folder / "index.html") as temporary:
    temporary.write_text(
      page.substitute(
        title=html.escape(title),
        summary=html.escape(summary),
        scores="\n".join(score_card(*item) for item in metrics["adherence"].items()),
        samples="\n".join(sample_groups(samples)),
        numbers="\n".join(number_rows({k: v for k, v in metrics.items() if k != "adherence"})),
      ),
      encoding="utf-8",
    )
  return folder / "index.html"


def score_card(name: str, score: Metrics) -> str:
  """Draws one attribute: its score as a bar from 0 to 1, and the numbers that put it in place."""
  bar = [f'<i class="fill" style="width:{percent(score["score"])}"></i>']
  if "interval" in score:
    low, high = score["interval"]
    bar.append(f'<i class="range" style="left:{percent(low)};width:{percent(high - low)}"></i>')
  bar += [f'<i class="mark" style="left:{percent(score[k])}"></i>' for k in ("chance", "ceiling")]
  bar.append(f'<i class="held" style="left:{percent(score["held_out"])}"></i>')
  facts = "".join(
    f"<dt{' class=held' if key == 'held_out' else ''}>{html.escape(key.replace('_', ' '))}</dt>"
    f"<dd>{html.escape(show(key, value))}</dd>"
    for key, value in score.items()
    if key != "score"
  )
  return (
    f'<div class="card score"><div class="name">{html.escape(name)}</div>'
    f'<div class="value">{show("score", score["score"])} <small>of samples</small></div>'
    f'<div class="bar">{"".join(bar)}</div><dl>{facts}</dl></div>'
  )


def percent(share: float) -> str:
  return f"{100 * share:.1f}%"


def sample_groups(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """Yields the samples as figures, those of one `group` under its heading, in order."""
  groups: dict[str | None, list[str]] = {}
  for sample in samples:
    groups.setdefault(sample.get("group"), []).append(figure(sample))
  for name, figures in groups.items():
    if name is not None:
      yield f"<h3>{html.escape(name)}</h3>"
    yield '<div class="samples">' + "\n".join(figures) + "</div>"


def figure(sample: Mapping[str, Any]) -> str:
  reasons = {name: f": {why}" for name, why in sample.get("reasons", {}).items()}
  ticks = "".join(
    f'<span class="{MARKS[right][0]}">{MARKS[right][1]} '
    f"{html.escape(name + reasons.get(name, ''))}</span>"
    for name, right in sample["judged"].items()
  )
  return (
    f'<figure class="card"><video src="{html.escape(sample["file"])}"'
    f' poster="{html.escape(sample["poster"])}" loop muted autoplay playsinline></video>'
    f'<figcaption>{html.escape(sample["caption"])}<div class="judged">{ticks}</div>'
    "</figcaption></figure>"
  )


def number_rows(metrics: Metrics, path: tuple[str, ...] = ()) -> Iterator[str]:
  """Yields a table row for every number, its path in front."""
  for key, value in metrics.items():
    where = (*path, str(key))
    if isinstance(value, Mapping):
      yield from number_rows(value, where)
    else:
      name = " · ".join(where).replace("_", " ")
      yield f"<tr><td>{html.escape(name)}</td><td>{html.escape(show(where[-1], value))}</td></tr>"


def show(key: str, value: Any) -> str:
  """Formats a number for people: shares in percent, small chances as powers of ten."""
  if isinstance(value, (list, tuple)):
    return " – ".join(show(key, part) for part in value)
  if isinstance(value, (bool, str)) or value is None:
    return str(value)
  if key in SHARES:
    return f"{100 * value:.1f} %"
  if key.endswith("p_value"):
    return f"{value:.1e}"
  return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def plot_curves(path: str | Path, curves: Curves) -> None:
  """Plots curves into a PNG, one panel beside the other.

  Args:
    path: PNG to write.
    curves: "panel/line" -> (x, y) of equal lengths. Lines of one panel share its axes; the y axis
      of a loss is logarithmic where all of its values are positive.
  Raises:
    BadInput: `path` cannot be written.
  """
  panels: dict[str, dict[str, Any]] = {}
  for name, curve in curves.items():
    panel, _, line = name.partition("/")
    panels.setdefault(panel, {})[line or panel] = curve
  sheet = Figure(figsize=(5.4 * max(1, len(panels)), 3.6), dpi=130, layout="constrained")
  for number, (panel, lines) in enumerate(panels.items(), start=1):
    draw_panel(sheet.add_subplot(1, len(panels), number), panel, lines)
  with replacing(path) as temporary:
    sheet.savefig(temporary, format="png", metadata={"Software": None})


def draw_panel(axes: Axes, title: str, lines: Curves) -> None:
  for number, (name, (x, y)) in enumerate(lines.items()):
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape:
      raise ValueError(f"plot_curves: {title}/{name} has {len(x)} x for {len(y)} y.")
    colour, few = f"C{number}", len(x) < 30
    if len(x) >= SMOOTHED_FROM:
      axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
      x, y = running_mean(x, y, len(x) // 50)
    axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if few else None, ms=3, label=name)
  if "loss" in title and all(np.all(np.asarray(y) > 0) for _, y in lines.values()):
    axes.set_yscale("log")
  axes.set(title=title, xlabel="step")
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(alpha=0.25, which="both", linewidth=0.5)
  axes.legend(frameon=False, fontsize=8)


def running_mean(x: np.ndarray, y: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Means of `width` neighbours, at the mean of their places."""
  kernel = np.full(width, 1 / width)
  return np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")
