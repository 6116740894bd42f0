r"""How many known cuts the shot detectors find, and what they take for cuts.

  python -m experiments.benchmarks.cuts --film=runs/film/.clips.film/bbb.mp4
  python -m experiments.benchmarks.cuts --film=... --seed=1 --variants=grey,crf32 --detectors=flow

The film is re-edited (`film_edits`): `plain`, pieces of 0.7 to 2 seconds in random order, half of
the joins between pieces of like colours; and `events`, in which every piece also holds a flash, a
whipped pan, a shaking camera, a fast zoom, somebody who walks by, or film at two or three times its
speed, all of which are no cuts. ffmpeg encodes every variant of an edit, the decoder of curation
reads it at the size that curation looks at. `film` is the film itself; within its fades and
dissolves nothing is counted.

A cut counts as found at its very frame only. Intervals are Wilson's, of 95 %. Files are kept in
--folder, and not made again; an edit of 500 cuts takes some 20 minutes of one core.
"""

import argparse
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipeline.curate.media import frames, probe
from data_pipeline.curate.shots import DETECTORS, make_finder
from experiments.benchmarks import film_edits
from experiments.benchmarks.film_edits import CUTS, EVENTS, FPS, GRADUAL, HEIGHT, WIDTH

SIDE = 256  # pixels that curation looks at
THRESHOLDS = {"flow": 0.3, "adaptive": 3.0, "content": 27.0, "transnetv2": 0.5}
_H264 = "-c:v libx264 -preset superfast -crf 23"
_HEVC = "-c:v libx265 -preset ultrafast -crf 28 -x265-params log-level=error:pools=none"
_AV1 = "-c:v libsvtav1 -preset 12 -crf 40 -svtav1-params lp=1"
_DARK = "lutyuv=y=16+(val-16)/5:u=128+(val-128)/5:v=128+(val-128)/5"
_PILLARS = "crop=288:216,pad=384:216:48:0"
VARIANTS = {  # size, filter, encoder
  "1280x720": ("1280:720", "null", _H264),
  "384x216": ("384:216", "null", _H264),
  "160x90": ("160:90", "null", _H264),
  "grey": ("384:216", "hue=s=0", _H264),
  "dark": ("384:216", _DARK, _H264),  # a fifth of the contrast
  "pillars": ("384:216", _PILLARS, _H264),
  "letterbox": ("384:216", "crop=384:160,pad=384:216:0:28", _H264),
  "noisy bars": ("384:216", f"{_PILLARS}:0x0a0a0a,noise=alls=8:allf=t", _H264),
  "dark grey bars": ("384:216", f"hue=s=0,{_DARK},{_PILLARS}", _H264),
  "crf 32": ("384:216", "null", _H264.replace("23", "32")),
  "hevc 10 bit": ("384:216", "format=yuv420p10le", _HEVC),
  "av1 10 bit": ("384:216", "format=yuv420p10le", _AV1),
}


