"""Configs become objects, and what no object can be made of is refused in one line."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipeline.errors import BadInput
from experiments import common, demo
from sora_jax.build.attention import attention_backend
from sora_jax.build.dit import dit_settings, dit_task, flop_settings
from sora_jax.build.evaluation import held_out_hook
from sora_jax.build.program import FILL, _fill
from sora_jax.build.run import build_gradient, build_optimizer, build_schedule
from sora_jax.build.vae import clip_cost, vae_task
from sora_jax.models.text.encoder import describe
from sora_jax.models.text.registry import load_text_encoder
from sora_jax.train.spikes import SpikeSettings
from sora_jax.train.state import State
from sora_jax.train.task import Schedule, Waits


def schedule(**changes):
  every = dict(log_steps=1, checkpoint_steps=2, evaluate_steps=0, replica_check_steps=7)
  config = ConfigDict(dict(total_steps=3, keep=dict(checkpoints=4, period_steps=5)))
  config.profile = dict(first_step=3, steps=2)
  config.wait, config.spike = common.waits(step_seconds=7), dict(factor=3.0, window=9, most=1)
  config.every = every | {key: value for key, value in changes.items() if key in every}
  config.total_steps = changes.get("total_steps", 3)
  return build_schedule(config)


def test_schedule():
  wait, spike = Waits(step_seconds=7), SpikeSettings(3.0, 9, 1)
  assert schedule() == Schedule(3, 1, 2, 4, 5, 7, 3, 2, wait, spike)
  for name in ("total_steps", "log_steps", "checkpoint_steps"):
    with pytest.raises(BadInput, match=f"{name}=0 must be positive"):
      schedule(**{name: 0})
  with pytest.raises(BadInput, match="evaluate_steps=-1"):
    schedule(evaluate_steps=-1)


def test_refuses_widths_of_a_vae_on_several_devices():
  mesh = SimpleNamespace(shape=dict(tensor=2))
  with pytest.raises(BadInput, match="tensor=2 is not for a VAE, which has no heads"):
    vae_task(demo.get_config("vae"), None, mesh)


@pytest.mark.parametrize("steps", [0, 3, 8])
def test_refuses_microbatches_that_do_not_divide(steps):
  config = ConfigDict(dict(accumulate_steps=steps, data=dict(rows=8)))
  mesh = SimpleNamespace(shape=dict(data=2, fsdp=1))
  with pytest.raises(BadInput, match=f"accumulate_steps={steps} times 2 ranks .* data.rows=8"):
    build_gradient(config, mesh, None, None)


def attending(**changes):
  """A config's attention, and a mesh of made-up devices."""
  config = demo.get_config("dit").copy_and_resolve_references()
  config.unlock()
  config.model.update({key: value for key, value in changes.items() if key in config.model})
  config.data.slots = changes.get("slots", 1024)
  device = SimpleNamespace(
    platform=changes.get("platform", "cpu"),
    compute_capability=changes.get("capability", "9.0"),
    device_kind="a GPU",
  )
  return attention_backend(config, SimpleNamespace(devices=np.array([device])))


def test_the_attention_of_a_config():
  assert attending() == "blocked"
  assert attending(platform="tpu", slots=600_000) == "splash"
  assert attending(platform="gpu", attention_backend="tokamax", dtype="bfloat16") == "tokamax"
  with pytest.raises(BadInput, match="data.slots=700000 is above the 655360 of splash"):
    attending(platform="tpu", slots=700_000)
  with pytest.raises(BadInput, match="'tokamax' is for Hopper and Blackwell GPUs, and this one"):
    attending(platform="gpu", attention_backend="tokamax", capability="8.0")
  with pytest.raises(BadInput, match="'tokamax' takes bfloat16, and model.dtype=float32"):
    attending(platform="gpu", attention_backend="tokamax", dtype="float32")


def test_widths_come_from_latents_and_text():
  model = dict(width=64, depth=2, heads=2, mlp="gelu", mlp_ratio=4.0, dtype="float32")
  model |= dict(param_dtype="float32")
  model |= dict(pooled_caption=True, rotary_seconds=(2.0, 64.0), zero_init=True, patch=(2, 3, 1))
  config = ConfigDict(dict(model=model))
  text = describe(load_text_encoder("bytes", None))
  settings = dit_settings(config, latent_channels=5, text=text)
  assert settings["patch_dim"] == 5 * 2 * 3 * 1 and settings["state_width"] == text["width"] == 0
  assert settings["vocabulary"] == text["vocabulary"] and "patch" not in settings
  assert flop_settings(settings)["hidden"] == 256


