"""The parts that all kinds of lists share: rows, text, the meaning of columns."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from data_pipeline.curate import storage
from data_pipeline.curate.columns import Roles, find_roles
from data_pipeline.errors import BadInput


class Row(NamedTuple):
  """A row of a list. Attributes: where: for errors. names: of its columns. values: one for each."""

  where: str
  names: tuple[str, ...]
  values: Sequence[Any]


@contextmanager
def open_text(path: str) -> Iterator[io.TextIOWrapper]:
  """Opens a list: UTF-8, in which other bytes are kept, or UTF-16 with its mark. Line ends stay.

  Raises:
    BadInput: it is not text.
  """
  with storage.open_file(path) as file:
    mark = file.read(2)
    file.seek(0)
    encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    try:
      yield io.TextIOWrapper(file, encoding, errors, newline="")
    except UnicodeError as error:
      raise BadInput(f"curate: {path} is not text ({error}). Save it as UTF-8.") from error


def find_roles_of(
  path: str, names: tuple[str, ...], wanted: tuple[str, ...] | None = None
) -> Roles:
  """`columns.find_roles` of the header of a list. Raises BadInput: two columns of one name."""
  roles = find_roles(names, wanted)
  if roles.doubled:
    raise BadInput(f"curate: {path}: two columns are named {roles.doubled!r}. Rename one.")
  return roles
