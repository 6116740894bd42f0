"""Writes HEIF files (AVIF, HEIC) box by box, of pictures that the ffmpeg program coded.

Source: ISO/IEC 14496-12 and 23008-12.
"""

import dataclasses
import struct
from pathlib import Path

import av


def box(kind: str, *parts: bytes) -> bytes:
  data = b"".join(parts)
  return struct.pack(">I", 8 + len(data)) + kind.encode() + data


def full(kind: str, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
  return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def ispe(width: int, height: int) -> bytes:
  return full("ispe", struct.pack(">II", width, height))


def irot(quarters: int) -> bytes:
  """Counterclockwise."""
  return box("irot", bytes([quarters]))


def imir(axis: int) -> bytes:
  """0: top and bottom change places (a horizontal axis); 1: left and right."""
  return box("imir", bytes([axis]))


def clap(width: int, height: int, right: int, down: int) -> bytes:
  """A clean aperture; its centre is moved by `right` and `down` half pixels."""
  return box("clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 2, down, 2))


@dataclasses.dataclass
class Item:
  """An item: its type, content, properties, and the items that it refers to, by kind."""

  kind: str
  data: bytes
  properties: tuple[bytes, ...] = ()
  references: tuple[tuple[str, tuple[int, ...]], ...] = ()
  is_hidden: bool = False


def coded(path, *more: bytes, **fields) -> Item:
  """The first picture of an MP4 of AV1 or HEVC."""
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    packet = next(iter(container.demux(stream)))
    kind, name = ("av01", "av1C") if "av1" in stream.codec.name + stream.name else ("hvc1", "hvcC")
    setup = box(name, bytes(stream.codec_context.extradata or b""))
    properties = (setup, ispe(stream.width, stream.height), *more)
    return Item(kind, bytes(packet), properties, **fields)


def grid(rows: int, columns: int, width: int, height: int, tiles, *more: bytes, **fields) -> Item:
  data = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
  references = (("dimg", tuple(tiles)), *fields.pop("references", ()))
  return Item("grid", data, (ispe(width, height), *more), references, **fields)


def alpha_of(number: int) -> dict:
  """Fields of an item that is the alpha of another; it needs a property that says so, too."""
  return dict(references=(("auxl", (number,)),), is_hidden=True)


ALPHA_PROPERTY = full("auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
HEVC_ALPHA_PROPERTY = full("auxC", b"urn:mpeg:hevc:2015:auxid:1\0")


def write_heif(path, items: list[Item], *, primary: int = 1, brands="avif mif1 miaf") -> Path:
  """Writes items, numbered from 1 on."""
  names = brands.split()
  head = box("ftyp", names[0].encode(), bytes(4), *(name.encode() for name in names))
  size = len(head) + len(_meta(items, primary, 0)) + 8
  content = box("mdat", *(item.data for item in items))
  Path(path).write_bytes(head + _meta(items, primary, size) + content)
  return Path(path)


def _meta(items: list[Item], primary: int, start: int) -> bytes:
  places, infos, references, owned, links = b"", b"", b"", [], b""
  for number, item in enumerate(items, 1):
    places += struct.pack(">HHHII", number, 0, 1, start, len(item.data))
    start += len(item.data)
    name = struct.pack(">HH", number, 0) + item.kind.encode() + b"\0"
    infos += full("infe", name, version=2, flags=int(item.is_hidden))
    for kind, others in item.references:
      numbers = struct.pack(f">HH{len(others)}H", number, len(others), *others)
      references += box(kind, numbers)
    indices = range(len(owned) + 1, len(owned) + 1 + len(item.properties))
    owned += item.properties
    links += struct.pack(">HB", number, len(indices))
    links += bytes(index | 0x80 * (owned[index - 1][4:8] != b"ispe") for index in indices)
  count = struct.pack(">H", len(items))
  return full(
    "meta",
    full("hdlr", bytes(4), b"pict", bytes(13)),
    full("pitm", struct.pack(">H", primary)),
    full("iloc", b"\x44\0", count, places),
    full("iinf", count, infos),
    *([full("iref", references)] if references else []),
    box("iprp", box("ipco", *owned), full("ipma", struct.pack(">I", len(items)), links)),
  )