def test_optimizer_keeps_the_decay_of_the_average_apart():
  settings = dict(name="adamw", lr=0.1, schedule="constant", warmup_steps=0, ema_decay=0.75)
  settings |= dict(more_ema_decays=(0.5,), ema_width=0.0, more_ema_widths=(0.1,))
  settings |= dict(decay_steps=0, min_lr_ratio=0.0, weight_decay=0.0, clip_norm=1.0)
  settings |= dict(clip_sigmas=0.0, clip_decay=0.99, momentum_dtype="float32")
  settings |= dict(variance_dtype="float32")
  settings |= dict(b1=0.9, b2=0.9, eps=1e-8)
  config = ConfigDict(dict(optim=settings, total_steps=10))
  optimizer, averages = build_optimizer(config)
  assert list(averages) == ["ema", "0.1", "0.5"] and hasattr(optimizer, "update")
  config.optim.more_ema_decays = (0.75,)
  with pytest.raises(BadInput, match=r"more_ema_decays=\(0.75,\) have one twice"):
    build_optimizer(config)
  config.optim.more_ema_decays = ()
  config.optim.name = "sgd"
  with pytest.raises(BadInput, match="name='sgd'"):
    build_optimizer(config)


def test_cost_of_a_clip():
  """Three passes, each at least its projections into and out of 24 latents."""
  codec = dict(name="vae", widths=(16,), blocks=(1,), strides=((4, 8),), taps=2)
  codec |= dict(latent_channels=4, dtype="float32")
  cost = clip_cost(codec, ConfigDict(dict(frames=9, height=32, width=16)))
  assert cost["tokens_per_clip"] == 24
  projections = 2 * 24 * (4 * 8 * 8 * 3) * 16 * 2
  assert 3 * projections < cost["flops_per_clip"] < 30 * projections


def test_refuses_captions_whose_states_are_not_there():
  """Rather than train on zeros in their place."""
  text = dict(name="minilm", width=384, vocabulary=30522)
  dataset = SimpleNamespace(path="lat", meta=dict(texts=dict(minilm=text)), latent_channels=8)
  dataset.tokenizers, dataset.index = ("minilm",), dict(caption_offsets=np.array([0, 1, 2]))
  dataset.state_width = lambda name: None
  config = demo.get_config("dit")
  with pytest.raises(BadInput, match="lat has captions but no states of its encoder minilm"):
    dit_task(config, [dataset], None)


@pytest.mark.parametrize(
  ("clips", "changes", "fill", "bound"),
  [
    (((100, 1.0),), dict(slots=1000, segments=16, caption_slots=500), FILL, "packing"),
    (((990, 1.0),), dict(slots=1000, segments=16, caption_slots=500), 0.99, "packing"),
    (((100, 1.0),), dict(slots=1000, segments=4, caption_slots=500), 0.4, "data.segments"),
    # 20 caption tokens of every clip: 60 of them are 3 clips.
    (((100, 1.0),), dict(slots=1000, segments=16, caption_slots=60), 0.3, "data.caption_slots"),
    # Half of the tokens in clips of 50, half in clips of 200: 12.5 clips in a full row.
    (((50, 1), (200, 1)), dict(slots=1000, segments=5, caption_slots=900), 0.4, "data.segments"),
  ],
)
def test_a_row_is_planned_as_full_as_its_capacities_allow(clips, changes, fill, bound):
  config = ConfigDict({"data": changes, "plan": {"caption_tokens": 20}})
  shares = sum(share for _, share in clips)
  mean = sum(share * tokens for tokens, share in clips) / shares
  found, by = _fill(config, mean, sum(share / tokens for tokens, share in clips) / shares)
  assert found == pytest.approx(fill) and by == bound


def test_held_out_clips_judge_the_average():
  """That is what is sampled and exported; the parameters only where no average is kept."""
  config = ConfigDict(dict(every=dict(evaluate_steps=7)))
  hook = held_out_hook(config, lambda params: {"score": params})
  assert (hook.name, hook.steps) == ("held_out", 7)
  assert hook.run(7, State(7, "parameters", "average", (), {"0.1": "another"})) == {
    "score": "average"
  }
  assert hook.run(7, State(7, "parameters", {}, ()))["score"] == "parameters"
