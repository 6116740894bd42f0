"""The whole DiT in torch, float64, one clip at a time: a reference that knows no packed rows.

Written from the papers and docs/architecture.md. Each clip is run alone, so it needs neither masks
nor gathers: Peebles & Xie 2023 (arXiv:2212.09748) for adaLN-zero and the embedding of levels; Chen
et al. 2023 (arXiv:2310.00426, sec. 2.3) for the shared modulation with a table a block; Dehghani et
al. 2023 (arXiv:2302.05442) for normalised queries and keys; Su et al. 2021 (arXiv:2104.09864) for
rotary positions; Shazeer 2020 (arXiv:2002.05202) for SwiGLU; Esser et al. 2024 (arXiv:2403.03206,
fig. 2) for the pooled caption.
"""

import math

import torch
import torch.nn.functional as F

CELLS, TOKENS = (4.0, 512.0), (4.0, 2048.0)  # shortest and longest rotary period of an axis


def frequencies(side, seconds):
  """Radians per unit of each pair of features [4,side/2]: a quarter of the pairs to each axis."""
  quarter = side // 8
  counts = (side // 2 - 3 * quarter, quarter, quarter, quarter)
  rows, column = torch.zeros(4, side // 2, dtype=torch.float64), 0
  for axis, (short, long) in enumerate((seconds, CELLS, CELLS, TOKENS)):
    n = counts[axis]
    for i in range(n):
      period = short * (long / short) ** (i / max(1, n - 1))
      rows[axis, column + i] = 2 * math.pi / period
    column += n
  return rows


def positions(shape, patch, fps, tokens, time_factor):
  """Place of every caption token and patch [tokens+n,4]: seconds, row, column, caption index."""
  caption = [(0.0, 0.0, 0.0, i + 1.0) for i in range(tokens)]
  seconds = [0.0] + [
    sum(range(time_factor * (i - 1) + 1, time_factor * i + 1)) / time_factor / fps
    for i in range(1, shape[0])
  ]
  centred = [[i - (side - 1) / 2 for i in range(side)] for side in shape[1:]]
  axes = [seconds, *centred]
  means = [
    [sum(axis[i : i + part]) / part for i in range(0, len(axis), part)]
    for axis, part in zip(axes, patch, strict=True)
  ]
  patches = [(s, y, x, 0.0) for s in means[0] for y in means[1] for x in means[2]]
  return torch.tensor(caption + patches, dtype=torch.float64)


def linear(p, name, x):
  kernel = p[f"{name}/kernel"]
  y = x @ kernel.reshape(x.shape[-1], -1)
  return y + p[f"{name}/bias"].reshape(-1) if f"{name}/bias" in p else y


def embed_level(p, t):
  """Two-layer network on 128 cosines and 128 sines of 1000·t."""
  angles = 1000 * t[:, None] * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
  waves = torch.cat([torch.cos(angles), torch.sin(angles)], -1)
  return linear(p, "level/out", F.silu(linear(p, "level/into", waves)))


def turn(x, angles):
  """Multiplies feature pairs (i, i + side/2) of [heads,n,side], as complex numbers, by e^(i·a)."""
  a, b = x.chunk(2, -1)
  y = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
  return torch.cat([y.real, y.imag], -1)


def attention(p, x, angles, heads):
  q, k, v = linear(p, "attention/qkv", x).reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)
  q = F.rms_norm(q, q.shape[-1:], p["attention/norm_q/scale"], 1e-6)
  k = F.rms_norm(k, k.shape[-1:], p["attention/norm_k/scale"], 1e-6)
  scores = turn(q, angles) @ turn(k, angles).mT / math.sqrt(q.shape[-1])
  mixed = (torch.softmax(scores, -1) @ v).permute(1, 0, 2).reshape(len(x), -1)
  return mixed @ p["attention/out/kernel"].reshape(mixed.shape[1], -1)


def mlp(p, x, kind):
  y = linear(p, "mlp/into", x)
  if kind == "swiglu":
    gate, value = y.chunk(2, -1)
    return linear(p, "mlp/out", F.silu(gate) * value)
  return linear(p, "mlp/out", F.gelu(y, approximate="tanh"))


def modulate(x, shift, scale):
  return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def forward(p, z, ids, states, *, shape, patch, fps, given, t, heads, kind, seconds, time_factor=4):
  """Predicts for the patches of one clip.

  Args:
    p: parameters by path, float64.
    z: noisy patches [n,p].
    ids: caption token ids [m], none for a dropped caption; `states` their states [m,k], or None.
    given: patches that are given clean, from the first on; they and the caption have level 0.
    t: noise level of the others. heads: of attention. kind: of the MLP.
    seconds: shortest and longest rotary period in time.
  """
  if not len(ids):
    caption = p["caption/null"][None]
  elif states is not None:
    caption = linear(p, "caption/states", states)
  else:
    caption = p["caption/table"][ids]
  place = positions(shape, patch, fps, len(caption), time_factor)
  waves = place @ frequencies(64, seconds)
  x = torch.cat([caption, linear(p, "patches", z)])
  x = x + linear(p, "position", torch.cat([torch.cos(waves), torch.sin(waves)], -1))
  clean = torch.arange(len(x)) < len(caption) + given
  level = embed_level(p, torch.where(clean, 0.0, t).double())
  if "pool/into/kernel" in p:  # only what is noisy hears the caption by this way
    pooled = linear(p, "pool/out", F.silu(linear(p, "pool/into", caption)).mean(0))
    level = level + torch.where(clean[:, None], torch.zeros_like(pooled), pooled)
  level = F.silu(level)
  shared, angles = linear(p, "modulation", level), place @ frequencies(x.shape[1] // heads, seconds)
  for layer in range(len(p["blocks/table"])):
    own = {name[7:]: leaf[layer] for name, leaf in p.items() if name.startswith("blocks/")}
    parts = (shared + own["table"].reshape(-1)).chunk(6, -1)
    x = x + parts[2] * attention(own, modulate(x, *parts[:2]), angles, heads)
    x = x + parts[5] * mlp(own, modulate(x, *parts[3:5]), kind)
  x = modulate(x, *linear(p, "head_modulation", level).chunk(2, -1))
  return linear(p, "head", x)[len(caption) :]
