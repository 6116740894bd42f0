"""Text of a user's that goes into scripts and manifests: refused, or quoted for who reads it."""

import shutil
import subprocess

from data_pipeline.errors import BadInput


def check_text(option: str, value: str) -> None:
  """Refuses text that is not one line of UTF-8.

  Raises:
    BadInput: it has a control character, or bytes that are no text.
  """
  odd = next((letter for letter in value if ord(letter) < 32 or 127 <= ord(letter) < 160), None)
  if odd is not None:
    raise BadInput(f"launch: {option}={value!r} has the control character {odd!r}. Leave it out.")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise BadInput(f"launch: {option}={value!r} is no text in UTF-8. Write it anew.") from error


def check_words(words: list[str]) -> None:
  """Refuses a command line that no file of text can hold; its words may have lines.

  Raises:
    BadInput: a word has bytes that are no text.
  """
  for word in words:
    try:
      word.encode()
    except UnicodeEncodeError as error:
      raise BadInput(f"launch: {word!r} is no text in UTF-8. Write it anew.") from error


def check_shell(option: str, line: str) -> None:
  """Refuses a shell line that bash does not read to its end, where there is a bash.

  Raises:
    BadInput: as bash says.
  """
  if not line or not shutil.which("bash"):
    return
  done = subprocess.run(["bash", "-n"], input=line, capture_output=True, text=True, check=False)
  said = done.stderr.strip().splitlines()
  if said:
    raise BadInput(f"launch: {option}={line!r} is no shell line ({said[0]}). Correct it.")
