"""The two Beam graphs of a curation. `gather` and this file alone import Apache Beam.

    sources ─▶ cut ─┬─▶ prints ─▶ near pairs ─▶ which clips go ─┬─▶ by batch ─▶ decide (captions)
                    └───────────────────────────────────────────┘
    sources ─▶ clips that stay ─▶ grouped by part ─▶ write

What travels is names, numbers and hashes, never frames: those stay in the work folder, which all
workers must reach under the same path (a disk, or a mounted bucket).

The graphs keep to what every runner does alike: one output, `FlatMap`, `Map`, groups by key. Beam's
DaskRunner computes a side input inside of each task that reads it, loses what a bundle yields at
its end (`BatchElements`), computes the last output alone, and ignores `Reshuffle`.
"""

import io
import logging
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from data_pipeline import hashing, messages
from data_pipeline.curate import cluster, copies
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.spool import Page, Work, raise_reported, read_sources
from data_pipeline.curate.spool_writer import Summary
from data_pipeline.curate.workers import Cutter, Decider, PartWriter
from data_pipeline.errors import BadInput

_DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
_BATCH = 64  # sources, about, whose clips are captioned together
_BATCHES = 16  # that there are at least, with as many sources
_TASKS = 16, 256  # of a stage that no frames are read in, at least and at most; of Dask alone
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
  own, runner = ["--default_sdk_harness_log_level=ERROR"], _runner(arguments)
  if not runner:
    mode = "multi_processing" if workers > 1 else "in_memory"
    # What DirectRunner ends in; by that name Beam would first fetch a binary of another runner.
    own += ["--runner=FnApiRunner", f"--direct_running_mode={mode}"]
  elif runner == _DASK:
    _import_dask()
    if not any(a.startswith(("--dask_npartitions", "--dask_partition_size")) for a in arguments):
      own.append("--dask_partition_size=1")  # a page of sources is a task
    arguments = [*arguments, f"--runner={_DASK}"]  # Beam does not know it by its short name
  if not runner or runner == _DASK:
    own.append(f"--direct_num_workers={workers}")
  options, unknown = _parse([*own, *arguments])
  if unknown:
    raise BadInput(f"curate: {' '.join(unknown)} is no option of ours or of Beam's. Leave it out.")
  return options


def _parse(arguments: Sequence[str]) -> tuple[Any, list[str]]:
  """Beam's options, and what Beam does not know. Raises BadInput: a bad value."""
  from apache_beam.options.pipeline_options import PipelineOptions

  parsers: list[Any] = []
  said = io.StringIO()
  try:
    with redirect_stderr(said):  # a hundred lines of usage
      options = PipelineOptions(list(arguments))
      options.get_all_options(add_extra_args_fn=parsers.append)
      return options, parsers[0].parse_known_args(list(arguments))[1]
  except SystemExit as stop:
    why = said.getvalue().strip().rpartition("error: ")[2]
    raise BadInput(f"curate: Beam does not take its options ({why}). Correct them.") from stop


def _runner(arguments: Sequence[str]) -> str | None:
  """The runner that is asked for."""
  from apache_beam.options.pipeline_options import StandardOptions

  name = _parse(arguments)[0].view_as(StandardOptions).runner
  return _DASK if name and name.lower() in ("dask", "daskrunner") else name


def _import_dask() -> None:
  """Makes Beam know the options of its DaskRunner."""
  try:
    import data_pipeline.curate.gather  # noqa: F401
  except ImportError as error:
    raise BadInput(
      f"curate: --runner=DaskRunner: a package is missing ({error}). pip install 'sora_jax[dask]'"
    ) from error


