"""The two Beam graphs of a curation. The only file that imports Apache Beam.

    sources ─▶ cut ─┬─▶ prints ─▶ near pairs ─▶ which clips go ─┐
                    └──────────────────────────────────────────▶ decide (captions)
    sources ─▶ clips that stay ─▶ grouped by part ─▶ write

What travels is names, numbers and hashes, never frames: those stay in the work folder, which all
workers must reach under the same path (a disk, or a mounted bucket).
"""

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline import messages
from data_pipeline.curate import copies
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.spool import Work, raise_reported, read_sources
from data_pipeline.curate.workers import Cutter, Decider, PartWriter
from data_pipeline.errors import BadInput

_BATCH = 64  # sources whose clips are captioned together
# Beam's worker, which says no more on stderr than this process does.
_WORK = (
  "import sys; sys.path.insert(0, {!r}); "
  "from data_pipeline import messages; messages.begin_worker(); "
  "from apache_beam.runners.worker import sdk_worker_main; sdk_worker_main.main(sys.argv)"
)
_ROOT = str(Path(__file__).parents[2])
_THREADS = "multi_threading"  # a mode of Beam's direct runner


def _beam():
  """Seconds of imports, for those alone who curate. Beam's warnings are of its own internals."""
  level, quiet = logging.root.manager.disable, not messages.is_verbose()
  if quiet:
    logging.disable(logging.WARNING)
  try:
    import apache_beam
  except ImportError as error:
    raise BadInput(
      f"curate: apache_beam is missing ({error}). pip install 'sora_jax[data]'"
    ) from error
  finally:
    logging.disable(level)
  if quiet:
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
  return apache_beam


def read_options(arguments: Sequence[str], workers: int):
  """Beam's options: its direct runner with processes on this machine, unless others are given.

  Args:
    arguments: `--name=value`, Beam's own and those of a runner.
    workers: processes on this machine; 1 runs in this one.
  Raises:
    BadInput: an option that Beam does not know, or a bad value.
  """
  _beam()
  from apache_beam.options.pipeline_options import PipelineOptions

  mode = "multi_processing" if workers > 1 else "in_memory"
  # What DirectRunner ends in; by that name Beam would first fetch a binary of another runner.
  own = ["--runner=FnApiRunner", f"--direct_num_workers={workers}"]
  own.append(f"--direct_running_mode={mode}")
  is_other = any(argument.startswith("--runner") for argument in arguments)
  quiet = "--default_sdk_harness_log_level=ERROR"
  given = [quiet, *arguments] if is_other else [quiet, *own, *arguments]
  try:
    options = PipelineOptions(given)
    known = options.get_all_options(drop_default=True)
  except SystemExit as stop:
    raise BadInput(f"curate: Beam does not take the options {given}. See --help.") from stop
  unknown = [a for a in arguments if a.lstrip("-").partition("=")[0].replace("-", "_") not in known]
  if unknown:
    raise BadInput(f"curate: {' '.join(unknown)} is no option of ours or of Beam's. Leave it out.")
  return options


def analyse(
  options, work: Work, settings: Settings, *, chat, paths: Sequence[str], there: Sequence[str]
) -> None:
  """Cuts all sources and decides upon their clips; leaves spools and decisions.

  Args:
    options: of Beam.
    work, settings, chat: see `Decider`.
    paths: files of sources.
    there: tables of clips that new ones are compared with, and that stay.
  """
  beam = _beam()
  from apache_beam.pvalue import AsDict

  def build(p) -> None:
    cut = (
      p
      | "files" >> beam.Create(list(paths))
      | "sources" >> beam.FlatMap(read_sources)
      | "spread" >> beam.Reshuffle()
      | "cut" >> beam.Map(Cutter(settings, work).cut)
    )
    gone = AsDict(_find_copies(beam, p, cut, settings, there))
    _ = (
      cut
      | "settle" >> beam.Reshuffle()
      | "batch" >> beam.BatchElements(min_batch_size=1, max_batch_size=_BATCH)
      | "decide" >> beam.FlatMap(Decider(settings, work, chat).decide, gone)
    )

  _run(beam, options, work, build)


def _find_copies(beam: Any, p, cut, settings: Settings, there: Sequence[str]) -> Any:
  """(source, its clips that go)."""
  if not settings.near.remove:
    return p | "no copies" >> beam.Create([], reshuffle=False)
  new = cut | "prints" >> beam.FlatMap(copies.prints_of)
  old = p | "tables" >> beam.Create(list(there)) | "there" >> beam.FlatMap(copies.prints_there)
  return (
    (new, old)
    | beam.Flatten()
    | "keyed" >> beam.FlatMap(copies.keyed)
    | "by key" >> beam.GroupByKey()
    | "near" >> beam.FlatMap(copies.find_near, settings.near)
    | "by better" >> beam.GroupByKey()
    | "stars" >> beam.Map(_at_one_place)
    | "all stars" >> beam.GroupByKey()
    | "resolve" >> beam.FlatMap(_resolve)
  )


def _at_one_place(star):
  better, worse = star
  return None, (better, list(worse))


def _resolve(group):
  return copies.resolve(group[1])


def write(options, work: Work, writer: PartWriter, *, paths: Sequence[str]) -> None:
  """Writes the parts that are missing.

  Args:
    options: of Beam.
    work: of the job.
    writer: which parts, and how.
    paths: files of sources.
  """
  beam = _beam()
  cutter = Cutter(writer.settings, work)

  def build(p) -> None:
    _ = (
      p
      | "files" >> beam.Create(list(paths))
      | "sources" >> beam.FlatMap(read_sources)
      | "spools" >> beam.Map(cutter.cut)
      | "clips" >> beam.FlatMap(writer.refs)
      | "parts" >> beam.GroupByKey()
      | "write" >> beam.Map(writer.write)
    )

  _run(beam, options, work, build)


def _run(beam, options, work: Work, build) -> None:
  """Runs a graph to its end. Raises what a worker left word of, as it was."""
  pipeline = beam.Pipeline(runner=_quiet_processes(options), options=options)
  build(pipeline)
  try:
    result = pipeline.run()
    state = result.wait_until_finish()
  except Exception:
    raise_reported(work)
    raise
  raise_reported(work)
  if state not in (None, beam.runners.runner.PipelineState.DONE):
    raise RuntimeError(f"curate: the runner ended the job as {state}.")


def _quiet_processes(options):
  """Beam's direct runner with processes that `_WORK` starts, where it would start its own.

  Returns:
    None where the options ask for another runner, or for one process.
  """
  from apache_beam.options.pipeline_options import DirectOptions, StandardOptions, WorkerOptions
  from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
  from apache_beam.transforms.environments import SubprocessSDKEnvironment

  if messages.is_verbose():
    options.view_as(WorkerOptions).default_sdk_harness_log_level = "INFO"
  direct = options.view_as(DirectOptions)
  is_ours = options.view_as(StandardOptions).runner == "FnApiRunner"
  if not is_ours or direct.direct_num_workers == 1 or direct.direct_running_mode == _THREADS:
    return None
  direct.direct_running_mode = "in_memory"  # else the runner takes processes of its own
  command = shlex.join([sys.executable, "-c", _WORK.format(_ROOT)])
  return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))
