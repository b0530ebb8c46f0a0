"""records: what is written is read, once, whatever kills the writer."""

import json
import math
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import protocol


def test_round_trip_keeps_everything_and_nan(tmp_path, make):
  path = tmp_path / "sub" / "results.jsonl"
  record = make(
    hyper={"lr": np.float32(0.5)},
    metrics={"val/nll": jnp.float32(0.25), "aurc": math.nan, "x": math.inf},
    damaged=3,
  )
  assert protocol.append_records(path, [record]) == 1
  (read,) = protocol.read_records(path)
  assert read["hyper"] == {"lr": 0.5}
  assert read["damaged"] == 3
  assert read["metrics"]["val/nll"] == 0.25
  assert math.isnan(read["metrics"]["aurc"])
  assert math.isnan(read["metrics"]["x"])
  assert {k: v for k, v in read.items() if k != "metrics"} == {
    k: v for k, v in record.items() if k != "metrics"
  }
  # Strict JSON: other languages can read the file.
  json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(c))


def test_run_id_depends_on_what_identifies_a_run_and_nothing_else(make):
  base = make()["run_id"]
  identity = {
    "method": "mer",
    "target": "d4",
    "sources": ["d1"],
    "modalities": ["audio"],
    "dataset": "other",
    "data_version": "1.1",
    "seed": 1,
    "split_seed": 1,
    "hyper": {"lr": 0.1},
    "config_hash": "c1",
  }
  ids = [make(**{k: v})["run_id"] for k, v in identity.items()]
  assert len({base, *ids}) == len(ids) + 1
  rest = {
    "step": 7,
    "trials": 3,
    "metrics": {},
    "git_revision": "z",
    "wall_time_s": 9.0,
    "device": "gpu",
  }
  assert all(make(**{k: v})["run_id"] == base for k, v in rest.items())
  a, b = make(hyper={"x": 1, "y": 2}), make(hyper={"y": np.float64(2), "x": 1.0})
  assert a["run_id"] == b["run_id"]


def test_appending_again_doubles_nothing(tmp_path, make):
  path = tmp_path / "results.jsonl"
  records = [make(step=s, seed=i) for s in (1, 2) for i in (0, 1)]
  assert protocol.append_records(path, records[:3]) == 3
  assert protocol.append_records(path, records + records) == 1
  assert protocol.append_records(path, records) == 0
  assert protocol.read_records(path) == records


def test_a_record_that_is_there_gets_the_metrics_it_lacks(tmp_path, make):
  path = tmp_path / "results.jsonl"
  metrics = {"val/accuracy": 0.5, "val/nll": math.inf}
  first, second = make(seed=0, metrics=metrics), make(seed=1, metrics=metrics)
  protocol.append_records(path, [first, second])
  more = make(seed=1, metrics=metrics | {"target/without_a/accuracy": 0.25})
  new = make(seed=2, metrics=metrics)
  assert protocol.append_records(path, [more, new]) == 2
  found = protocol.read_records(path)
  assert [r["seed"] for r in found] == [0, 1, 2]
  assert found[1]["metrics"]["target/without_a/accuracy"] == 0.25
  assert "target/without_a/accuracy" not in found[0]["metrics"]
  assert protocol.append_records(path, [more, new]) == 0
  assert list(tmp_path.iterdir()) == [path]


def test_metrics_of_another_network_are_not_mixed_in(tmp_path, make):
  path = tmp_path / "results.jsonl"
  protocol.append_records(path, [make(metrics={"val/accuracy": 0.5})])
  other = make(metrics={"val/accuracy": 0.6, "target/without_a/accuracy": 0.25})
  with pytest.warns(UserWarning, match="1 new ones are not added"):
    assert protocol.append_records(path, [other]) == 0
  assert protocol.read_records(path)[0]["metrics"] == {"val/accuracy": 0.5}


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_half_written_last_line_is_dropped_then_cut_off(tmp_path, make, cut):
  path = tmp_path / "results.jsonl"
  records = [make(step=s) for s in (1, 2, 3)]
  protocol.append_records(path, records)
  whole = path.read_bytes()
  last = len(whole) - len(whole.splitlines(keepends=True)[-1])
  path.write_bytes(whole[: last + cut])
  with pytest.warns(UserWarning, match="dropped the half-written last line 3"):
    assert protocol.read_records(path) == records[:2]
  with pytest.warns(UserWarning, match="half-written"):
    assert protocol.append_records(path, records) == 1
  assert path.read_bytes() == whole


def test_a_short_record_leaves_nothing_of_a_longer_half_written_one(tmp_path, make):
  path = tmp_path / "results.jsonl"
  short = make(metrics={}, step=2)
  long = make(metrics={f"val/domain_{i}/accuracy": 0.5 for i in range(99)})
  protocol.append_records(path, [make(), long | {"step": 3}])
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.warns(UserWarning, match="half-written"):
    protocol.append_records(path, [short])
  assert path.read_bytes().endswith(b"}\n")
  assert protocol.read_records(path) == [make(), short]


