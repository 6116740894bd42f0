"""The DiT of sora_jax.models.dit in PyTorch, to time beside it: same widths, same weights.

Written the way PyTorch is fastest at it: torch.compile, scaled_dot_product_attention under the
segments' mask (flex attention, which leaves blocks out, on a GPU), fused AdamW, foreach EMA.
"""

from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from data_pipeline.errors import BadInput
from sora_jax.models.dit import POSITION_FEATURES
from sora_jax.nn.rope import rotary_frequencies
from sora_jax.parallel.rules import named_leaves
from sora_jax.train.averages import solve_exponent

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Linear(nn.Module):
  """Weights in float32, the product in `dtype`."""

  def __init__(self, weights: dict, name: str, dtype=torch.float32):
    super().__init__()
    kernel = weights.pop(f"{name}/kernel")
    self.weight = nn.Parameter(kernel.reshape(-1, kernel.shape[-1]).T.contiguous())
    bias = weights.pop(f"{name}/bias", None)
    self.bias = None if bias is None else nn.Parameter(bias.reshape(-1).contiguous())
    self.dtype = dtype

  def forward(self, x):
    bias = None if self.bias is None else self.bias.to(self.dtype)
    return F.linear(x.to(self.dtype), self.weight.to(self.dtype), bias)


def rms_norm(x, scale):
  return F.rms_norm(x.float(), (x.shape[-1],), scale, 1e-6)


def modulate(x, shift, scale):
  return F.layer_norm(x.float(), (x.shape[-1],), None, None, 1e-6) * (1 + scale) + shift


class Block(nn.Module):
  def __init__(self, weights: dict, heads: int, gated: bool, dtype):
    super().__init__()
    self.heads, self.gated, self.dtype = heads, gated, dtype
    kernel = weights.pop("attention/qkv/kernel")  # [d,3,heads,head_dim]
    weights["qkv/kernel"] = kernel.reshape(kernel.shape[0], -1)
    self.qkv = Linear(weights, "qkv", dtype)
    self.out = Linear(weights, "attention/out", dtype)
    into = weights.pop("mlp/into/kernel")
    weights["into/kernel"] = into.reshape(into.shape[0], -1)
    weights["into/bias"] = weights.pop("mlp/into/bias")
    self.into, self.back = Linear(weights, "into", dtype), Linear(weights, "mlp/out", dtype)
    self.norm_q = nn.Parameter(weights.pop("attention/norm_q/scale"))
    self.norm_k = nn.Parameter(weights.pop("attention/norm_k/scale"))
    self.table = nn.Parameter(weights.pop("table"))

  def forward(self, x, shared, level, cos, sin, attend):
    levels = shared + self.table.reshape(-1)
    levels = torch.gather(levels, 1, level[..., None].expand(-1, -1, levels.shape[-1]))
    shift1, scale1, gate1, shift2, scale2, gate2 = levels.chunk(6, -1)
    h = modulate(x, shift1, scale1).to(self.dtype)
    q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(2)
    q, k = (rotate(rms_norm(y, s), cos, sin) for y, s in ((q, self.norm_q), (k, self.norm_k)))
    q, k, v = (y.to(self.dtype).transpose(1, 2) for y in (q, k, v))
    x = x + (gate1 * self.out(attend(q, k, v).transpose(1, 2).flatten(2))).to(x.dtype)
    h = self.into(modulate(x, shift2, scale2).to(self.dtype))
    if self.gated:
      gate, value = h.chunk(2, -1)
      h = F.silu(gate) * value
    else:
      h = F.gelu(h, approximate="tanh")
    return x + (gate2 * self.back(h)).to(x.dtype)


