"""The whole of a job of `sora encode`: what it checks, its parts, and the dataset at its end.

Several processes divide the parts; each uses its own devices. The first one holds the dataset's
lock and puts the parts together.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.derived import register_derived
from data_pipeline.errors import BadInput
from data_pipeline.facts import hashed_meta
from data_pipeline.parts import Parts
from data_pipeline.renditions import Rule, plan_renditions
from sora_jax.commands.caption_limits import CaptionLimits, Checked, check_captions
from sora_jax.commands.encode_parts import PartEncoder, Plan, plan_parts, shapes_of
from sora_jax.commands.encode_progress import RenditionMeter
from sora_jax.commands.progress import say
from sora_jax.generate.programs import Programs, choose_programs, encoder_radius
from sora_jax.models.frozen_vae import FrozenVAE, save_frozen_vae
from sora_jax.models.text.encoder import TextEncoder, describe
from sora_jax.models.text.registry import save_text_encoder
from sora_jax.parallel import hosts

SHARD_BYTES = 2**28
WAIT_SECONDS = 7 * 86_400  # for the slowest process; one that is lost is noticed much earlier


class EncodeJob:
  """What is to be encoded, and how. Whatever cannot be done is refused here or at `run`'s begin.

  Attributes:
    report: once it ran: clips, renditions, seconds, clips_per_second (of this session), and
      long_captions, if this session looked and found some.

  Args:
    clips: what to encode.
    vae, encoders: of pixels and of captions; the first encoder is what training reads by default.
    out: folder of the latent dataset.
    rows: the most clips encoded at once.
    patch_side: sides become multiples of so many latents.
    captions: kept of each clip; 0 for all.
    rules: what is made of every clip; None for the clip as it is.
    states: whether token states are stored.
    devices: of this process that share a batch; 0 for all.
    shard_bytes: of a part, about.
    start_over: removes what a job of other settings left unfinished.
    long_captions: what becomes of captions that are too long, see `CaptionLimits`.
  """

  def __init__(
    self, clips: Dataset, vae: FrozenVAE, encoders: Sequence[TextEncoder], out: Path, *,
    rows: int, patch_side: int, captions: int, rules: Mapping[str, Rule] | None = None, 
    states: bool = True, devices: int = 0, shard_bytes: int = SHARD_BYTES,
    start_over: bool = False, long_captions: str = "refuse",
  ):  # fmt: skip
    self._clips, self._vae, self._encoders, self._out = clips, vae, tuple(encoders), out
    self._rows, self._patch_side, self._captions = rows, patch_side, captions
    self._rules, self._states = rules, states
    self._shard_bytes, self._start_over = shard_bytes, start_over
    self._limits = CaptionLimits(self._encoders, long_captions, captions)
    self._devices = choose_devices(devices)
    self.report: dict = {}

  @property
  def meta(self) -> dict:
    """Facts that the dataset keeps: another job has others."""
    named = {name: dataclasses.asdict(rule) for name, rule in (self._rules or {}).items()}
    policy = self._limits.policy
    # what every dataset was made by before there was a choice is not said
    said = {} if policy == "refuse" else {"long_captions": policy}
    return said | {
      "clips": self._clips.fingerprint,
      "vae": self._vae.fingerprint,
      "time_factor": self._vae.time_factor,
      "texts": {encoder.name: describe(encoder) for encoder in self._encoders},
      "states": self._states and any(encoder.width for encoder in self._encoders),
      "patch_side": self._patch_side,
      "captions": self._captions,
      "renditions": None if self._rules is None else named,
    }

  def run(self) -> Dataset:
    """Encodes what is missing.

    Raises:
      BadInput: the folder holds latents of other clips, another VAE or other settings; the clips
        are too small or of too many shapes, or a caption is too long, which is seen before anything
        is written; one is damaged, or they changed meanwhile.
    """
    if (self._out / "meta.json").exists():
      return self._open_existing()
    table = plan_renditions(
      self._clips.index,
      self._rules,
      time_factor=self._vae.time_factor,
      side=self._vae.space_factor * self._patch_side,
    )
    whole = Programs(
      self._vae.time_factor,
      self._vae.space_factor,
      self._rows,
      len(self._devices),
      encoder_radius(self._vae.config),
    )
    programs = choose_programs(shapes_of(table), whole, self._patch_side)
    self._say_left_out(table)
    checked = check_captions(self._clips, np.unique(table["row"]), self._limits)
    dataset = self._write(table, programs)
    self._say_long(checked)
    return dataset

  def _open_existing(self) -> Dataset:
    dataset = Dataset.open(self._out, kind="latent")
    meta, found = hashed_meta(self.meta), hashed_meta(dataset.meta)
    names = [*meta, *({"long_captions"} & found.keys())]
    changed = [key for key in dict.fromkeys(names) if found.get(key) != meta.get(key)]
    if changed:
      raise BadInput(
        f"encode: {self._out} holds latents of other {', '.join(changed)}. "
        "Give another --out, or remove it."
      )
    say(f"encode: {self._out} is there already, {self._describe(len(dataset))}")
    register_derived(self._clips.path, dataset.path)
    self._report(len(dataset), 0, 0.0)
    return dataset

  def _describe(self, renditions: int) -> str:
    clips = len(self._clips)
    return f"{clips} clips" if self._rules is None else f"{renditions} renditions of {clips} clips"

  def _write(self, table: np.ndarray, programs: Programs) -> Dataset:
    plan = plan_parts(
      self._clips, table, self._vae, self._encoders, rows=self._rows, captions=self._captions,
      states=self._states, shard_bytes=self._shard_bytes,
    )  # fmt: skip
    maker = PartEncoder(
      self._clips, self._vae, self._encoders, plan.table, programs, self._devices,
      limits=self._limits, states=self._states, named=self._rules is not None,
    )  # fmt: skip
    with self._open_parts(plan) as parts:
      self._write_parts(parts, plan, maker)
      hosts.first_does("finish", lambda: self._finish(parts, plan), seconds=WAIT_SECONDS)
    return Dataset.open(self._out, kind="latent")

  def _finish(self, parts: Parts, plan: Plan) -> None:
    self._keep_makers(parts.folder)
    self._check_clips()
    parts.finish(plan.counts)

  def _open_parts(self, plan: Plan) -> Parts:
    """The parts of the dataset; the first process holds the lock for all."""
    made = []

    def make(*, hold: bool) -> None:
      made.append(
        Parts(
          self._out, "latent", name="latents", meta=self.meta, plan=plan.facts,
          start_over=self._start_over, hold=hold,
        )
      )  # fmt: skip

    def begin() -> None:
      make(hold=True)
      register_derived(self._clips.path, self._out)  # a take-down from now on knows of this job

    hosts.first_does("open parts", begin, seconds=WAIT_SECONDS)
    if not hosts.is_first():
      make(hold=False)
    return made[0]

  def _write_parts(self, parts: Parts, plan: Plan, maker: PartEncoder) -> None:
    """Writes the missing parts that fall to this process, and waits for the others."""
    found = parts.missing(plan.counts) if hosts.is_first() else []
    missing = hosts.share("missing parts", found, seconds=WAIT_SECONDS)[0]
    there = sum(plan.counts.values()) - len(missing)
    if there:
      say(f"encode: continues, {there} of {there + len(missing)} parts are there")
    mine = missing[hosts.index() :: hosts.count()]
    total = sum(len(plan.parts[split][part]) for split, part in mine)
    with RenditionMeter("encode", total) as meter:
      for split, part in mine:
        parts.write(split, part, maker.records(plan.parts[split][part], meter))
    done = hosts.share("encoded", [total, meter.seconds], seconds=WAIT_SECONDS)
    totals, seconds = zip(*done, strict=True)
    self._report(len(plan.table), sum(totals), max(seconds))

  def _check_clips(self) -> None:
    """Raises BadInput: some were taken down, or added, while they were encoded."""
    if Dataset.open(self._clips.path, kind="clip").fingerprint != self._clips.fingerprint:
      raise BadInput(
        f"encode: {self._clips.path} changed while it was encoded. Run again with --start-over."
      )

  def _keep_makers(self, folder: Path) -> None:
    """Puts VAE and text encoders into the dataset."""
    vae = self._vae
    statistics = {"mean": vae.mean, "std": vae.std}
    save_frozen_vae(folder / "vae", config=vae.config, params=vae.params, statistics=statistics)
    for encoder in self._encoders:
      save_text_encoder(encoder, folder / "text" / encoder.name)

  def _say_left_out(self, table: np.ndarray) -> None:
    left = len(self._clips) - len(set(table["row"].tolist()))
    if left:
      say(f"encode: {left} of {len(self._clips)} clips are left out (min_seconds, min_pixels)")

  def _say_long(self, checked: Checked) -> None:
    if checked.long:
      did = {"cut": "cut", "other": "left out"}[self._limits.policy]
      say(
        f"encode: {checked.long} captions of {checked.clips} clips are too long for the text "
        f"encoders: {did}"
      )
      self.report["long_captions"] = checked.long

  def _report(self, renditions: int, encoded: int, seconds: float) -> None:
    self.report = {
      "clips": len(self._clips),
      "renditions": renditions,
      "encoded": encoded,
      "seconds": round(seconds, 3),
      "clips_per_second": round(encoded / seconds, 3) if seconds else 0.0,
    }


def choose_devices(count: int) -> list:
  """The first devices of this process; 0 for all of them.

  Raises:
    BadInput: it has fewer.
  """
  devices = jax.local_devices()
  if not 0 <= count <= len(devices):
    raise BadInput(f"encode: --mesh={count} is not in 0..{len(devices)}, the devices there are.")
  return devices[: count or None]
