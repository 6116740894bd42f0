"""`sora demo`: the other commands in a row, from nothing to a page with measured samples."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_pipeline.errors import BadInput
from sora_jax import __version__
from sora_jax.commands.config_files import INSTALLED
from sora_jax.commands.entry import run_command
from sora_jax.commands.options import make_folder, make_parser
from sora_jax.commands.paths import path_option
from sora_jax.commands.progress import say
from sora_jax.evals.report import write_report
from sora_jax.generate.media import grid, read_mp4, replacing, strip, write_mp4, write_png
from sora_jax.train.metrics import read_metrics

CONFIG = "demo"  # shipped with the packages, found from any folder
SAMPLES = 192  # of each group, judged
SHOWN = 12  # samples of each group on the page


def parser():
  p = make_parser(
    "demo",
    "Builds data, trains a VAE and a DiT, samples, scores and reports. Run again, it continues.",
    "sora demo --out=runs/demo",
  )
  p.add_argument("--out", type=path_option, required=True, help="folder of the demo")
  return p


def run(args) -> dict:
  out = make_folder("--out", Path(args.out))
  seconds = Stopwatch(out / "seconds.json")
  for name, argv in stages(out):
    say(f"demo: {name}: sora {' '.join(argv)}")
    with seconds(name):
      run_command(argv[0], argv[1:])
  result = json.loads((out / "samples" / "scores.json").read_text(encoding="utf-8"))
  metrics = collect_metrics(out, result, seconds)
  report(out, result, metrics)
  say(f"demo: open {out / 'index.html'}")
  return {"out": str(out), "adherence": metrics["adherence"], "seconds": metrics["seconds"]}


def stages(out: Path):
  """Name and command line of every stage; each continues or reuses what is there."""
  clips, latents, vae, dit = (str(out / name) for name in ("clips", "latents", "vae", "dit"))
  yield "data", ["data", f"--config={CONFIG}", f"--out={clips}"]
  yield (
    "vae",
    ["train", f"--config={CONFIG}:vae", f"--workdir={vae}", f"--config.data.path={clips}"],
  )
  yield (
    "encode",
    ["encode", f"--workdir={vae}", f"--data={clips}", f"--out={latents}", "--text=minilm"],
  )
  yield (
    "dit",
    ["train", f"--config={CONFIG}:dit", f"--workdir={dit}", f"--config.data.path={latents}"],
  )
  yield (
    "sample",
    [
      "eval",
      f"--workdir={dit}",
      "--suite=adherence",
      f"--data={clips}",
      f"--out={out / 'samples'}",
      f"--samples={SAMPLES}",
    ],
  )


FRESH = {"seconds": 0.0, "sessions": 0, "cut_off": 0, "commits": [], "done": False}  # a stage


class Stopwatch:
  """Seconds and commits of each stage over the sessions that it took, and the peak of memory.

  Kept in a file: {"stages": {name: {"seconds", "sessions", "cut_off", "commits", "done"}},
  "peak_rss_gib"}. A stage that is done only checks and reuses when it is run again; that adds
  nothing. A session killed outright leaves no time: it is counted in `cut_off`.
  """

  def __init__(self, path: Path):
    self._path = path
    empty = {"stages": {}, "peak_rss_gib": 0.0}
    self._kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
    stages = self._kept.get("stages", {}).values()
    if set(self._kept) != set(empty) or any(set(stage) != set(FRESH) for stage in stages):
      raise BadInput(f"demo: {path} is of another version. Remove it, or give another --out.")

  @contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    stage = self._kept["stages"].setdefault(name, FRESH | {"commits": []})
    if not stage["done"]:
      stage["sessions"] += 1
      stage["cut_off"] += 1  # until it ends
      stage["commits"] = sorted({*stage["commits"], commit()})
      self._keep()
    begin, ended = time.perf_counter(), False
    try:
      yield
      ended = True
    finally:
      if not stage["done"]:
        stage["seconds"] = round(stage["seconds"] + time.perf_counter() - begin, 1)
        stage["cut_off"] -= 1
        stage["done"] = ended
      self._keep()

  def _keep(self) -> None:
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    self._kept["peak_rss_gib"] = max(self._kept["peak_rss_gib"], rss)
    with replacing(self._path) as temporary:
      temporary.write_text(json.dumps(self._kept) + "\n", encoding="utf-8")

  @property
  def peak_rss_gib(self) -> float:
    """Largest resident memory of any session."""
    return self._kept["peak_rss_gib"]

  @property
  def commits(self) -> str:
    """Of the code that ran the stages: one, or all of them if it changed in between."""
    stages = self._kept["stages"].values()
    return ", ".join(sorted({commit for stage in stages for commit in stage["commits"]}))

  @property
  def cut_off(self) -> int:
    """Sessions whose seconds are missing, because they were killed outright."""
    return sum(stage["cut_off"] for stage in self._kept["stages"].values())

  def total(self) -> dict:
    """Seconds by stage, the installation included where it was timed, and their total."""
    stamp = Path(sys.prefix) / ".install_seconds"
    install = {"install": float(stamp.read_text())} if stamp.exists() else {}
    parts = install | {name: stage["seconds"] for name, stage in self._kept["stages"].items()}
    return {"total": round(sum(parts.values()), 1), **parts}


def collect_metrics(out: Path, result: dict, seconds: Stopwatch) -> dict:
  """What `metrics.json` holds."""
  vae, dit = read_metrics(out / "vae"), read_metrics(out / "dit")
  metrics = {
    "adherence": result["adherence"],
    "seconds": seconds.total(),
    "cut_off_sessions": seconds.cut_off,
    "vae": {
      "steps": vae[-1]["step"],
      "psnr_db": vae[-1]["held_out_psnr_db"],  # the last step is always evaluated
      "data_wait_fraction": waited(vae),
    },
    "dit": {
      "steps": dit[-1]["step"],
      "loss": dit[-1]["loss"],
      "held_out_loss": dit[-1]["held_out_loss"],
      "tokens_seen": dit[-1]["tokens_seen"],
      "clips_seen": dit[-1]["clips_seen"],
      "tokens_per_second": median(dit, "tokens_per_second"),
      "model_gflops_per_second": median(dit, "model_flops_per_second") / 1e9,
      "data_wait_fraction": waited(dit),
    },
    "samples": len(result["samples"]),
    "sampler": result["sampler"],
    "hardware": hardware(),
    "peak_rss_gib": seconds.peak_rss_gib,
    "commit": seconds.commits,
  }
  (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
  return metrics


def median(lines: list[dict], key: str) -> float:
  values = sorted(line[key] for line in lines)
  return values[len(values) // 2]


def waited(lines: list[dict]) -> float:
  """Share of the time of all steps that was spent waiting for data."""
  steps = np.diff([line["step"] for line in lines], prepend=0)
  spent = steps * [line["step_seconds"] for line in lines]
  return float(np.average([line["data_wait_fraction"] for line in lines], weights=spent))


def hardware() -> dict:
  """Processor, cores and memory of this machine."""
  model = (
    next(
      (
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
      ),
      "unknown",
    )
    if Path("/proc/cpuinfo").exists()
    else "unknown"
  )
  pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return {"processor": model, "cores": os.cpu_count(), "memory_gib": round(pages / 2**30, 1)}


def commit() -> str:
  """Commit of the code, with a plus when files differ from it; its version where it is no clone."""
  if not (INSTALLED / ".git").exists():  # a folder around it may be of another project
    return __version__
  try:
    found = subprocess.run(
      ["git", "-C", str(INSTALLED), "describe", "--always", "--dirty=+", "--abbrev=12"],
      capture_output=True,
      text=True,
      check=True,
    )
    return found.stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "unknown"


def report(out: Path, result: dict, metrics: dict) -> None:
  """Writes samples.mp4, samples.png and the page with its loss curves."""
  shown = [
    s
    for group in ("trained", "held_out")
    for s in [x for x in result["samples"] if x["group"] == group][:SHOWN]
  ]
  videos = [read_mp4(out / "samples" / s["file"])[0] for s in shown]
  sheet = grid(videos, columns=6, scale=4, captions=[s["caption"] for s in shown])
  write_mp4(out / "samples.mp4", sheet, metrics["sampler"]["fps"])
  rows = [strip(video, 5) for video in videos]
  stills = grid(
    [row[None] for row in rows], columns=3, scale=3, captions=[s["caption"] for s in shown]
  )
  write_png(out / "samples.png", stills[0])
  for sample, video in zip(shown, videos, strict=True):
    sample["poster"] = f"samples/{Path(sample['file']).with_suffix('.png')}"
    sample["file"] = f"samples/{sample['file']}"
    write_png(out / sample["poster"], video[0])
    sample["group"] = {"trained": "Unseen clips", "held_out": "Combinations never trained on"}[
      sample["group"]
    ]
  write_report(
    out,
    title="sora_jax demo",
    metrics=metrics,
    samples=shown,
    curves=curves(out),
    summary=describe_scope(metrics),
  )


def describe_scope(metrics: dict) -> str:
  """What the numbers of the page are of, and what they are not."""
  sampler, machine = metrics["sampler"], metrics["hardware"]
  return (
    "A video model trained from scratch in one run, one seed, on clips of a generated world of "
    f"moving shapes ({sampler['width']}x{sampler['height']} pixels, {sampler['seconds']:.3g} s at "
    f"{sampler['fps']:g} frames a second), and what its samples show of their captions. Scores are "
    f"shares of {metrics['samples'] // 2} samples of captions whose combinations were trained on, "
    f"and of as many whose combinations were not, judged "
    "on the decoded files by a program that knows this world; intervals are over samples, not over "
    "runs. They say nothing about real video. The held-out loss is a mean over even steps of t, "
    "the training loss one over the t that training draws: the two are not to be compared. Times "
    "are of one machine, "
    f"{machine['cores']} cores of {machine['processor']}."
  )


def curves(out: Path) -> dict:
  """Loss curves of both runs: "panel/line" -> (steps, values)."""
  lines = {"vae": read_metrics(out / "vae"), "dit": read_metrics(out / "dit")}
  picked = [
    ("VAE loss", "vae", "loss"),
    ("VAE PSNR (dB)", "vae", "held_out_psnr_db"),
    ("DiT loss", "dit", "loss"),
    ("held-out loss (mean over t)", "dit", "held_out_loss"),
  ]
  return {
    f"{panel}/{key.replace('_', ' ')}": tuple(
      [line[k] for line in lines[run] if key in line] for k in ("step", key)
    )
    for panel, run, key in picked
  }
