"""`sora inspect --data DIR`: what is in a dataset, from its index alone."""

import os

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipeline.dataset import Dataset
from data_pipeline.page import Histogram, histogram
from data_pipeline.renditions import clip_of

_SIDES = {"clip": ("frames", "height", "width"), "latent": ("f", "h", "w")}
_READ = 10_000  # renditions, at most, whose ids are read to count their clips


def describe_dataset(path: str | os.PathLike) -> dict:
  """Checks the shards and the fingerprint of a dataset, and counts what its index says.

  Returns:
    JSON-able: `path`, `kind`, `name`, `version`, `fingerprint`, `meta`; `clips` (records, here and
    below: of latents they are renditions), and by name `splits`; of clips `storage` and `pixels`;
    of latents `renditions`, `of_clips` (distinct ones; None of more than 10,000 renditions, whose
    ids would have to be read), `tokens` (patches of 1x1x1), `latent_channels`, `time_factor` (None
    without the VAE that says it), and by text encoder
    `text_state_width` (None: no states) and `caption_tokens` (`total`, `mean`, `max` of a caption,
    None without captions); `shapes` ([{f, h, w or frames, height, width, clips}], most frequent
    first); `fps` (clips by rate); `sources`; `captions`
    (`total`, `without`: clips that have none); `seconds` (of latents: of the frames they stand for,
    None without the VAE that says how many); `histograms` by name (`seconds`, `captions` and, of
    latents, `tokens`; `edges` and `counts` of clips, see `page.Histogram`); `shards` ([{file,
    records, bytes}]), `bytes`.
  Raises:
    BadInput: no dataset, or a damaged one.
  """
  dataset = Dataset.open(path, kind=None)
  dataset.verify()
  index = dataset.index
  sides = np.stack([index[side] for side in _SIDES[dataset.kind]], axis=1).astype(np.int64)
  captions = np.diff(index["caption_offsets"])
  frames = _count_frames(dataset, sides[:, 0])
  seconds = None if frames is None else frames / index["fps"].astype(np.float64)
  counted = {"seconds": seconds, "captions": captions}
  if dataset.kind == "latent":
    counted["tokens"] = sides.prod(axis=1)
  shards = [
    {"file": dataset.shard_path(split, i).name, **size}
    for split, sizes in dataset.shards.items()
    for i, size in enumerate(sizes)
  ]
  return {
    "path": str(dataset.path),
    "kind": dataset.kind,
    "name": dataset.name,
    "version": dataset.version,
    "fingerprint": dataset.fingerprint,
    "meta": dataset.meta,
    "clips": len(dataset),
    "splits": dataset.splits,
    **(_clip_facts if dataset.kind == "clip" else _latent_facts)(dataset, sides),
    "shapes": _count_shapes(sides, _SIDES[dataset.kind]),
    "fps": _count(index["fps"]),
    "sources": len(np.unique(index["source"])),
    "captions": {"total": int(captions.sum()), "without": int((captions == 0).sum())},
    "seconds": None if seconds is None else float(seconds.sum()),
    "histograms": {n: histogram(v)._asdict() for n, v in counted.items() if v is not None},
    "shards": shards,
    "bytes": sum(shard["bytes"] for shard in shards),
  }


def _clip_facts(dataset: Dataset, sides: np.ndarray) -> dict:
  return {"storage": dataset.storage, "pixels": int(sides.prod(axis=1).sum())}


def _count_frames(dataset: Dataset, frames: np.ndarray) -> np.ndarray | None:
  """int64: pixel frames, of latents 1 + k(f-1) with the time factor of their VAE."""
  if dataset.kind == "clip":
    return frames
  factor = _time_factor_of(dataset)
  return None if factor is None else 1 + (frames - 1) * factor


def _time_factor_of(dataset: Dataset) -> int | None:
  """That of a latent dataset; None where neither its meta nor a VAE in it says it."""
  if "time_factor" not in dataset.meta and not (dataset.path / "vae").is_dir():
    return None
  return dataset.time_factor


def _latent_facts(dataset: Dataset, sides: np.ndarray) -> dict:
  names = dataset.tokenizers
  return {
    "renditions": len(dataset),
    "of_clips": _count_clips(dataset),
    "tokens": int(sides.prod(axis=1).sum()),
    "latent_channels": dataset.latent_channels,
    "time_factor": _time_factor_of(dataset),
    "text_state_width": {name: dataset.state_width(name) for name in names},
    "caption_tokens": {name: _sum_up(dataset.caption_tokens(name)) for name in names},
  }


def _count_clips(dataset: Dataset) -> int | None:
  """Clips that a latent dataset has renditions of; None where too many ids are to be read."""
  if not dataset.meta.get("renditions"):
    return len(dataset)  # each as it is
  if len(dataset) > _READ:
    return None
  return len({clip_of(dataset.read(row).id) for row in range(len(dataset))})


