"""A media file never makes the job open another file or address."""

import ctypes
import http.server
import io
import os
import struct
import subprocess
import threading
from pathlib import Path

import av
import imageio_ffmpeg
import pytest
from av.error import FFmpegError

from data_pipeline.curate import container
from data_pipeline.curate.child import run_in_child
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.types import Refused


@pytest.fixture
def server():
  """A local HTTP server: its address, and the paths that were asked for."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      self.send_error(404)

    def log_message(self, *_):
      pass

  served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=served.serve_forever)
  thread.start()
  yield f"http://127.0.0.1:{served.server_address[1]}", asked
  served.shutdown()
  thread.join()
  served.server_close()


class Watch:
  """Tells whether any process opens a file (inotify)."""

  IN_OPEN, IN_NONBLOCK = 0x20, 0o4000

  def __init__(self, path):
    libc = ctypes.CDLL(None, use_errno=True)
    self._number = libc.inotify_init1(self.IN_NONBLOCK)
    assert self._number >= 0
    assert libc.inotify_add_watch(self._number, os.fsencode(path), self.IN_OPEN) >= 0

  def was_opened(self) -> bool:
    try:
      return bool(os.read(self._number, 4096))
    except BlockingIOError:
      return False

  def close(self):
    os.close(self._number)


@pytest.fixture
def secret(media, make, tmp_path):
  """A good video beside the hostile files, and its watch."""
  plain = media("secret.mp4", *make.pattern(seconds=0.4), *make.X264)
  path = tmp_path / "secret.mp4"
  path.write_bytes(plain.read_bytes())
  watch = Watch(path)
  yield path, watch
  watch.close()


def box(kind: bytes, *content: bytes) -> bytes:
  data = b"".join(content)
  return struct.pack(">I", 8 + len(data)) + kind + data


def boxes(data: bytes):
  at = 0
  while at + 8 <= len(data):
    size, kind = struct.unpack_from(">I4s", data, at)
    yield kind, data[at + 8 : at + size]
    at += size


def with_reference(data: bytes, target: Path) -> bytes:
  """An MP4 (index last) whose frames are said to be in another file: QuickTime's alias."""
  name = os.fsencode(target)
  alias = bytes(10) + bytes([1]) + b"d".ljust(27, b"\0") + bytes(12) + bytes([1])
  alias += b"f".ljust(63, b"\0") + bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
  alias += struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2)
  alias += struct.pack(">hH", -1, 0)
  entry = box(b"alis", bytes(4), alias.ljust(160, b"\0"))

  def changed(kind, content):
    if kind == b"dref":
      return box(kind, struct.pack(">II", 0, 1), entry)
    if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
      return box(kind, *(changed(*inner) for inner in boxes(content)))
    return box(kind, content)

  return b"".join(changed(*inner) for inner in boxes(data))


def hostile_references(secret: Path, address: str) -> dict[str, bytes]:
  """Files that ask for the secret file or for the address."""
  playlist = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
  dash = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation '
    'id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
  )
  svg = '<svg xmlns="http://www.w3.org/2000/svg"><image href="{}" width="9" height="9"/></svg>'
  sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
  forms = {
    "hls": playlist,
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": dash,
    "svg": svg,
    "smil": '<smil><body><video src="{}"/></body></smil>',
    "rtsp": "rtsptext\nrtsp://127.0.0.1:9/{}\n",
    "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    "ffmetadata": ";FFMETADATA1\ntitle={}\n",
  }
  files = {}
  for name, form in forms.items():
    for kind, target in {"file": secret, "url": f"file://{secret}", "web": f"{address}/x"}.items():
      files[f"{name}_{kind}.mp4"] = form.format(target).encode()
  files["sdp.mp4"] = sdp.encode()
  files["reference.mov"] = with_reference(secret.read_bytes(), secret)
  return files


def test_no_media_file_opens_another(functions, secret, server, tmp_path, marked):
  path, watch = secret
  address, asked = server
  folder = tmp_path / "in"
  folder.mkdir()
  for name, data in hostile_references(path, address).items():
    (folder / name).write_bytes(data)
  assert watch.was_opened()  # by this test itself: the watch works
  sources = list(find_sources(str(folder)))
  found = run_in_child(functions.outcomes, sources, seconds=60, memory_bytes=1 << 30)
  assert not watch.was_opened() and asked == [] and marked() == []
  assert found.pop("reference.mov") in ("damaged", "no_video", "reaches_out")
  assert set(found.values()) == {"not_video"} and len(found) == 25


def test_the_references_are_real(secret, server, tmp_path):
  """Without the locks, ffmpeg follows: the test above can fail."""
  path, watch = secret
  address, asked = server
  files = hostile_references(path, address)
  watch.was_opened()
  any_protocol = ("-protocol_whitelist", "file,http,tcp")
  concat = (*any_protocol, "-safe", "0", "-f", "concat")
  hls = (*any_protocol, "-allowed_extensions", "ALL", "-extension_picky", "0", "-f", "hls")
  for name, options in (
    ("hls_file.mp4", hls),
    ("hls_web.mp4", hls),
    ("concat_file.mp4", concat),
    ("concat_web.mp4", concat),
    ("reference.mov", ("-enable_drefs", "1", "-use_absolute_path", "1")),
  ):
    (tmp_path / name).write_bytes(files[name])
    before = len(asked)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", *options]
    command += ["-i", str(tmp_path / name), "-f", "null", "-"]
    subprocess.run(command, capture_output=True, check=False)
    assert len(asked) > before if "web" in name else watch.was_opened(), name


@pytest.mark.parametrize("lock", ["none", "format", "protocol", "exception"])
def test_each_lock_holds_by_itself(server, lock):
  address, asked = server
  playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}/x.ts\n#EXT-X-ENDLIST\n"
  options = {"allowed_extensions": "ALL", "extension_picky": "0"}
  options["protocol_whitelist"] = "none" if lock == "protocol" else "file,http,tcp"
  if lock == "format":
    options["format_whitelist"] = container._OPTIONS["format_whitelist"]
  refuse = {"io_open": container._refuse} if lock == "exception" else {}
  file = container._Reader(io.BytesIO(playlist.encode()))
  with pytest.raises((FFmpegError, Refused)):
    av.open(file, mode="r", format="hls", container_options=options, **refuse)
  assert len(asked) == (1 if lock == "none" else 0)
