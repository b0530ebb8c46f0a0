"""Several hosts share the waves of a table; records are neither lost nor doubled."""

import os
import socket
import subprocess
import sys
import types

import numpy as np
import pytest

from mer_dg.experiments import ConfigError, grid, hosts, launch, validate, workdir
from mer_dg.experiments.runs import Run
from mer_dg.protocol import append_records, make_record


def _free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def test_two_hosts_make_the_table_of_one(tiny, flags, tmp_path, repo_root):
  words = ["main.py", "--config=configs/cooccurrence.py", *flags]
  words += ["--config.methods=('erm',)", "--config.targets=('d0','d1')"]
  words += ["--config.seeds=(0,1,2)", "--config.wave=2"]
  address = f"localhost:{_free_port()}"

  def start(index):
    command = ["timeout", "-k", "5", "300", sys.executable, *words]
    command += [f"--workdir={tmp_path / 'two'}", f"--distributed={address},2,{index}"]
    return subprocess.Popen(
      command,
      cwd=repo_root,
      env=os.environ | {"PYTHONPATH": str(repo_root), "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  started = [start(i) for i in range(2)]
  config = tiny("", methods=("erm",), targets=("d0", "d1"), seeds=(0, 1, 2), wave=2)
  launch.run(config, workdir=str(tmp_path / "one"))
  outputs = [process.communicate()[0] for process in started]
  assert [p.returncode for p in started] == [0, 0], outputs
  config = validate(config)
  found = {}
  for folder in ("one", "two"):
    place = workdir.Workdir(tmp_path / folder, config)
    assert place.parts(place.results) == [place.path / "results.jsonl"]
    records = place.records()
    assert len(records) == 2 * 3 * 2  # Targets x seeds x evaluations.
    found[folder] = {(r["run_id"], r["step"]): r["metrics"] for r in records}
  assert found["one"].keys() == found["two"].keys()
  for key, metrics in found["one"].items():
    for name, value in metrics.items():
      np.testing.assert_allclose(
        found["two"][key][name], value, rtol=1e-3, atol=1e-5, err_msg=name
      )
  # Three waves of two runs: the first host has two of them.
  assert [text.count("ERM: 2 runs") for text in outputs] == [2, 1]
  # The first one reports, the other one is silent about results.
  assert "Report: " in outputs[0]
  assert "Report: " not in outputs[1]


def test_waves_are_dealt_out(monkeypatch):
  """Every wave has one host, whatever is done already."""
  dealt = []

  class Program:
    def __init__(self, *_):
      pass

    def train(self, runs, on_chunk):
      del on_chunk
      return grid.Wave(runs, [], [], None, None)

  # All of a setup that dealing out asks for.
  setup = types.SimpleNamespace(
    config=types.SimpleNamespace(wave=2, total_steps=1, metric="accuracy"),
    facts=lambda *_: "facts",
  )

  monkeypatch.setattr(grid, "WaveProgram", Program)
  runs = [Run("erm", "d0", seed) for seed in range(9)]
  for index in range(3):
    monkeypatch.setattr(grid, "this_host", lambda index=index: (index, 3))
    waves = []
    grid.train_all(
      types.SimpleNamespace(setup=setup), runs, waves.append, done=runs[:2]
    )
    dealt.append([[run.seed for run in wave.runs] for wave in waves])
  # Waves 0 to 4 of two (the last of one) go to hosts 0, 1, 2, 0, 1; the first is done.
  assert dealt == [[[6, 7]], [[2, 3], [8]], [[4, 5]]]


def test_the_files_of_hosts_are_read_as_one_and_gathered(tmp_path, monkeypatch):
  def record(seed):
    return make_record(
      method="erm",
      target="t",
      sources=["s"],
      modalities=["a"],
      dataset="toy",
      data_version="1",
      seed=seed,
      split_seed=0,
      hyper={},
      config_hash="c",
      trials=1,
      step=1,
      metrics={"val/accuracy": 0.5},
      git_revision="v1",
      wall_time_s=1.0,
      device="cpu",
    )

  folder = workdir.Workdir(tmp_path, {})
  (tmp_path / "config.json").write_text("{}")
  for index, seeds in ((0, (0, 1)), (1, (1, 2)), (10, (3,))):
    monkeypatch.setattr(workdir, "this_host", lambda index=index: (index, 11))
    append_records(folder.results, map(record, seeds))
    rows = f'{{"run_id": "r{index}", "message": "gave up"}}\n'
    folder.diverged.write_text(rows)
  (tmp_path / "results-old.jsonl").write_text("not a part")
  monkeypatch.setattr(workdir, "this_host", lambda: (0, 11))
  assert [r["seed"] for r in folder.records()] == [0, 1, 2, 3]
  folder.finish({}, ())
  folder.finish({}, ())  # Twice is once.
  assert [r["seed"] for r in folder.records()] == [0, 1, 2, 3]
  assert [row["run_id"] for row in folder.gave_up()] == ["r0", "r1", "r10"]
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "config.json",
    "diverged.jsonl",
    "done",
    "results-old.jsonl",
    "results.jsonl",
  ]


@pytest.mark.parametrize("where", ["localhost", "a:1,2", "a:1,two,0", "a,2,0"])
def test_a_wrong_address_is_refused(where):
  with pytest.raises(ConfigError, match="must be 'auto' or 'ADDRESS:PORT,COUNT,INDEX'"):
    hosts.start(where)
  with pytest.raises(ConfigError, match="INDEX must be less than COUNT"):
    hosts.start("localhost:1,2,2")


def test_one_run_is_for_one_host(tiny, monkeypatch, tmp_path):
  monkeypatch.setattr(launch, "this_host", lambda: (0, 2))
  with pytest.raises(ConfigError, match="2 hosts share the waves of a table"):
    launch.run(tiny("d1"), workdir=str(tmp_path))


def test_device_name_of_a_cpu_says_cores_and_model():
  name = hosts.device_name()
  assert name.split()[0].isdigit()
  assert " cores of " in name or " x " in name
