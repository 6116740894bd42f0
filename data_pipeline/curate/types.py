"""What the stages of curation hand to each other: sources, rejects, and why a source was refused.

All of it is plain text and numbers: JSON-able through `asdict`, picklable, safe to print. Paths may
hold any bytes, so they are kept escaped: printable UTF-8, in which `\\xNN` is a byte.
"""

import dataclasses
import re
from typing import Any, NamedTuple

_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def escape(raw: bytes | str) -> str:
  """Bytes or text as printable text, one to one.

  Backslashes, control characters, invisible ones (such as those that turn the direction of
  writing) and bytes that are not UTF-8 become `\\xNN`, one for each byte.
  """
  data = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else raw
  text = data.decode("utf-8", "surrogateescape")
  return "".join(c if c.isprintable() and c != "\\" else _hex(c) for c in text)


def _hex(character: str) -> str:
  return "".join(f"\\x{b:02x}" for b in character.encode("utf-8", "surrogateescape"))


def unescape(text: str) -> bytes:
  """The bytes that `escape` was given."""
  return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), text.encode())


class Span(NamedTuple):
  """Captions of a part of a source, `start_seconds <= t < end_seconds` from its first frame."""

  start_seconds: float
  end_seconds: float
  captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
  """One video or image, not yet opened.

  Attributes:
    name: stable id, unique in its input: the path relative to the input, "ARCHIVE!MEMBER", a url,
      or "tfds:NAME/SPLIT/ROW". Printable; `unescape` gives its bytes.
    path: of the file, the archive or the dataset, or a url; escaped.
    kind: how it is opened: "file", "tar" (a member of an archive) or "tfds" (a row of a dataset).
    member: name in the archive, or "SPLIT/ROW" of the dataset; escaped.
    offset: bytes before the member in the (uncompressed) archive.
    size: bytes, -1 if not known.
    stamp: changes when the content, its captions, licence or split do, as far as a listing tells.
    captions: of the whole source. Captions of parts of it are `spans`.
    licence: SPDX id, or text; "" if unknown.
    split: "" leaves the choice to the split by source.
    fps: frames/second of a row whose frames come without a rate; 0 otherwise.
  """

  name: str
  path: str
  kind: str = "file"
  member: str = ""
  offset: int = -1
  size: int = -1
  stamp: str = ""
  captions: tuple[str, ...] = ()
  spans: tuple[Span, ...] = ()
  licence: str = ""
  split: str = ""
  fps: float = 0.0


class Reject(NamedTuple):
  """One row of `rejects.jsonl`: a source, or a range of its frames, that became no record.

  Attributes:
    source: name of the source.
    start_frame: first frame of the range; None for the whole source.
    reason: short word for a program, such as "not_video" or "timeout".
    end_frame: frame after the last; None for the end, or the whole source.
    detail: a line for a person.
  """

  source: str
  start_frame: int | None
  reason: str
  end_frame: int | None = None
  detail: str = ""

  def row(self) -> dict[str, Any]:
    """The JSON object of the table."""
    return self._asdict()


class Refused(Exception):
  """A source, or the rest of it, cannot become records. Not an error of the job.

  Args:
    reason: short word for a program; `Reject.reason`.
    detail: a line for a person.
  """

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(reason, detail)
    self.reason, self.detail = reason, detail

  def __str__(self) -> str:
    return f"{self.reason}: {self.detail}" if self.detail else self.reason