def rotate(x, cos, sin):
  a, b = x.chunk(2, -1)
  return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class DiT(nn.Module):
  """Of weights by name, as `named_leaves` gives them, on a packed batch of tensors."""

  def __init__(self, weights: dict[str, torch.Tensor], settings: dict[str, Any]):
    super().__init__()
    dtype = self.dtype = DTYPES[settings["dtype"]]
    prefix = "blocks/"
    self.blocks = nn.ModuleList(
      Block(
        {n.removeprefix(prefix): w[i].clone() for n, w in weights.items() if n.startswith(prefix)},
        settings["heads"], settings["mlp"] == "swiglu", dtype,
      )
      for i in range(settings["depth"])
    )  # fmt: skip
    rest = {name: w for name, w in weights.items() if not name.startswith(prefix)}
    self.patches, self.position = Linear(rest, "patches", dtype), Linear(rest, "position", dtype)
    self.null = nn.Parameter(rest.pop("caption/null"))
    has_states = "caption/states/kernel" in rest
    self.states = Linear(rest, "caption/states", dtype) if has_states else None
    self.table = None if has_states else nn.Parameter(rest.pop("caption/table"))
    self.level_into, self.level_out = Linear(rest, "level/into"), Linear(rest, "level/out")
    self.pool_into = Linear(rest, "pool/into", dtype) if settings["pooled_caption"] else None
    self.pool_out = Linear(rest, "pool/out") if settings["pooled_caption"] else None
    self.modulation = Linear(rest, "modulation")
    self.head_modulation, self.head = Linear(rest, "head_modulation"), Linear(rest, "head")
    if rest:
      raise RuntimeError(f"torch_dit: nobody takes the weights {sorted(rest)}.")
    half = np.exp(-np.log(10_000.0) * np.arange(128) / 128).astype(np.float32)
    head_dim, seconds = settings["width"] // settings["heads"], settings["rotary_seconds"]
    self.register_buffer("frequencies", torch.from_numpy(half))
    self.register_buffer("turns", torch.from_numpy(rotary_frequencies(head_dim, seconds)))
    self.register_buffer("places", torch.from_numpy(rotary_frequencies(POSITION_FEATURES, seconds)))

  def forward(self, z, t, batch, attend):
    caption = self.embed(batch)
    index = batch["text_index"].clamp(min=0)[..., None].expand(-1, -1, caption.shape[-1])
    at = torch.gather(caption, 1, index)
    is_caption = (batch["text_index"] >= 0)[..., None]
    place = batch["position"] @ self.places
    x = torch.where(is_caption, at, self.patches(z))
    x = x + self.position(torch.cat([place.cos(), place.sin()], -1))
    angles = 1000.0 * t[..., None] * self.frequencies
    c = self.level_out(F.silu(self.level_into(torch.cat([angles.cos(), angles.sin()], -1))))
    if self.pool_into is not None and self.pool_out is not None:
      hidden = torch.gather(F.silu(self.pool_into(caption)), 1, index).float() * is_caption
      c = c + self.pool_out(torch.einsum("bnu,bnd->bud", batch["share"], hidden))
    c = F.silu(c)
    shared = self.modulation(c)
    turn = (batch["position"] @ self.turns)[:, :, None]
    cos, sin = turn.cos(), turn.sin()
    for block in self.blocks:
      x = block(x, shared, batch["level_index"], cos, sin, attend)
    ends = self.head_modulation(c)
    ends = torch.gather(ends, 1, batch["level_index"][..., None].expand(-1, -1, ends.shape[-1]))
    return self.head(modulate(x, *ends.chunk(2, -1)))

  def embed(self, batch):
    if self.states is not None:
      tokens = self.states(batch["text_states"])
    else:
      tokens = F.embedding(batch["text_ids"].clamp(min=0), self.table).to(self.dtype)
    return torch.where((batch["text_ids"] < 0)[..., None], self.null.to(tokens.dtype), tokens)


