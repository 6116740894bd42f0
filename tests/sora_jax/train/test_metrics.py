"""Lines, files and rates."""

import json
import math

import pytest
from tensorboardX.proto.event_pb2 import Event

from data_pipeline.errors import BadInput
from sora_jax.train.metrics import Counts, Meter, MetricsWriter, cut_back, read_metrics


def board(workdir):
  """(tag, step, value) of every scalar, parsed from the records: length, crc, event, crc."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], "little")
      event = Event.FromString(data[at + 12 : at + 12 + size])
      found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
      at += 16 + size
  return found


def test_a_line_is_json_and_goes_to_the_board(tmp_path, capsys):
  with MetricsWriter(tmp_path, total_steps=100) as write:
    write(10, {"loss": 0.5, "by_t": [1.0, math.nan], "empty": math.inf, "step_seconds": 2.0})
    assert read_metrics(tmp_path) == [  # on disk at once
      {"step": 10, "loss": 0.5, "by_t": [1.0, None], "empty": None, "step_seconds": 2.0}
    ]
  assert ("loss", 10, 0.5) in board(tmp_path)
  assert [found for found in board(tmp_path) if "by_t" in found[0]] == [("by_t/00", 10, 1.0)]
  assert "train: step 10/100, loss 0.5, 0:03:00 left" in capsys.readouterr().err


def test_cut_back_removes_later_and_broken_lines(tmp_path):
  lines = [json.dumps({"step": step, "loss": step / 10}) for step in (10, 20, 30)]
  (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 40, "lo']))
  cut_back(tmp_path, 20)
  assert (tmp_path / "metrics.jsonl").read_text() == "".join(line + "\n" for line in lines[:2])
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
  with MetricsWriter(tmp_path, total_steps=100, step=20) as write:
    write(30, {"loss": 3.5})
  assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 30]


def test_cut_back_without_a_file_makes_none(tmp_path):
  cut_back(tmp_path, 0)
  assert not list(tmp_path.iterdir())


def test_a_damaged_line_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
  with pytest.raises(BadInput, match="holds a line that is not JSON"):
    cut_back(tmp_path, 1)


def test_rates_leave_pauses_out():
  times = iter([0.0, 10.0, 14.0, 20.0, 20.0, 30.0, 30.0])
  meter = Meter(clock=lambda: next(times), peak=1e12)
  for _ in range(4):
    meter.add(Counts(tokens=100, clips=2, flops=1e12, slots=125))
  meter.waited(2.0)
  meter.worked(6.0)
  with meter:  # from 10 to 14
    pass
  assert meter.read() == {  # 20 seconds, less 4
    "seconds": 16.0,
    "step_seconds": 4.0,
    "host_seconds": 1.5,
    "tokens_per_second": 25.0,
    "clips_per_second": 0.5,
    "model_flops_per_second": 0.25e12,
    "fill": 0.8,
    "data_wait_fraction": 0.125,
    "mfu": 0.25,
  }
  meter.add(Counts(tokens=50, clips=1, flops=0.0, slots=50))
  assert meter.read()["tokens_per_second"] == 5.0  # begins anew
