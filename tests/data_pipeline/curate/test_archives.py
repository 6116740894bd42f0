"""Tar archives as inputs: WebDataset's layout, hostile names, damage, bombs."""

import dataclasses
import gzip
import io
import os
import tarfile

import pytest

from data_pipeline.curate import archives
from data_pipeline.curate.types import Refused, unescape


def tar_of(path, files, *, mode="w"):
  """A tar archive of (name, bytes), in order."""
  with tarfile.open(path, mode) as tar:
    for name, data in files:
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return path


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_webdataset_archives(found, fill, content, tmp_path, ending):
  files = [("d/x.y.mp4", b"1" * 700), ("d/x.txt", b"said"), ("d/x.json", b'{"license": "MIT"}')]
  files += [("z.mp4", b"2222"), ("alone.txt", b"t"), ("n" * 300 + ".mp4", b"long")]
  tar_of(tmp_path / f"s.{ending}", files, mode="w:gz" if ending == "tar.gz" else "w")
  fill(tmp_path, {"a.mp4": "1"})
  sources, rejects = found(tmp_path)
  first = f"s.{ending}!d/x.y.mp4"
  names = [first, f"s.{ending}!z.mp4", f"s.{ending}!{'n' * 300}.mp4"]
  assert list(sources) == ["a.mp4", *names]
  assert rejects == {f"s.{ending}!alone.txt": "stray_captions"}
  assert (sources[first].captions, sources[first].licence) == (("said",), "MIT")
  assert [content(sources[name]) for name in names] == [b"1" * 700, b"2222", b"long"]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_that_try_to_get_out(found, content, tmp_path, form):
  path = tmp_path / "s.tar"
  with tarfile.open(path, "w", format=form) as tar:
    for name in ("../../up.mp4", "/abs.mp4", "nl\n\udcff.mp4", "twice.mp4", "twice.mp4"):
      member = tarfile.TarInfo(name)
      member.size = 3
      tar.addfile(member, io.BytesIO(b"abc"))
    for name, kind in (("l.mp4", tarfile.SYMTYPE), ("h.mp4", tarfile.LNKTYPE)):
      member = tarfile.TarInfo(name)
      member.type, member.linkname = kind, "/etc/passwd"
      tar.addfile(member)
    for name, kind in (("dev.mp4", tarfile.CHRTYPE), ("fifo.mp4", tarfile.FIFOTYPE)):
      member = tarfile.TarInfo(name)
      member.type = kind
      tar.addfile(member)
  sources, rejects = found(path)
  names = ["../../up.mp4", "/abs.mp4", "nl\\x0a\\xff.mp4"]
  assert list(sources)[:3] == [f"s.tar!{name}" for name in names]
  assert all(content(source) == b"abc" for source in sources.values())
  assert all(unescape(source.path) == os.fsencode(path) for source in sources.values())
  assert rejects == {
    "s.tar!twice.mp4": "listed_twice",
    "s.tar!l.mp4": "symlink",
    "s.tar!h.mp4": "symlink",
    "s.tar!dev.mp4": "not_a_file",
    "s.tar!fifo.mp4": "not_a_file",
  }
  assert sorted(os.listdir(tmp_path)) == ["s.tar"]


def test_broken_archives(found, fill, tmp_path):
  whole = tar_of(tmp_path / "w.tar", [("a.mp4", b"1" * 600), ("b.mp4", b"2" * 600)]).read_bytes()
  cut = {"cut.tar": whole[: 512 + 1024 + 512 + 100], "cut.tar.gz": gzip.compress(whole)[:-60]}
  damaged = bytearray(whole)
  damaged[1536 + 100] ^= 255
  broken = {"empty.tar": b"", "text.tar": b"text" * 400, "damaged.tar": bytes(damaged)}
  huge = tarfile.TarInfo("huge.mp4")
  huge.size = 1 << 50
  broken["claims.tar"] = huge.tobuf(tarfile.GNU_FORMAT) + b"0" * 512
  long = tarfile.TarInfo("long")
  long.type, long.size = tarfile.XHDTYPE, 1 << 40
  broken["names.tar"] = long.tobuf(tarfile.GNU_FORMAT) + b"0" * 512
  fill(tmp_path / "in", cut | broken)
  sources, rejects = found(tmp_path / "in")
  assert rejects == {
    "claims.tar": "truncated",
    "cut.tar": "truncated",
    "cut.tar.gz": "truncated",
    "damaged.tar": "damaged",
    "empty.tar": "empty",
    "names.tar": "truncated",
    "text.tar": "not_an_archive",
  }
  assert {"cut.tar!a.mp4", "damaged.tar!a.mp4"} <= set(sources)


def test_a_bomb_is_not_unpacked(found, content, tmp_path, monkeypatch):
  monkeypatch.setattr(archives, "FREE_BYTES", 4 << 20)
  read = []
  monkeypatch.setattr(archives, "COPY_BYTES", 1 << 16)
  plain = archives._Unpacked.read
  monkeypatch.setattr(
    archives._Unpacked, "read", lambda self, size: read.append(size) or plain(self, size)
  )
  header = tarfile.TarInfo("zeros.mp4")
  header.size = 64 << 20
  with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
    file.write(header.tobuf() + bytes(header.size) + bytes(1024))
  sources, rejects = found(tmp_path)
  assert rejects == {"bomb.tar.gz": "bomb"}
  assert sum(read) < 16 << 20 and max(read) <= 1 << 16
  with pytest.raises(Refused, match="bomb"):
    content(dataclasses.replace(sources["bomb.tar.gz!zeros.mp4"], offset=512))
