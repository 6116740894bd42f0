"""A trace of some steps, and the program that they run, in the workdir of a run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax


class Profiler:
  """Traces `steps` steps from the `first` of a session on; told of each step that is done.

  As a context it ends a trace that a stop cuts short, and says when none was made.
  """

  def __init__(self, folder: Path, *, first: int, steps: int):
    self._folder, self._first, self._steps = folder, first, steps
    self._seen, self._running = 0, False
    self._left = steps > 0

  def __call__(self, step: int) -> None:
    """Step `step` is done, the next may be running already."""
    self._seen += 1
    if self._left and self._seen == self._first:
      folder = str(self._folder / f"step-{step}")
      jax.profiler.start_trace(folder, create_perfetto_trace=True)
      self._running, self._left = True, False
    elif self._running and self._seen == self._first + self._steps:
      self._end()

  def _end(self) -> None:
    jax.profiler.stop_trace()
    self._running = False
    print(
      f"train: trace and program are in {self._folder} (xprof {self._folder}, or the"
      " perfetto_trace of ui.perfetto.dev)",
      file=sys.stderr,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._running:
      self._end()
    elif self._left:
      print(
        f"train: no trace: the session did {self._seen} steps, profile.first_step={self._first}.",
        file=sys.stderr,
      )


def keep_program(step: Callable, folder: Path) -> Callable:
  """A jitted step that compiles ahead of its first call, and writes what became of it.

  Into `folder`: `step.stablehlo.txt` (as traced), `step.hlo.txt` (as it runs), `memory.json`
  (bytes of a device).
  """
  compiled = None

  def run(*args):
    nonlocal compiled
    if compiled is None:
      lowered = step.lower(*args)
      compiled = lowered.compile()
      folder.mkdir(parents=True, exist_ok=True)
      (folder / "step.stablehlo.txt").write_text(lowered.as_text())
      (folder / "step.hlo.txt").write_text(compiled.as_text())
      (folder / "memory.json").write_text(json.dumps(_memory(compiled), indent=1) + "\n")
    return compiled(*args)

  return run


def _memory(compiled) -> dict[str, int]:
  analysis = compiled.memory_analysis()
  names = ("argument", "output", "alias", "temp", "generated_code")
  return {f"{name}_bytes": int(getattr(analysis, f"{name}_size_in_bytes")) for name in names}