def write_variants(shown, paths: dict[str, Path], ffmpeg: str) -> None:
  """Encodes frames, uint8 RGB [720,1280,3], in several ways at once."""
  command = [ffmpeg, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
  command += ["-s", f"{WIDTH}x{HEIGHT}", "-r", str(FPS), "-i", "-"]
  command += ["-filter_complex_threads", "1", "-filter_complex", _graph(list(paths))]
  for number, (name, path) in enumerate(paths.items()):
    command += ["-map", f"[out{number}]", "-threads", "1", *VARIANTS[name][2].split()]
    command += ["-f", "matroska", f"{path}.part"]
  with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
    assert process.stdin
    for frame in shown:
      process.stdin.write(np.ascontiguousarray(frame))
    process.stdin.close()
    if process.wait():
      raise SystemExit("cuts: ffmpeg failed, see above.")
  for path in paths.values():
    Path(f"{path}.part").rename(path)


def _graph(names: list[str]) -> str:
  """The filters of several variants, with one scaler for every size."""
  sizes = sorted({VARIANTS[name][0] for name in names})
  parts = [f"[0:v]format=yuv420p,split={len(sizes)}" + "".join(f"[s{s[:3]}]" for s in sizes)]
  for size in sizes:
    same = [i for i, name in enumerate(names) if VARIANTS[name][0] == size]
    ends = "".join(f"[in{i}]" for i in same)
    parts.append(f"[s{size[:3]}]scale={size},split={len(same)}{ends}")
  parts += [f"[in{i}]{VARIANTS[name][1]}[out{i}]" for i, name in enumerate(names)]
  return ";".join(parts)


def find_cuts(path: Path, detectors: list[str]) -> dict[str, tuple[list[int], float]]:
  """First frames of shots, but the very first, and milliseconds a frame, by every detector."""
  finders = {
    name: make_finder(
      FPS, detector=name, threshold=THRESHOLDS[name], min_content=15.0, min_seconds=0.0
    )
    for name in detectors
  }
  spent, count = dict.fromkeys(detectors, 0.0), 0
  with open(path, "rb") as file:
    info = probe(file)
    scale = SIDE / max(info.width, info.height)
    size = (round(info.width * min(scale, 1)), round(info.height * min(scale, 1)))
    for frame in frames(file, info, size=size):
      count += 1
      for name, finder in finders.items():
        begin = time.process_time()
        finder.add(frame)
        spent[name] += time.process_time() - begin
  found = {}
  for name, finder in finders.items():
    begin = time.process_time()
    cuts = [start for start, _ in finder.finish()[1:]]
    found[name] = cuts, (spent[name] + time.process_time() - begin) / count * 1e3
  return found


def wilson(good: int, all_of_them: int) -> str:
  """A share in percent, and its interval of 95 %."""
  if not all_of_them:
    return "-"
  z, share = 1.96, good / all_of_them
  centre = share + z * z / (2 * all_of_them)
  half = z * np.sqrt(share * (1 - share) / all_of_them + z * z / (4 * all_of_them**2))
  low, high = ((centre + sign * half) / (1 + z * z / all_of_them) for sign in (-1, 1))
  return f"{100 * share:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def report(table: Table, row: str, truth: set[int], found: dict, kind_of) -> None:
  """Adds a row for every detector; `kind_of` tells what happens at a frame, None: not counted."""
  for name, (cuts, cost) in found.items():
    good = len(truth & set(cuts))
    wrong = [cut for cut in cuts if cut not in truth and kind_of(cut) is not None]
    kinds = Counter(kind_of(cut) for cut in wrong)
    table.add_row(
      row,
      name,
      f"{good}/{len(truth)}",
      wilson(good, len(truth)),
      str(len(wrong)),
      wilson(good, good + len(wrong)),
      ", ".join(f"{kind} {number}" for kind, number in kinds.most_common() if kind),
      f"{cost:.2f}",
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--film", type=Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--cuts", type=int, default=500, help="of the plain edit; events: 60 %%")
  parser.add_argument("--edits", default="film,plain,events")
  parser.add_argument("--variants", default=",".join(VARIANTS))
  parser.add_argument("--detectors", default="flow,adaptive,content")
  parser.add_argument("--folder", type=Path, help="of the edits; default: one that goes again")
  args = parser.parse_args()
  cv2.setNumThreads(1)
  detectors = args.detectors.split(",")
  assert set(detectors) <= set(DETECTORS), f"--detectors: some of {', '.join(DETECTORS)}"
  with tempfile.TemporaryDirectory() as temporary:
    _run(args, args.folder or Path(temporary), detectors)


def _run(args, folder: Path, detectors: list[str]) -> None:
  console = Console(width=150)
  names = ("variant", "detector", "found", "recall %", "false", "precision %", "at", "ms")
  table = Table(*names, title=f"seed {args.seed}")
  if "film" in args.edits:
    found = find_cuts(args.film, detectors)
    report(table, "film", set(CUTS), found, _film_kind)
  for edit in [name for name in ("plain", "events") if name in args.edits]:
    _run_edit(args, edit, folder, detectors, table)
  console.print(table)


def _film_kind(cut: int) -> str | None:
  return None if any(low <= cut < high for low, high in GRADUAL) else ""


def _run_edit(args, edit: str, folder: Path, detectors: list[str], table: Table) -> None:
  import imageio_ffmpeg

  events = tuple(EVENTS) if edit == "events" else ()
  count = args.cuts * 3 // 5 if events else args.cuts
  looks = film_edits.film_looks(args.film, folder)
  pieces = film_edits.re_edit(looks, count, args.seed, events)
  starts = np.cumsum([0, *(piece.frames for piece in pieces)])
  names = args.variants.split(",")
  folder.mkdir(parents=True, exist_ok=True)
  stem = f"{edit}-{count}-{args.seed}"
  paths = {name: folder / f"{stem}-{name.replace(' ', '_')}.mkv" for name in names}
  missing = {name: path for name, path in paths.items() if not path.exists()}
  if missing:
    shown = film_edits.edited(args.film, pieces, args.seed)
    write_variants(shown, missing, imageio_ffmpeg.get_ffmpeg_exe())

  def kind_of(cut: int) -> str:
    return pieces[int(np.searchsorted(starts, cut, side="right")) - 1].event

  for name, path in paths.items():
    found = find_cuts(path, detectors)
    report(table, f"{edit}, {name}", set(starts[1:-1].tolist()), found, kind_of)


if __name__ == "__main__":
  main()
