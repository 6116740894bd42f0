"""Media for the tests, good and hostile, made by the ffmpeg of imageio-ffmpeg, PyAV and Pillow."""

import os
import subprocess
import time
import uuid
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import imageio_ffmpeg
import numpy as np
import pytest

from data_pipeline.curate.sources import find_sources, open_source
from data_pipeline.curate.types import Reject, Source

X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
FLAGS = ("-sws_flags", "bicubic+accurate_rnd+full_chroma_int", "-fps_mode", "passthrough")


def run_ffmpeg(*arguments) -> bytes:
  command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y"]
  done = subprocess.run([*command, *map(str, arguments)], capture_output=True, check=False)
  assert done.returncode == 0, done.stderr.decode()[-500:]
  return done.stdout


def pattern(size="64x48", rate=25, seconds=2) -> tuple[str, ...]:
  """ffmpeg's input options of a moving test picture, in which every frame is another."""
  return ("-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d={seconds}")


def reference_frames(path, width, height, *options) -> np.ndarray:
  """ffmpeg's own uint8 [F,H,W,3] of a file, every decoded frame once unless options say more."""
  raw = run_ffmpeg("-i", path, *options, *FLAGS, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
  return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def write_frames(path, frames, stamps=None, *, tick=1000, codec="ffv1", pix_fmt="bgr0") -> Path:
  """Writes uint8 [h,w,3] frames, each at its timestamp in units of 1/tick seconds.

  Without timestamps they are 25 a second.
  """
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt, stream.thread_count = pix_fmt, 1
    stream.codec_context.time_base = Fraction(1, tick)
    stamps = range(0, len(frames) * tick // 25, tick // 25) if stamps is None else stamps
    for picture, stamp in zip(frames, stamps, strict=True):
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
      frame.pts, frame.time_base = stamp, Fraction(1, tick)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return Path(path)


def greys(count, size=16) -> list[np.ndarray]:
  """Grey frames that can be told apart by their level, 5·number."""
  return [np.full((size, size, 3), 5 * number % 256, np.uint8) for number in range(count)]


def write_numbered(path, count, first, *options) -> Path:
  """Encodes `count` frames of 64x48 at 25 a second that bear the numbers from `first` on."""
  rows, columns = np.mgrid[0:24, 0:64]
  pictures = np.zeros((count, 48, 64, 3), np.uint8)
  for place, number in enumerate(range(first, first + count)):
    wave = np.sin(columns / 5 + number / 7) + np.sin(rows / 4 - number / 9)
    pictures[place, :24] = (128 + 50 * wave).astype(np.uint8)[..., None]
    for bit in range(12):
      y, x = 24 + 12 * (bit // 6), 2 + 10 * (bit % 6)
      pictures[place, y : y + 12, x : x + 10] = 255 * (number >> bit & 1)
  raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", 25, "-i", "-")
  command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *raw, *options, path]
  subprocess.run(list(map(str, command)), input=pictures.tobytes(), check=True)
  return Path(path)


def read_numbers(pictures) -> list[int]:
  """The numbers that frames of `write_numbered` bear."""
  found = []
  for picture in np.asarray(pictures):
    blocks = picture[24:, 2:62, 1].reshape(2, 12, 6, 10)[:, 3:9, :, 3:7].mean((1, 3)).ravel()
    found.append(sum(1 << bit for bit in range(12) if blocks[bit] > 128))
  return found


def runs_of(numbers) -> list[tuple[int, int]]:
  """First and last of each run of numbers that follow each other."""
  edges = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
  starts, stops = [0, *edges], [*edges, len(numbers)]
  return [(numbers[a], numbers[b - 1]) for a, b in zip(starts, stops, strict=True)]


@pytest.fixture(scope="session")
def make():
  """The makers above, by name."""
  return SimpleNamespace(
    ffmpeg=run_ffmpeg,
    pattern=pattern,
    reference=reference_frames,
    write=write_frames,
    greys=greys,
    numbered=write_numbered,
    read_numbers=read_numbers,
    runs=runs_of,
    X264=X264,
  )


@pytest.fixture(scope="session")
def media(tmp_path_factory):
  """`media(name, *ffmpeg options)`: the path of a file, made when it is first asked for."""
  folder = tmp_path_factory.mktemp("media")

  def made(name, *options) -> Path:
    path = folder / name
    if not path.exists():
      run_ffmpeg(*options, path)
    return path

  return made


def find_all(given, **options):
  """(sources by name, reasons by name), in order."""
  everything = list(find_sources(str(given), **options))
  sources = {item.name: item for item in everything if isinstance(item, Source)}
  rejects = {item.source: item.reason for item in everything if isinstance(item, Reject)}
  assert len(sources) + len(rejects) == len(everything)
  return sources, rejects


def read_content(source) -> bytes:
  with open_source(source) as file:
    data = file.read()
    file.seek(0)
    assert file.read(3) == data[:3]
    return data


def fill_folder(folder, files):
  for name, data in files.items():
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


@pytest.fixture(scope="session")
def found():
  """`found(given, **options)`: (sources by name, reasons of rejects by name)."""
  return find_all


@pytest.fixture(scope="session")
def content():
  """`content(source)`: its bytes."""
  return read_content


@pytest.fixture(scope="session")
def fill():
  """`fill(folder, {name: text or bytes})` writes files."""
  return fill_folder


FUNCTIONS = '''
import ctypes, os, pickle, signal, subprocess, sys, time
from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput

def double(x): return 2 * x
def environment(names): return [os.environ.get(name) for name in names]
def crash(_): ctypes.string_at(0)
def leave(code): os._exit(code)
def fail(text): raise KeyError(text)
def refuse(reason): raise Refused(reason, "why")
def forbid(text): raise BadInput(text)
def spin(_):
  while True: pass
def answer_bytes(count): return b"x" * count
def say(text):
  print(text); print(text, file=sys.stderr); return text
def kill_keeper(_):
  os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)

def hoard(_):
  held = []
  while True: held.append(bytearray(b"x" * (4 << 20)))
def claim(count):
  import numpy
  return len(numpy.empty(count, numpy.uint8))
def hoard_in_grandchild(_):
  code = "x = bytearray(b'x' * (400 << 20)); import time; time.sleep(60)"
  subprocess.run([sys.executable, "-c", code])

def orphan(seconds):
  """Leaves a process behind that has its own session and no parent."""
  if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(300)
    os._exit(0)
  os.wait(); time.sleep(seconds)

def outcome(source):
  """(frames said, frames read, width, height) of a source."""
  from data_pipeline.curate.media import frames, probe
  from data_pipeline.curate.sources import open_source
  with open_source(source) as file:
    info = probe(file)
    return info.frames, sum(1 for _ in frames(file, info)), info.width, info.height

def outcomes(sources):
  """Frames read, or the reason for which it is refused, of each source by name."""
  def one(source):
    try: return outcome(source)[1]
    except Refused as refused: return refused.reason
  return {source.name: one(source) for source in sources}

def peak_growth(path):
  """Bytes by which reading all frames of a file raises the peak RSS."""
  import resource
  from data_pipeline.curate.media import frames
  def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
  before = peak()
  with open(path, "rb") as file:
    count = sum(1 for _ in frames(file))
  return peak() - before, count
'''


@pytest.fixture(scope="session")
def functions(tmp_path_factory):
  """A module that a fresh process can import."""
  folder = tmp_path_factory.mktemp("functions")
  (folder / "child_functions.py").write_text(FUNCTIONS)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    import child_functions  # pyright: ignore[reportMissingImports]

    yield child_functions


@pytest.fixture
def marked(monkeypatch):
  """`marked()` lists the living processes that were started during the test, by an environment
  variable that all of them inherit."""
  mark = uuid.uuid4().hex.encode()
  monkeypatch.setenv("SORA_TEST_MARK", mark.decode())

  def listed() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
      try:
        if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes():
          state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
          found += [int(entry)] if state != "Z" and int(entry) != os.getpid() else []
      except OSError:
        continue
    return found

  return listed


@pytest.fixture
def wait_until():
  """`wait_until(condition, seconds=5)` fails if the condition does not come true."""

  def waited(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
      assert time.monotonic() < end
      time.sleep(0.02)

  return waited
