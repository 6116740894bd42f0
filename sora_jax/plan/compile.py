"""Compiles a train step for a pod that is not there, and reads what the compiler made of it."""

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sora_jax.plan.hlo import Module, parse
from sora_jax.plan.memory import Memory, divide_heap, read_heap, shard_bytes


class Refused(Exception):
  """The compiler refuses the program: it needs more memory than a device has.

  Attributes:
    needs: bytes, as far as the compiler says.
  """

  def __init__(self, text: str, needs: float | None):
    super().__init__(text)
    self.needs = needs


class CompilerFailed(Exception):
  """The compiler breaks on the program: a fault of its own, in one line."""

  exit_code = 1


# Without a GPU at hand XLA cannot try its Triton products, and takes one that may not compile: then
# all are cuBLAS'. What a run uses, autotuning decides on the spot.
CHOICES = {"tpu": {}, "cuda": {"xla_gpu_enable_triton_gemm": False}}


class Program(NamedTuple):
  """A train step to compile, from `build`.

  Attributes:
    lower: `() -> jax.stages.Lowered`.
    state, batch: its arguments, as `jax.ShapeDtypeStruct`s with shardings.
    depth: layers of the model.
  """

  lower: Any
  state: Any
  batch: Any
  depth: int

  def held(self) -> dict[str, int]:
    """Bytes of a device that are there between steps, and a batch."""
    state = self.state
    return {
      "parameters": shard_bytes(state.params),
      "averages": shard_bytes((state.ema, state.averages)),
      "optimiser": shard_bytes(state.opt),
      "batch": shard_bytes(self.batch),
    }


class Compiled(NamedTuple):
  """What became of it. `module` is the program as scheduled; `seconds` to trace and compile."""

  module: Module
  memory: Memory
  seconds: float


def compile_program(
  program: Program, platform: str, attend: Callable[[Callable[[], Any]], Any] = lambda work: work()
) -> Compiled:
  """Compiles for a platform, nothing runs.

  Args:
    attend: calls what compiles, which takes minutes and hears no signal, and returns its result.
  Raises:
    Refused: it does not fit, and the compiler gives up.
    CompilerFailed: any other reason of the compiler's.
  """
  begin = time.perf_counter()
  # Whoever interrupts leaves a compiler that still writes: what cannot be removed is left.
  with tempfile.TemporaryDirectory(prefix="sora-plan-", ignore_cleanup_errors=True) as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, **CHOICES[platform]}
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)  # it reads nothing that has no device
    try:
      compiled = attend(lambda: program.lower().compile(compiler_options=options))
    except Exception as error:
      text = str(error)
      if "RESOURCE_EXHAUSTED" in text and "hbm" in text.lower():
        raise Refused(text, _needed(text)) from error
      if not isinstance(error, jax.errors.JaxRuntimeError):
        raise
      raise CompilerFailed(f"plan: the compiler fails: {text.splitlines()[0][:300]}") from error
    finally:
      jax.config.update("jax_enable_compilation_cache", cached)
    seconds = time.perf_counter() - begin
    module = parse(compiled.as_text())
    total, values = read_heap(Path(folder))
  heap = divide_heap(total, values, module, program.depth)
  held, counted = program.held(), compiled.memory_analysis()
  # What layouts add to the arguments, the program itself, and results that replace no argument.
  others = counted.argument_size_in_bytes - sum(held.values())
  others += counted.generated_code_size_in_bytes
  others += counted.output_size_in_bytes - counted.alias_size_in_bytes
  return Compiled(
    module,
    Memory({**held, **heap, "program": max(0, others)}, counted.host_temp_size_in_bytes),
    seconds,
  )


def _needed(text: str) -> float | None:
  """Bytes that a compiler says a program needs, of its message."""
  found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", text) or re.search(
    r"required for [\w ]+\(([\d.]+)([KMGT])\)", text
  )
  return float(found[1]) * 1024 ** (" KMGT".index(found[2])) if found else None