def analyse(
  options, work: Work, settings: Settings, *, chat, pages: Sequence[Page], there: Sequence[str]
) -> None:
  """Cuts all sources and decides upon their clips; leaves spools and decisions.

  Args:
    options: of Beam.
    work, settings, chat: see `Decider`.
    pages: of the sources.
    there: tables of clips that new ones are compared with, and that stay.
  """
  beam = _beam()
  sources = sum(page.count for page in pages)
  batches = max(-(-sources // _BATCH), min(sources, _BATCHES))

  def build(p) -> None:
    cut = (
      p
      | "pages" >> beam.Create([tuple(page) for page in pages])
      | "sources" >> beam.FlatMap(read_sources)
      | "spread" >> beam.Reshuffle()
      | "cut" >> beam.Map(Cutter(settings, work).cut)
    )
    cut = _gather(options, cut, batches)
    gone = _find_copies(beam, p, cut, settings, there)
    cut = cut | "by source" >> beam.Map(_by_source)
    _ = (
      [some | f"batch {i}" >> beam.Map(_batched, batches) for i, some in enumerate((cut, gone))]
      | "batches" >> beam.CoGroupByKey()
      | "decide" >> beam.FlatMap(_decide, Decider(settings, work, chat))
    )

  _run(beam, options, work, build, (chat.settings.api_key_variable,) if chat else ())


def _by_source(summary: Summary) -> tuple[str, Summary]:
  return summary["source"]["name"], summary


def _batched(row: tuple[str, Any], batches: int) -> tuple[int, tuple[str, Any]]:
  """Something known of a source, with the batch that the source falls into."""
  draw = hashing.uniform(hashing.hash_text("batch"), hashing.hash_text(row[0]))
  return int(draw * batches), row


def _decide(group: tuple[int, tuple[Iterable, Iterable]], decider: Decider) -> Iterator[str]:
  _, (cut, gone) = group
  summaries = dict(cut)  # by source: whatever the order, and were one cut twice
  yield from decider.decide([summaries[name] for name in sorted(summaries)], dict(gone))


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


def write(options, work: Work, writer: PartWriter, *, pages: Sequence[Page]) -> None:
  """Writes the parts that are missing.

  Args:
    options: of Beam.
    work: of the job.
    writer: which parts, and how.
    pages: of the sources.
  """
  beam = _beam()
  cutter = Cutter(writer.settings, work)

  def build(p) -> None:
    clips = (
      p
      | "pages" >> beam.Create([tuple(page) for page in pages])
      | "sources" >> beam.FlatMap(read_sources)
      | "spools" >> beam.Map(cutter.cut)
      | "clips" >> beam.FlatMap(writer.refs)
    )
    clips = _gather(options, clips, 4 * len(writer.missing))  # that few meet in one
    _ = clips | "parts" >> beam.GroupByKey() | "write" >> beam.Map(writer.write)

  _run(beam, options, work, build)


def _gather(options, some, tasks: int) -> Any:
  """Lets Dask go on with as few tasks as the rest needs; other runners see to it themselves."""
  if not _is_dask(options):
    return some
  from data_pipeline.curate.gather import Gather

  least, most = _TASKS
  return some | "gather" >> Gather(min(max(tasks, least), most))


def _run(beam, options, work: Work, build, keys: tuple[str, ...] = ()) -> None:
  """Runs a graph to its end. Raises what a worker left word of, as it was."""
  with _engine(options, cluster.Needs(str(work.spools), load, keys)):
    pipeline = beam.Pipeline(runner=_quiet_processes(options), options=options)
    build(pipeline)
    try:
      result = pipeline.run()
      try:
        state = result.wait_until_finish()
        cluster.check_done(result)
      finally:
        cluster.leave(result)
    except Exception as error:
      raise_reported(work)
      cluster.explain(error)
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


def _engine(options, needs: cluster.Needs) -> AbstractContextManager:
  """Makes ready the place where a graph runs, while it does: a cluster of Dask."""
  if not _is_dask(options):
    return nullcontext()
  from apache_beam.options.pipeline_options import DirectOptions

  from data_pipeline.curate.gather import DaskOptions

  dask = options.view_as(DaskOptions)
  workers = options.view_as(DirectOptions).direct_num_workers
  return cluster.joined(dask, workers, needs)


def _is_dask(options) -> bool:
  from apache_beam.options.pipeline_options import StandardOptions

  return options.view_as(StandardOptions).runner == _DASK


def load() -> None:
  """Imports Beam, as quietly on a worker as here."""
  _beam()
