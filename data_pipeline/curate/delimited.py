"""Reads tables with commas, semicolons or tabs: lists of videos as .csv and .tsv.

No row swallows another: what cannot be read for certain is BadInput, with line and column. Rows
have as many cells as the header; empty ones may be too many.
  .csv    the delimiter is , ; or a tab, whichever makes a column that names videos. Cells are
          quoted as RFC 4180 says.
  .tsv    cells are taken as they stand, quotes too, unless the file is clearly quoted: its header
          is, a cell holds doubled quotes, or only quotes make rows of it.
"""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from data_pipeline.curate.columns import find_roles
from data_pipeline.curate.rows import Row, find_roles_of, open_text
from data_pipeline.errors import BadInput

_MOST_BYTES = 1 << 24  # of a cell
_DELIMITERS = {"csv": ",;\t", "tsv": "\t,;"}


class _Form(NamedTuple):
  """The form in which a table is written."""

  delimiter: str
  is_quoted: bool
  is_spaced: bool  # blanks follow the delimiters
  header: tuple[str, ...]


class _Lines:
  """Passes lines on, and keeps those of the record that is being read."""

  def __init__(self, path: str, lines: Iterable[str]):
    self._path, self._lines = path, iter(lines)
    self.count, self.held = 0, []

  def __iter__(self) -> "_Lines":
    return self

  def __next__(self) -> str:
    line = next(self._lines)
    self.count += 1
    if "\0" in line:
      raise BadInput(f"curate: {self._path}: line {self.count} holds a NUL byte. Save it as UTF-8.")
    self.held.append(line)
    return line


def read_table(path: str) -> Iterator[Row]:
  """Goes through the rows of a table, without its header.

  Raises:
    BadInput: it cannot be read for certain.
  """
  form = _find_form(path)
  if form.delimiter == "\t" and not form.is_quoted:
    records = _plain_records(path)
  else:
    records = _quoted_records(path, form)
  names: tuple[str, ...] = ()
  for line, cells in records:
    if not any(cell.strip() for cell in cells) or (not names and _separator(cells)):
      continue
    if names:
      yield Row(f"{path}: line {line}", names, _fit(f"{path}: line {line}", cells, names))
    else:
      names = tuple(cells)


def read_header(path: str) -> tuple[str, ...]:
  """The names in the header of a table; () if none of them names videos."""
  try:
    return _find_form(path).header
  except BadInput:
    return ()


def _find_form(path: str) -> _Form:
  with open_text(path) as text:
    lines = (line for line in _Lines(path, text) if line.strip())
    first = next(lines, "")
    said = _separator([first.strip("\r\n")])
    first = next(lines, "") if said else first
  for delimiter in said or _DELIMITERS[path.lower().rpartition(".")[2]]:
    header = _split(first, delimiter)
    if said or find_roles_of(path, header).names_video:
      break
  else:
    raise BadInput(
      f"curate: {path}: line 1 names no column of files: {first.strip()[:120]!r}. Give a header "
      "with a column path (or file_name, video, video_id, url)."
    )
  is_spaced = len(header) > 1 and all(name[:1] == " " for name in first.split(delimiter)[1:])
  is_quoted = delimiter != "\t" or _is_quoted(path, first)
  return _Form(delimiter, is_quoted, is_spaced, header)


def _separator(cells: Sequence[str]) -> str:
  """Reads Excel's line "sep=;"."""
  found = re.fullmatch(r"\ufeff?sep=(.)", ",".join(cells))
  return found[1] if found else ""


def _split(line: str, delimiter: str) -> tuple[str, ...]:
  return tuple(next(csv.reader([line], delimiter=delimiter), ()))


def _plain_records(path: str) -> Iterator[tuple[int, list[str]]]:
  """(line number, cells) of a table without quotes."""
  with open_text(path) as text:
    lines = _Lines(path, text)
    for content in lines:
      lines.held.clear()
      yield lines.count, content.rstrip("\r\n").split("\t")


def _quoted_records(path: str, form: _Form) -> Iterator[tuple[int, list[str]]]:
  """(number of the first line, cells) of a table with quotes."""
  csv.field_size_limit(max(csv.field_size_limit(), _MOST_BYTES))
  with open_text(path) as text:
    lines = _Lines(path, text)
    reader = csv.reader(
      lines, delimiter=form.delimiter, strict=True, skipinitialspace=form.is_spaced
    )
    while True:
      lines.held.clear()
      line = lines.count + 1
      try:
        cells = next(reader, None)
      except csv.Error as error:
        raise BadInput(_explain(path, line, lines.held, form, str(error))) from error
      if cells is None:
        return
      if len(lines.held) > 1 and (swallowed := _swallowed(lines.held, cells, form)):
        raise BadInput(
          f"curate: {path}: line {line}, {_column(_broken(cells), form)}: its cell goes on to line "
          f"{lines.count} and holds what looks like rows ({swallowed[:60]!r}). Close the quotes, "
          "and double those inside."
        )
      yield line, cells


