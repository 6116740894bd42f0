"""Makes dit.npz: outputs and gradients of a whole DiT as torch computes them in float64.

  PYTHONPATH=tests/support python tests/goldens/make_dit_golden.py --out tests/goldens/dit.npz

Needs torch, which the project itself does not. Made with torch 2.13.0. The reference is
tests/support/torch_dit.py; models, parameters and clips are those of tests/support/dit_cases.py.
"""

import argparse

import dit_cases as cases
import numpy as np
import torch
import torch_dit

SECONDS = (0.5, 128.0)  # rotary periods; the test asks the model for the same


def run(case: str) -> dict[str, np.ndarray]:
  """Outputs by clip; of the gradients, norms and projections by parameter, and those of inputs."""
  p = {name: torch.tensor(v).double() for name, v in cases.make_parameters(case).items()}
  leaves = {name: value.requires_grad_() for name, value in p.items()}
  arrays: dict[str, np.ndarray] = {}
  inputs, total = {}, torch.zeros((), dtype=torch.float64)
  for number, clip in enumerate(cases.CLIPS):
    given = cases.make_inputs(case, number)
    z = inputs[f"z/{number}"] = torch.tensor(given["z"]).double().requires_grad_()
    states = given["states"]
    if states is not None:
      states = inputs[f"states/{number}"] = torch.tensor(states).double().requires_grad_()
    output = torch_dit.forward(
      leaves,
      z,
      torch.tensor(given["ids"]).long(),
      states,
      shape=clip.shape,
      patch=cases.PATCH,
      fps=clip.fps,
      given=clip.given * clip.patches // clip.shape[0],
      t=clip.t,
      heads=cases.HEADS,
      kind=cases.CASES[case]["mlp"],
      seconds=SECONDS,
    )
    arrays[f"output/{number}"] = output.detach().numpy()
    total = total + torch.sum(output * torch.tensor(given["cotangent"]).double())
  total.backward()
  for name, leaf in inputs.items():
    gradient = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
    arrays[f"gradient/{name}"] = gradient
  for name, leaf in leaves.items():
    arrays[f"norm/{name}"] = np.array(np.linalg.norm(leaf.grad.numpy()))
    arrays[f"projection/{name}"] = cases.project(name, leaf.grad.numpy())
  return {f"{case}/{name}": value for name, value in arrays.items()}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", required=True)
  out = parser.parse_args().out
  arrays = {name: value for case in cases.CASES for name, value in run(case).items()}
  np.savez_compressed(out, seconds=np.array(SECONDS), **arrays)


if __name__ == "__main__":
  main()