def count_records(facts: dict) -> str:
  """Says how many records there are of what: 870 renditions of 154 clips."""
  if facts["kind"] == "clip":
    return f"{facts['clips']:,} clips"
  clips = "" if facts["of_clips"] is None else f" of {facts['of_clips']:,} clips"
  return f"{facts['renditions']:,} renditions{clips}"


def unit_of(facts: dict) -> str:
  """Names what the records are."""
  return "clips" if facts["kind"] == "clip" else "renditions"


def _sum_up(column: np.ndarray) -> dict:
  counts = np.asarray(column, np.int64)
  return {
    "total": int(counts.sum()),
    "mean": float(counts.mean()) if counts.size else None,
    "max": int(counts.max()) if counts.size else None,
  }


def _count_shapes(sides: np.ndarray, names: tuple[str, ...]) -> list[dict[str, int]]:
  shapes, counts = np.unique(sides, axis=0, return_counts=True)
  order = np.argsort(-counts, kind="stable")
  return [
    dict(zip(names, shapes[i].tolist(), strict=True), clips=int(counts[i])) for i in order.tolist()
  ]


def _count(column: np.ndarray) -> dict[str, int]:
  values, counts = np.unique(column, return_counts=True)
  return {f"{value:g}": count for value, count in zip(values, counts.tolist(), strict=True)}


def print_dataset(facts: dict, console: Console | None = None, rows: int = 12) -> None:
  """Shows what `describe_dataset` found.

  Args:
    facts: of `describe_dataset`, with `fill`, `imbalance` and `steps` where it was packed too.
    console: where; stderr when None.
    rows: most lines of a table; the rest is summed up in one.
  """
  console = console or Console(stderr=True)
  title, unit = f"{facts['name']}: {count_records(facts)}", unit_of(facts)
  title += f", {facts['fingerprint'][:12]}"
  console.print(_table(title, ("fact", "value"), _summary(facts)))
  shapes = [
    ("x".join(str(n) for name, n in shape.items() if name != "clips"), f"{shape['clips']:,}")
    for shape in facts["shapes"]
  ]
  for name, counted in facts["histograms"].items():
    console.print(_table(name, ("from", "to", unit, ""), _bars(Histogram(**counted))))
  header = " x ".join(_SIDES[facts["kind"]])
  console.print(_table("shapes", (header, unit), _shorten(shapes, rows)))
  shards = [(s["file"], f"{s['records']:,}", f"{s['bytes']:,}") for s in facts["shards"]]
  console.print(_table("shards", ("file", "records", "bytes"), _shorten(shards, rows)))


def _summary(facts: dict) -> list[tuple[str, str]]:
  captions = facts["captions"]
  lines = [
    ("splits", _join(facts["splits"])),
    ("fps", _join(facts["fps"])),
    ("sources", f"{facts['sources']:,}"),
    ("captions", f"{captions['total']:,} ({captions['without']:,} {unit_of(facts)} without)"),
    ("bytes", f"{facts['bytes']:,}"),
  ]
  if "fill" in facts:
    lines.append(("fill", f"{100 * facts['fill']:.2f} %"))
    lines.append(("imbalance", f"{100 * facts['imbalance']:.2f} %"))
    lines.append(("steps an epoch", f"{facts['steps']:,}"))
  if facts["kind"] == "clip":
    amounts = [("pixels", f"{facts['pixels']:,}"), ("stored", facts["storage"])]
  else:
    amounts = [("tokens (1x1x1 patches)", f"{facts['tokens']:,}")]
    amounts.append(("latent channels", str(facts["latent_channels"])))
    for name, tokens in facts["caption_tokens"].items():
      width = facts["text_state_width"][name]
      states = f"states of width {width}" if width else "no states"
      counted = f"{tokens['total']:,} (longest {tokens['max']}), {states}"
      amounts.append((f"caption tokens, {name}", counted))
  if facts["seconds"] is not None:
    amounts.append(("seconds", f"{facts['seconds']:,.1f}"))
  return amounts + lines


def _bars(counted: Histogram) -> list[tuple[str, ...]]:
  """A line a bin that holds clips: its edges, clips, and a bar."""
  most = max(counted.counts, default=1)
  bins = zip(counted.edges, counted.edges[1:], counted.counts, strict=False)
  return [(f"{a:g}", f"{b:g}", f"{n:,}", "█" * -(-24 * n // most)) for a, b, n in bins if n]


def _join(counts: dict[str, int]) -> str:
  return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def _shorten(lines: list[tuple[str, ...]], rows: int) -> list[tuple[str, ...]]:
  if len(lines) <= rows:
    return lines
  rest = (f"and {len(lines) - rows + 1:,} more", *("" for _ in lines[0][1:]))
  return [*lines[: rows - 1], rest]


def _table(title: str, header: tuple[str, ...], lines: list[tuple[str, ...]]) -> Table:
  table = Table(*header, title=title, title_justify="left")
  for line in lines:
    table.add_row(*line)
  return table
