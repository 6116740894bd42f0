"""The loader's job as a torch user writes it: samples from a map-style dataset, packed on collate.

The same records, the same bins, the same number of workers; what comes out is compared with our
batches. Needs `pip install 'sora_jax[bench]'`; nothing of it is used outside the benchmark.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_pipeline.dataset import Dataset as Records
from data_pipeline.packing import PackSettings, Plan


class Clips(Dataset):
  """Sample by (record, caption): its latent, its caption's states and ids, its rate."""

  def __init__(self, folder: str) -> None:
    self._records = Records.open(folder, kind="latent")
    self._text = self._records.tokenizers[0]

  def __getitem__(self, place: tuple[int, int, int]) -> dict:
    row, record, caption = place
    found = self._records.read(record)
    sample = dict(row=row, fps=found.fps, latent=_tensor(found.latent), dropped=caption < 0)
    if caption >= 0:
      ids = torch.from_numpy(found.text_ids[self._text][caption].copy())
      return sample | dict(ids=ids, states=_tensor(found.text_states[self._text][caption]))
    width = self._records.state_width(self._text)
    return sample | dict(ids=torch.tensor([-1]), states=torch.zeros(1, width, dtype=torch.bfloat16))


def _tensor(array: np.ndarray) -> torch.Tensor:
  """bf16 through its bits, as torch cannot take ml_dtypes."""
  return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)


class Pack:
  """Collates the samples of a step into padded rows; `time_factor` frames make a latent."""

  def __init__(self, settings: PackSettings, time_factor: int) -> None:
    self._settings, self._factor = settings, time_factor

  def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
    s = self._settings
    b, n, m = s.rows, s.slots, s.caption_slots
    width, states = self._patchify(samples[0]["latent"]).shape[1], samples[0]["states"].shape[1]
    batch = dict(
      latents=torch.zeros(b, n, width, dtype=torch.bfloat16),
      text_states=torch.zeros(b, m, states, dtype=torch.bfloat16),
      text_ids=torch.zeros(b, m, dtype=torch.int32),
      text_index=torch.full((b, n), -1, dtype=torch.int32),
      position=torch.zeros(b, n, 4),
      segment=torch.zeros(b, n, dtype=torch.int32),
      token_index=torch.full((b, n), -1, dtype=torch.int32),
      level_index=torch.zeros(b, n, dtype=torch.int32),
    )
    slot, caption, count = [0] * b, [0] * b, [0] * b
    for sample in samples:
      row = sample["row"]
      count[row] += 1
      tokens = self._place(batch, row, sample, slot[row], caption[row], count[row])
      caption[row] += len(sample["ids"])
      slot[row] += tokens
    return batch

  def _place(self, batch, row: int, sample: dict, slot: int, caption: int, number: int) -> int:
    text = len(sample["ids"])
    patches = self._patchify(sample["latent"])
    here, there = slot + text, slot + text + len(patches)
    batch["text_ids"][row, caption : caption + text] = sample["ids"]
    if not sample["dropped"]:
      batch["text_states"][row, caption : caption + text] = sample["states"]
    batch["text_index"][row, slot:here] = torch.arange(caption, caption + text)
    batch["position"][row, slot:here, 3] = torch.arange(1, text + 1)
    batch["latents"][row, here:there] = patches
    batch["position"][row, here:there, :3] = self._positions(sample)
    batch["segment"][row, slot:there] = number
    batch["token_index"][row, here:there] = torch.arange(len(patches))
    batch["level_index"][row, here:there] = number
    return text + len(patches)

  def _patchify(self, latent: torch.Tensor) -> torch.Tensor:
    (pt, ph, pw), (f, h, w, c) = self._settings.patch, latent.shape
    parts = latent.reshape(f // pt, pt, h // ph, ph, w // pw, pw, c).permute(0, 2, 4, 6, 1, 3, 5)
    return parts.reshape(-1, c * pt * ph * pw)

  def _positions(self, sample: dict) -> torch.Tensor:
    f, h, w = sample["latent"].shape[:3]
    i = torch.arange(f, dtype=torch.float64)
    seconds = (self._factor * i - (self._factor - 1) / 2).where(i > 0, 0.0)
    axes = (seconds / sample["fps"], torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2)
    means = [
      axis.double().reshape(-1, part).mean(1)
      for axis, part in zip(axes, self._settings.patch, strict=True)
    ]
    return torch.stack(torch.meshgrid(*means, indexing="ij"), -1).reshape(-1, 3).float()


def torch_batches(folder: str, plan: Plan, *, workers: int, prefetch: int):
  """Batches of a plan's steps in order, by a `DataLoader` of so many worker processes."""
  rows = plan.settings.rows
  steps = []
  for step in range(plan.steps):
    bins = [plan.bin(step * rows + row) for row in range(rows)]
    steps.append(
      [
        (row, int(record), int(caption))
        for row, one in enumerate(bins)
        for record, caption in zip(one.record, one.caption, strict=True)
      ]
    )
  return DataLoader(
    Clips(folder),
    batch_sampler=steps,
    collate_fn=Pack(plan.settings, Records.open(folder, kind="latent").time_factor),
    num_workers=workers,
    prefetch_factor=prefetch,
  )
