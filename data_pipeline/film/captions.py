"""Captions of a film, written by hand: one line of JSON for every part of it."""

import json
import math
from pathlib import Path

from data_pipeline.errors import BadInput
from data_pipeline.text_lines import read_lines

_FACTS = ("film", "attribution", "licence", "sha256")  # what the first line says


def read_captions(path: Path, sha256: str) -> dict:
  """The side-car of a film, as `curate.side_cars` reads it, out of a file of captions.

  The first line of the file is an object with `film`, `attribution`, `licence`, and `sha256` of
  the film; each further line is a span, with `start_seconds`, `end_seconds` and `captions` (a list)
  of a part of it. Spans are in order and do not overlap. Every clip's licence names whom to credit.

  Raises:
    BadInput: no such file, a line of another form, or captions of another film.
  """
  try:
    lines = [json.loads(line) for line in read_lines(path, "film: captions=") if line]
    facts = {name: str(lines[0][name]) for name in _FACTS}
    spans = [_read_span(line) for line in lines[1:]]
  except BadInput:
    raise
  except (ValueError, TypeError, KeyError, IndexError) as error:
    raise BadInput(
      f"film: captions={path} has a line of another form ({error!r}). Each but the first holds "
      f"start_seconds, end_seconds and captions; the first {', '.join(_FACTS)}. Correct it."
    ) from error
  for before, after in zip(spans, spans[1:], strict=False):
    if after["start_seconds"] < before["end_seconds"]:
      raise BadInput(
        f"film: start_seconds={after['start_seconds']} in {path} lies before the "
        f"end_seconds={before['end_seconds']} of the line above it. Put them in order."
      )
  if facts["sha256"] != sha256:
    raise BadInput(
      f"film: captions={path} are of the film {facts['sha256']}, not of sha256={sha256}. "
      "Name the captions of this film."
    )
  licence = f"{facts['licence']}: {facts['film']}, {facts['attribution']}"
  return {"licence": licence, "spans": spans}


def _read_span(line: dict) -> dict:
  """One line of captions. Raises ValueError for times or texts that make no sense."""
  start, end = float(line["start_seconds"]), float(line["end_seconds"])
  if not 0 <= start < end < math.inf:
    raise ValueError(f"start_seconds={start}, end_seconds={end} is no span")
  texts = line["captions"]
  if not texts or not isinstance(texts, list) or not all(t and isinstance(t, str) for t in texts):
    raise ValueError(f"captions={texts!r} is no list of texts")
  return {"start_seconds": start, "end_seconds": end, "captions": texts}
