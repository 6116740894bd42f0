"""Lines of text files that people write: UTF-8, with or without a mark, of any system."""

import os
import re
from pathlib import Path

from data_pipeline.errors import BadInput


def split_lines(text: str) -> list[str]:
  """Splits at CR LF, LF or CR. What else Python takes for an end of line is part of the text."""
  return re.split("\r\n|\r|\n", text)


def read_lines(path: str | os.PathLike, where: str) -> list[str]:
  """Reads the lines of a file, without their ends.

  Args:
    where: the option or setting that names the file, for complaints: "sample: --prompts=".
  Raises:
    BadInput: it cannot be read, or is not UTF-8.
  """
  try:
    return split_lines(Path(path).read_bytes().decode("utf-8-sig"))
  except UnicodeDecodeError as error:
    raise BadInput(f"{where}{path} is not text in UTF-8 ({error}). Save it as that.") from error
  except OSError as error:
    raise BadInput(f"{where}{path} cannot be read ({error.strerror}). Name a text file.") from error