def test_only_the_newline_of_the_last_line_is_lost(tmp_path, make):
  path = tmp_path / "results.jsonl"
  records = [make(step=s) for s in (1, 2)]
  protocol.append_records(path, records[:1])
  path.write_bytes(path.read_bytes().rstrip(b"\n"))
  assert protocol.read_records(path) == records[:1]
  protocol.append_records(path, records)
  assert protocol.read_records(path) == records


def test_a_block_of_zeros_at_the_end_is_recovered(tmp_path, make):
  path = tmp_path / "results.jsonl"  # What a power cut leaves on some file systems.
  protocol.append_records(path, [make()])
  with open(path, "ab") as f:
    f.write(bytes(64))
  with pytest.warns(UserWarning, match="line 2"):
    assert protocol.read_records(path) == [make()]


@pytest.mark.parametrize("bad", [b'{"method": "er', b"\xff\xfe", b"[1]", b"{}"])
def test_a_broken_line_before_the_end_is_an_error_naming_it(tmp_path, make, bad):
  path = tmp_path / "results.jsonl"
  protocol.append_records(path, [make(step=s) for s in (1, 2)])
  first, second = path.read_bytes().splitlines(keepends=True)
  broken = first + bad + b"\n" + second
  path.write_bytes(broken)
  for act in (protocol.read_records, lambda p: protocol.append_records(p, [make()])):
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2: "):
      act(path)
  assert path.read_bytes() == broken  # An error destroys nothing.


def test_a_complete_last_line_that_is_no_record_is_an_error(tmp_path, make):
  path = tmp_path / "results.jsonl"
  protocol.append_records(path, [make()])
  with open(path, "ab") as f:
    f.write(b'{"method": "erm"}')
  with pytest.raises(ValueError, match=r"line 2: not a record: missing \['target'"):
    protocol.read_records(path)


def test_the_older_name_of_re_paired_validation_is_read(tmp_path, make):
  path = tmp_path / "results.jsonl"
  protocol.append_records(path, [make(metrics={"val/repaired/nll": 0.5})])
  (record,) = protocol.read_records(path)
  assert record["metrics"] == {"val/re-paired/nll": 0.5}


def test_the_older_name_of_a_protocol_is_read(tmp_path, make):
  path = tmp_path / "results.jsonl"
  protocol.append_records(path, [make() | {"protocol": "in_domain"}])
  assert [r["protocol"] for r in protocol.read_records(path)] == ["target_alone"]


def test_a_writer_killed_at_any_moment_loses_and_doubles_nothing(tmp_path, make):
  path = tmp_path / "results.jsonl"
  code = (
    "import json, sys\n"
    "from mer_dg import protocol\n"
    "template = json.loads(sys.argv[2])\n"
    "for step in range(100000):\n"
    "  record = {**template, 'step': step}\n"
    "  protocol.append_records(sys.argv[1], [record])\n"
    "  print(step, flush=True)\n"
  )
  child = subprocess.Popen(
    [sys.executable, "-c", code, str(path), json.dumps(make())],
    stdout=subprocess.PIPE,
    text=True,
    cwd=os.getcwd(),
    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
  )
  line = ""
  for line in child.stdout:
    if int(line) == 20:
      child.send_signal(signal.SIGKILL)
      break
  assert line.strip() == "20"  # It wrote, until it was killed.
  acknowledged = [int(x) for x in child.stdout.read().split()] or [20]
  child.wait()
  steps = [make(step=s) for s in range(acknowledged[-1] + 10)]
  protocol.append_records(path, steps)
  read = [r["step"] for r in protocol.read_records(path)]
  assert sorted(set(read)) == sorted(read)
  assert set(range(len(steps))) <= set(read)


@pytest.mark.parametrize(
  ("field", "value", "error", "match"),
  [
    ("method", "", ValueError, "method must be a non-empty string"),
    ("data_version", 3, ValueError, "data_version must be a non-empty string, got 3"),
    ("trials", 0, ValueError, "trials must be an integer >= 1, got 0"),
    ("step", -1, ValueError, "step must be an integer >= 0"),
    ("wall_time_s", math.nan, ValueError, "wall_time_s"),
    ("hyper", {"name": "kde"}, TypeError, r"hyper\['name'\] must be a number, got kde"),
    ("metrics", {"x": [1, 2]}, TypeError, r"metrics\['x'\] must be a number"),
  ],
)
def test_bad_fields_are_named(make, field, value, error, match):
  with pytest.raises(error, match=match):
    make(**{field: value})


def test_git_revision_is_of_this_source_not_of_where_it_is_called(
  tmp_path, monkeypatch
):
  before = protocol.git_revision()
  monkeypatch.chdir(tmp_path)
  assert protocol.git_revision() == before
  assert before
