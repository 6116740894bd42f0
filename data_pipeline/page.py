"""Pages that open from disk: histograms, contact sheets and tables in one HTML file.

Nothing is loaded from elsewhere, and all text is escaped: names and captions may hold anything.
"""

import base64
import html
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1c1c1f; --quiet: #6b6b73;
  --line: #e3e3e0; --bar: #2f6f5e; }
@media (prefers-color-scheme: dark) { :root { --page: #141416; --card: #1d1d20; --ink: #ececee;
  --quiet: #9a9aa3; --line: #2f2f34; --bar: #5fb59c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 3rem 1.5rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 2rem; } h2 { margin: 3rem 0 1rem; font-size: 1.2rem; }
p { margin: .4rem 0; color: var(--quiet); overflow-wrap: anywhere; }
.grid { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least)), 1fr)); }
figure { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; overflow: hidden; }
figure > b { display: block; margin-bottom: .6rem; font-weight: 600; }
figcaption, small { color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere; }
.columns { display: flex; align-items: flex-end; gap: 1px; height: 120px; }
.columns i { flex: 1; min-height: 1px; background: var(--bar); border-radius: 2px 2px 0 0; }
.axis { display: flex; justify-content: space-between; border-top: 1px solid var(--line); }
.rows { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15rem .7rem;
  align-items: center; font-size: .88rem; }
.rows i { height: 10px; min-width: 1px; background: var(--bar); border-radius: 3px; }
.rows span { max-width: 16rem; overflow: hidden; text-overflow: ellipsis; }
img { display: block; width: 100%; margin-bottom: .6rem; border-radius: 4px; background: #000; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; background: var(--card); }
td { padding: .35rem .9rem; border: 1px solid var(--line); overflow-wrap: anywhere; }
td:first-child { color: var(--quiet); white-space: nowrap; width: 1%; }
"""
_MOST_BARS = 20
_WIDE = 40.0  # largest value over the median from which bins grow with the value
_STEPS = (1, 2, 5)  # times a power of ten: widths of bins, and their edges where they grow


class Histogram(NamedTuple):
  """counts[i] values lie in edges[i] <= v < edges[i+1]; in the last bin, up to its edge.

  Equal values, unless whole, make one bin whose two edges are that value; no values make none.
  """

  edges: list[float]
  counts: list[int]


def histogram(values: np.ndarray) -> Histogram:
  """Counts values in bins with round edges: of equal width, or growing when few are very large.

  Args:
    values: finite numbers, of any shape. Whole ones (of an integer dtype) have whole edges, the
      last of which lies above them all.
  """
  is_whole = values.dtype.kind in "iu"
  data = np.asarray(values, np.float64).ravel()
  if not data.size:
    return Histogram([], [])
  low, high = float(data.min()), float(data.max()) + is_whole
  if low == high:
    return Histogram([low, high], [data.size])
  is_wide = low > 0 and high > _WIDE * float(np.median(data))
  edges = _growing_edges(low, high) if is_wide else _equal_edges(low, high, is_whole)
  counts, _ = np.histogram(np.clip(data, edges[0], edges[-1]), edges)
  return Histogram([float(f"{edge:.6g}") for edge in edges], counts.tolist())


def _equal_edges(low: float, high: float, is_whole: bool) -> np.ndarray:
  least = max((high - low) / _MOST_BARS, 1e-4 * max(abs(low), abs(high)), float(is_whole))
  step = _round_numbers(least)[0]
  first = np.floor(low / step + 1e-9)
  last = max(first + 1, np.ceil(high / step - 1e-9))
  return step * np.arange(first, last + 1)


def _growing_edges(low: float, high: float) -> np.ndarray:
  edges = np.array(_round_numbers(low / 5))
  return edges[np.searchsorted(edges, low, "right") - 1 : np.searchsorted(edges, high) + 1]


def _round_numbers(least: float) -> list[float]:
  """1, 2 and 5 times powers of ten, ascending from `least` on."""
  power = math.floor(math.log10(least))
  numbers = [k * 10.0**n for n in range(power, power + 40) for k in _STEPS]
  return [number for number in numbers if number >= least * (1 - 1e-9)]


def draw_histogram(title: str, counted: Histogram, unit: str = "") -> str:
  """Columns with the edges of the whole below: HTML."""
  if not counted.counts:
    return _figure(title, "<p>none</p>")
  most = max(*counted.counts, 1)
  columns = "".join(
    f'<i style="height:{100 * n / most:.1f}%" title="{low:g} to {high:g}: {n:,}"></i>'
    for n, low, high in zip(counted.counts, counted.edges, counted.edges[1:], strict=False)
  )
  ends = f"<small>{counted.edges[0]:g}</small><small>{html.escape(unit)}</small>"
  ends += f"<small>{counted.edges[-1]:g}</small>"
  return _figure(title, f'<div class="columns">{columns}</div><div class="axis">{ends}</div>')


def draw_bars(title: str, counts: Mapping[str, float]) -> str:
  """A bar for every name, the largest ones, in the order given: HTML."""
  shown = list(counts.items())[:_MOST_BARS]
  most = max([n for _, n in shown] + [1e-12])
  rows = "".join(
    f"<span>{html.escape(str(name))}</span>"
    f'<i style="width:{100 * n / most:.1f}%"></i><small>{n:,}</small>'
    for name, n in shown
  )
  more = len(counts) - len(shown)
  rest = f"<small>and {more:,} more</small>" if more else ""
  return _figure(title, f'<div class="rows">{rows}</div>{rest}')


def draw_clip(frames: Sequence[np.ndarray], text: str, facts: str, height: int = 120) -> str:
  """Frames of a clip side by side, its caption and a line of facts: HTML.

  Args:
    frames: uint8 RGB [H,W,3], at least one, all of one size.
    height: pixels of the strip, at most; much smaller frames are enlarged, pixel by pixel.
  """
  strip = Image.fromarray(np.concatenate(list(frames), axis=1))
  if strip.height > height:
    strip = strip.resize((max(1, strip.width * height // strip.height), height))
  elif (scale := height // strip.height) > 1:
    strip = strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)
  file = io.BytesIO()
  strip.save(file, format="JPEG", quality=85)
  data = base64.b64encode(file.getvalue()).decode()
  return (
    f'<figure><img src="data:image/jpeg;base64,{data}" alt="">{html.escape(text)}'
    f"<figcaption>{html.escape(facts)}</figcaption></figure>"
  )


def draw_table(rows: Mapping[str, object]) -> str:
  lines = (
    f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>"
    for name, value in rows.items()
  )
  return f"<table>{''.join(lines)}</table>"


def draw_section(title: str, parts: Iterable[str], *, least: int = 320) -> str:
  """A heading with its parts below, in as many columns as there is room for: HTML.

  Args:
    least: pixels of a column; 0 for one column.
  """
  body = "\n".join(parts)
  grid = f'<div class="grid" style="--least:{least}px">{body}</div>' if least else body
  return f"<h2>{html.escape(title)}</h2>\n{grid}"


def write_page(path: str | os.PathLike, title: str, summary: str, sections: Iterable[str]) -> None:
  """Writes the page, whole or not at all. Raises OSError: it cannot be written."""
  body = "\n".join(sections)
  name, said = html.escape(title), html.escape(summary)
  text = (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<style>{_STYLE}</style></head>\n<body><h1>{name}</h1><p>{said}</p>\n{body}\n</body></html>\n"
  )
  path = Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
  try:
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def _figure(title: str, body: str) -> str:
  return f"<figure><b>{html.escape(title)}</b>{body}</figure>"