class Twin:
  """A train step of the twin on a packed batch.

  Raises:
    BadInput: a setting that it has no equal of.
  """

  def __init__(self, config, settings: dict, params, batch: dict[str, np.ndarray]):
    if config.optim.name != "adamw" or config.accumulate_steps != 1:
      raise BadInput(
        f"--twin knows optim.name=adamw and accumulate_steps=1, not {config.optim.name} and"
        f" {config.accumulate_steps}. Set them."
      )
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {n: torch.from_numpy(np.array(w)) for n, w in named_leaves(params).items()}
    self.model = DiT(weights, settings["model"]).to(self.device)
    self.clean, self.t_min = config.model.prediction == "clean", config.diffusion.t_min
    self.clip, self.width, self.done = config.optim.clip_norm, config.optim.ema_width, 0
    self.average = [p.detach().clone() for p in self.model.parameters()]
    self.optimizer = torch.optim.AdamW(
      self.model.parameters(),
      lr=config.optim.lr,
      betas=(config.optim.b1, config.optim.b2),
      eps=config.optim.eps,
      weight_decay=config.optim.weight_decay,
      fused=True,
    )
    self.batch = {
      name: torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "i" else value).to(
        self.device
      )
      for name, value in batch.items()
      if name in ("latents", "text_ids", "text_states", "text_index", "position", "segment")
      or name in ("level_index", "token_index")
    }
    self.batch["share"] = self._caption_share()
    self.levels = batch["draw"].shape[1] + 1
    self.attend = self._attention()
    self.loss = torch.compile(self._loss)
    generator = torch.Generator().manual_seed(0)
    self.noise = torch.randn(self.batch["latents"].shape, generator=generator).to(self.device)
    self.times = self._draw_times(generator)

  def _caption_share(self):
    """[b,n,u]: weight of a caption slot in its segment's mean."""
    levels = int(self.batch["segment"].max()) + 1
    share = F.one_hot(self.batch["segment"], levels).float()
    share = share * (self.batch["text_index"] >= 0)[..., None]
    return share / share.sum(1, keepdim=True).clamp(min=1)

  def _draw_times(self, generator=None):
    levels = self.batch["share"].shape[-1]
    t = torch.sigmoid(torch.randn((len(self.noise), levels), generator=generator)).to(self.device)
    t[:, 0] = 0
    return t

  def _attention(self):
    segment = self.batch["segment"]
    if self.device == "cuda":
      same = lambda b, h, q, k: segment[b, q] == segment[b, k]  # noqa: E731
      mask = create_block_mask(same, len(segment), None, *[segment.shape[1]] * 2)
      return lambda q, k, v: flex_attention(q, k, v, block_mask=mask)
    mask = (segment[:, None, :, None] == segment[:, None, None, :]).contiguous()
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask)

  def _slot_times(self, t):
    return torch.gather(t, 1, self.batch["level_index"])[..., None]

  def _loss(self, noise, t):
    x, at = self.batch["latents"], self._slot_times(t)
    z = (1 - at) * x + at * noise
    out = self.model(z, t, self.batch, self.attend)
    if self.clean:
      error = (out - x) / at.clamp(min=self.t_min)
    else:
      error = out - (noise - x)
    weight = (self.batch["token_index"] >= 0) & (self.batch["level_index"] > 0)
    return (error.square().mean(-1) * weight).sum() / weight.sum()

  def times_and_noisy(self) -> tuple[np.ndarray, np.ndarray]:
    """t [b,u] and z [b,n,p] that `predict` sees."""
    at = self._slot_times(self.times)
    z = (1 - at) * self.batch["latents"] + at * self.noise
    return self.times.cpu().numpy(), z.cpu().numpy()

  def predict(self) -> np.ndarray:
    """Output [b,n,p] of the network as it stands, not compiled."""
    with torch.no_grad():
      t, z = (torch.from_numpy(x).to(self.device) for x in self.times_and_noisy())
      return self.model(z, t, self.batch, self.attend).float().cpu().numpy()

  def step(self) -> float:
    """Draws times and noise, computes gradients, clips, updates weights and their average."""
    self.optimizer.zero_grad(set_to_none=True)
    loss = self.loss(torch.randn_like(self.noise), self._draw_times())
    loss.backward()
    parameters = list(self.model.parameters())
    if self.clip:
      nn.utils.clip_grad_norm_(parameters, self.clip, foreach=True)
    self.optimizer.step()
    with torch.no_grad():
      self.done += 1
      if self.width:
        share = 1 - (1 - 1 / self.done) ** (solve_exponent(self.width) + 1)
        torch._foreach_lerp_(self.average, parameters, share)
    return float(loss.detach())


def versions() -> dict[str, str]:
  return {"jax": jax.__version__, "torch": torch.__version__}