def _swallowed(held: Sequence[str], cells: Sequence[str], form: _Form) -> str:
  """The second line of a record that looks like a row by itself; "" for none.

  One line does in a record that is whole: the one with its video.
  """
  roles = find_roles(form.header)
  place = next(iter((*roles.paths, *roles.ids, *roles.urls)), 0)
  own = cells[place].strip() if place < len(cells) else ""
  found = []
  for line in held if len(form.header) > 1 else ():
    alone = line.strip("\r\n").split(form.delimiter)
    if len(alone) == len(form.header) and _is_like(alone[place].strip().strip('"'), own):
      found.append(line.strip())
  return found[1] if len(found) > 1 else ""


def _is_like(name: str, own: str) -> bool:
  """Tells whether a name may be that of another video, beside a video's own name."""
  ending, own_ending = (os.path.splitext(one)[1].lower() for one in (name, own))
  if " " in name:
    return " " in own and ending == own_ending != ""
  return bool(re.fullmatch(r"\.[a-z]\w{1,4}", ending)) or (not own_ending and len(name) == len(own))


def _broken(cells: Sequence[str]) -> int:
  return next((i for i, cell in enumerate(cells) if "\n" in cell or "\r" in cell), 0)


def _column(place: int, form: _Form) -> str:
  name = form.header[place].strip() if place < len(form.header) else str(place + 1)
  return f"column {name!r}"


def _explain(path: str, line: int, held: Sequence[str], form: _Form, error: str) -> str:
  """Says what is wrong with a record that csv cannot read, and where."""
  offset, place = _open_cell("".join(held), form)
  return (
    f"curate: {path}: line {line + offset}, {_column(place, form)}: its quotes do not match "
    f"({error}). Close them, and double those inside a cell."
  )


def _open_cell(text: str, form: _Form) -> tuple[int, int]:
  """(lines before it, number of the cell) of the first cell whose quotes do not match."""
  mark = re.escape(form.delimiter)
  blanks = " *" if form.is_spaced else ""
  line = place = at = 0
  while at < len(text):
    quoted = re.compile(rf'{blanks}("(?:[^"]|"")*"?)').match(text, at)
    if quoted:
      at, lines = quoted.end(), _breaks(quoted[1])
      is_closed = len(quoted[1]) > 1 and quoted[1].count('"') % 2 == 0
      if not is_closed or text[at : at + 1] not in ("", "\r", "\n", form.delimiter):
        return line, place
      line += lines
    else:
      at = re.compile(rf"[^\r\n{mark}]*").match(text, at).end()  # pyright: ignore
    ended = re.compile(rf"(\r\n|\r|\n)|{mark}|\Z").match(text, at)
    line, place = (line + 1, 0) if ended and ended[1] else (line, place + 1)
    at = ended.end() if ended else at + 1
  return 0, 0


def _fit(where: str, cells: list[str], names: tuple[str, ...]) -> list[str]:
  """The cells of a row, as many as the header has."""
  missing = [name.strip() for name in names[len(cells) :] if name.strip()]
  if missing:
    raise BadInput(
      f"curate: {where} ends before column {missing[0]!r}: it has {len(cells)} cells, the header "
      f"{len(names)}. Is a caption broken over lines, without quotes?"
    )
  if any(cell.strip() for cell in cells[len(names) :]):
    raise BadInput(
      f"curate: {where}, column {names[-1].strip()!r}: {len(cells)} cells, the header has "
      f"{len(names)} ({cells[len(names)].strip()[:40]!r} is beyond it). Put quotes around a cell "
      "with a delimiter in it."
    )
  return [*cells, *[""] * (len(names) - len(cells))][: len(names)]


def _is_quoted(path: str, first: str) -> bool:
  """Tells whether a table with tabs is written with quotes."""
  header = first.strip("\r\n").split("\t")
  evidence = {"header"} if all(re.fullmatch('".+"', name) for name in header) else set()
  is_ragged = has_quotes = False
  for _, cells in _plain_records(path):
    if any(cells):
      is_ragged |= len(cells) != len(header)
      quoted = [cell for cell in cells if cell[:1] == '"']
      has_quotes |= bool(quoted)
      if any(len(c) > 2 and '""' in c[1:-1] and re.fullmatch('"(?:[^"]|"")*"', c) for c in quoted):
        evidence.add("doubled")
  if not has_quotes:
    return False
  lines, widths = 0, set()
  form = _Form("\t", True, False, _split(first, "\t"))
  try:
    for _, cells in _quoted_records(path, form):
      lines += sum(map(_breaks, cells))
      widths |= {len(cells)} if any(cells) else set()
  except BadInput:
    return bool(evidence)
  return bool(evidence) or ((is_ragged or lines > 0) and widths == {len(header)})


def _breaks(cell: str) -> int:
  return len(re.findall("\r\n|\r|\n", cell))
