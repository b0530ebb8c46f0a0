"""A workdir is a protocol; what a command asks for and is not there is trained."""

import collections
import dataclasses
import json
import math
import re
import shutil
import warnings

import numpy as np
import pytest

from mer_dg import protocol
from mer_dg.experiments import (
  USER_ERRORS,
  WorkdirError,
  benchmark,
  grid,
  launch,
  make_setup,
  run,
  tables,
  validate,
)
from mer_dg.experiments.runs import (
  Evaluation,
  Run,
  evaluation_steps,
  identity,
  run_id,
)
from mer_dg.experiments.workdir import Workdir, read_lines
from mer_dg.protocol import read_records


def score(run: Run) -> float:
  return 0.5 + sum(value for _, value in run.overrides) / 1000 + run.seed / 100


@pytest.fixture
def trained(monkeypatch):
  """Training without a network: the runs that `train_all` was asked for, per call."""
  calls = []

  def train_all(shared, runs, on_wave, *, done=()):
    ours = [r for r in runs if r not in set(done)]
    calls.append(ours)
    lost = {r for r in ours if dict(r.overrides).get("optimizer.lr", 0) > 1e9}
    lost |= {r for r in ours if shared.setup.config.optimizer.lr > 1e9}
    names = ("val/accuracy", "val/re-paired/accuracy", "target/accuracy")
    metrics = lambda r: dict.fromkeys(names, score(r)) | {"val/nll": 1.0}
    on_wave(
      grid.Wave(
        ours,
        [
          Evaluation(r, step, metrics(r), 1.0)
          for step in evaluation_steps(shared.setup.config)
          for r in ours
          if r not in lost
        ],
        [grid.Divergence(r, 5, "loss/fused") for r in lost],
        None,
        {"params": np.zeros((len(grid.trainings(ours)), 1), np.float32)},
      )
    )

  def write_report(folder, records, *, left_out, title, **_):
    # Without plots: which methods, how often, and what is left out.
    rows = collections.Counter(r["method"] for r in records)
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "report.md").write_text("")
    lines = [f"# {title}", *(f"| {m} {n} |" for m, n in rows.items()), *left_out]
    return "\n".join(lines)

  monkeypatch.setattr(tables, "train_all", train_all)
  monkeypatch.setattr(tables, "write_report", write_report)
  for module in (launch, benchmark):  # It traces every method.
    monkeypatch.setattr(module, "check", lambda setup: None)
  return calls


@pytest.fixture
def command(tiny, tmp_path, trained):
  """``command(**fields) -> (runs trained, text)`` in one workdir."""

  def go(**fields):
    defaults = {"methods": ("erm",), "targets": ("d0", "d1"), "seeds": (0, 1)}
    config = tiny(fields.pop("target", ""), **(defaults | fields))
    trained.clear()
    text = run(config, workdir=str(tmp_path / "w"), name="name")
    return [r for call in trained for r in call], text

  return go


def test_what_is_added_is_trained_and_nothing_else(command, tmp_path):
  results = tmp_path / "w" / "results.jsonl"
  assert len(command()[0]) == 4
  assert command()[0] == []
  lines = results.read_bytes().splitlines()
  more, text = command(methods=("erm", "mer_kde"))
  assert {(r.method, r.target, r.seed) for r in more} == {
    ("mer_kde", t, s) for t in ("d0", "d1") for s in (0, 1)
  }
  assert text == "# name\n| erm 8 |\n| mer_kde 8 |"
  both = {"methods": ("erm", "mer_kde")}
  more, _ = command(**both, seeds=(0, 1, 2))
  assert {(r.method, r.target, r.seed) for r in more} == {
    (m, t, 2) for m in ("erm", "mer_kde") for t in ("d0", "d1")
  }
  more, _ = command(**both, seeds=(0, 1, 2), targets=("d0", "d1", "d2"))
  assert {r.target for r in more} == {"d2"}
  assert len(more) == 6
  assert results.read_bytes().splitlines()[: len(lines)] == lines
  assert len(read_records(results)) == 2 * 3 * 3 * 2
  # Less is asked for: nothing is trained, nothing is lost.
  assert command()[0] == []
  assert len(read_records(results)) == 2 * 3 * 3 * 2
  stored = json.loads((tmp_path / "w" / "config.json").read_text())
  assert stored["methods"] == ["erm"]


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("recipes__mer_logdet__mer__weight", 7.0),  # Of a method that is not asked for.
    ("log_every", 10),
    ("wave", 2),
    ("selection", "re-paired_val"),
    ("data__audio", "waveform"),  # Of another set.
    ("backbones__bn_mode", "layer4"),
    ("reader__threads", 3),
    ("method", "erm"),
  ],
)
def test_a_field_that_no_run_depends_on_trains_nothing(command, field, value):
  command()
  assert command(**{field: value})[0] == []


def test_another_setting_is_trained_and_shown_the_other_one_is_kept(command, tmp_path):
  command(methods=("erm", "mer_kde"))
  more, text = command(methods=("erm", "mer_kde"), recipes__mer_kde__mer__weight=0.3)
  assert {r.method for r in more} == {"mer_kde"}
  left = "mer_kde: 4 runs in a setting that the last command did not ask for"
  assert text == f"# name\n| erm 8 |\n| mer_kde 8 |\n{left}"
  more, text = command(network__hidden_dim=24)
  assert len(more) == 4
  assert "| erm 8 |" in text
  assert "\nerm: 4 runs in a setting" in text
  # Back to the first setting: it is there.
  more, text = command(methods=("erm", "mer_kde"))
  assert more == []
  assert left in text
  records = read_records(tmp_path / "w" / "results.jsonl")
  widths = {(r["method"], r["hyper"]["network.hidden_dim"]) for r in records}
  assert widths == {("erm", 16), ("erm", 24), ("mer_kde", 16)}
  config = json.loads((tmp_path / "w" / "config.json").read_text())
  kept, _ = tables.shown(Workdir(tmp_path / "w", config))
  assert {r["hyper"]["network.hidden_dim"] for r in kept} == {16}


def test_other_sources_are_other_runs_of_the_same_table(command):
  command(targets=("d0",))
  more, text = command(targets=("d0",), sources=("d1",))
  assert len(more) == 2
  assert "in a setting that the last" in text
  assert command(targets=("d0",))[0] == []


def test_a_search_is_added_and_grown(command, tmp_path):
  space = {"erm": {"optimizer": {"lr": (0.001, 0.1)}}}
  command()
  runs, _ = command(search__trials=2, search__space=space)
  assert {r.seed for r in runs if len(r.overrides) and r.seed >= 100} == {100, 101}
  # Default and two trials of two targets and two seeds; the largest rate is best.
  assert len([r for r in runs if r.seed >= 100]) == 3 * 2 * 2
  trials = lambda: {
    r["trials"]
    for r in read_records(tmp_path / "w" / "results.jsonl")
    if r["hyper"]["optimizer.lr"] != pytest.approx(0.01)
  }
  assert trials() == {3}
  runs, _ = command(search__trials=3, search__space=space)
  assert len([r for r in runs if r.seed >= 100]) == 1 * 2 * 2
  # What was chosen before owns up to the larger search, or another one is chosen.
  config = json.loads((tmp_path / "w" / "config.json").read_text())
  kept, _ = tables.shown(Workdir(tmp_path / "w", config))
  assert {r["trials"] for r in kept} == {4}


def test_an_interrupted_command_gets_the_same_list_again(command, monkeypatch):
  command()
  fields = {"seeds": (0, 1, 2, 3)}
  listed, stop = [], tables.train_all

  def interrupted(shared, runs, on_wave, *, done=()):
    listed.append((list(runs), {*done} & {*runs}))
    if len(listed) == 1:
      stop(shared, runs[:3], on_wave, done=done)
      raise KeyboardInterrupt
    stop(shared, runs, on_wave, done=done)

  monkeypatch.setattr(tables, "train_all", interrupted)
  with pytest.raises(KeyboardInterrupt):
    command(**fields)
  command(**fields)
  (first, before), (second, after) = listed
  assert first == second  # So its waves, and its numbers, are the same.
  assert len(first) == 4
  assert before == set()
  assert after == set(first[:3])


def test_a_lost_record_is_trained_again(command, tmp_path):
  command()
  path = tmp_path / "w" / "results.jsonl"
  path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
  assert [(r.target, r.seed) for r in command()[0]] == [("d0", 0)]
  assert len(read_records(path)) == 8


def test_another_protocol_is_refused_by_name(command, tmp_path):
  command()
  before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
  with pytest.raises(
    WorkdirError, match=r"protocol: config.split_seed was 0 and is now 3"
  ):
    command(split_seed=3)
  with pytest.raises(WorkdirError, match=r"config.data.cooccurrence.seed was 1 and is"):
    command(data__cooccurrence__seed=4)
  assert before == sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))


def test_other_data_under_the_same_name_are_refused(command, monkeypatch, tmp_path):
  command()
  load = launch.make_setup

  def other(config):
    setup = load(config)
    changed = dataclasses.replace(setup.dataset, version="2")
    return dataclasses.replace(setup, dataset=changed)

  monkeypatch.setattr(launch, "make_setup", other)
  with pytest.raises(WorkdirError, match=r"records of version \w+ of the data, which "):
    command()


def test_a_workdir_of_an_older_version(command, tiny, tmp_path):
  command()
  folder = tmp_path / "w"
  stored = json.loads((folder / "config.json").read_text())
  del stored["data"]["target_rows"]
  (folder / "config.json").write_text(json.dumps(stored))
  with pytest.raises(WorkdirError, match=r"older version \(its config.json has no con"):
    command()
  # The same config, but ids and hashes of before.
  (folder / "config.json").unlink()
  path = folder / "results.jsonl"
  rows = [dict(r, config_hash="0" * 16) for r in read_records(path)]
  for row in rows:
    row["hyper"] |= {f"{k}={v}": 1.0 for k, v in row.pop("tags").items()}
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  with pytest.raises(WorkdirError, match="of another protocol, or of an older version"):
    command()
  text = run(tiny("", methods=("erm",)), workdir=str(folder), mode="report")
  assert "| erm" in text


def test_the_default_folder_is_named_by_the_protocol(
  tiny, trained, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  base = {"methods": ("erm",), "targets": ("d0",), "seeds": (0,)}
  for fields in (base, base | {"seeds": (0, 1)}, base | {"optimizer__lr": 0.5}):
    run(tiny("", **fields), name="toy")
  (folder,) = (tmp_path / "runs").iterdir()
  assert folder.name.startswith("toy-")
  run(tiny("", **base, total_steps=40), name="toy")
  assert len([*(tmp_path / "runs").iterdir()]) == 2
  # A benchmark has tables inside; what is reported is what there is.
  config = tiny("", **base, total_steps=60)
  made = [run(config, name="toy", mode=mode) for mode in ("benchmark", "report")]
  assert made[0] == made[1]
  names = [p.name for p in (tmp_path / "runs").iterdir()]
  assert [name.endswith("-benchmark") for name in sorted(names)].count(True) == 1


def test_single_runs_and_a_table_share_a_folder(
  tiny, train, tmp_path, finished, trained
):
  """Two single runs, then the table that lacks the others."""
  _, workdir = finished["resident"]
  folder = tmp_path / "w"
  shutil.copytree(workdir.path, folder)
  before = read_lines(folder / "metrics.jsonl")
  train(folder, method="erm")
  rows = read_lines(folder / "metrics.jsonl")
  assert rows[: len(before)] == before
  assert len({row["run"] for row in rows}) == 2
  for part in ("checkpoints", "tensorboard"):
    assert {p.name for p in (folder / part).iterdir()} == {row["run"] for row in rows}
  config = tiny("", methods=("erm",), targets=("d0", "d1"), seeds=(0,))
  run(config, workdir=str(folder))
  assert [(r.method, r.target, r.seed) for r in trained[0]] == [("erm", "d0", 0)]
  # Each of the single runs is evaluated by itself.
  for method in ("erm", "mer_kde+mm_alternate"):
    config = tiny("d1", method=method)
    run(config, workdir=str(folder), mode="evaluate")
    found = json.loads((folder / "evaluation.json").read_text())
    setup = make_setup(validate(config))
    assert found["run_id"] == run_id(setup, Run(method, "d1", 0))
    assert any(
      math.isclose(found["metrics"]["val/nll"], r["metrics"]["val/nll"], rel_tol=1e-6)
      for r in read_records(folder / "results.jsonl")
      if r["run_id"] == found["run_id"]
    )


def test_the_name_of_a_run_is_no_id(tiny):
  """One name for two recipes gives two ids; a default added later, off, gives one."""
  setup = make_setup(validate(tiny("")))
  other = make_setup(validate(tiny("", recipes__mer_kde__mer__scope="per_domain")))
  one = Run("mer_kde", "d0", 0)
  assert run_id(setup, one) != run_id(other, one)
  assert run_id(setup, Run("erm", "d0", 0)) == run_id(other, Run("erm", "d0", 0))
  older = identity(setup, one)
  assert older["hyper"].pop("network.embedding_dropout") == 0.0
  assert protocol.run_id(older) == run_id(setup, one)


def test_what_a_method_changes_of_the_network_belongs_to_its_runs(tiny):
  """It shares a table with plain fusion, whose runs stay as they are."""
  wide = {"network": {"hidden_dim": 48}, "optimizer": {"schedule": "constant"}}
  config = tiny("")
  config.recipes.wide, config.methods = wide, ("erm", "wide")
  setup = make_setup(validate(config))
  found = identity(setup, Run("wide", "d0", 0))
  assert found["hyper"]["network.hidden_dim"] == 48
  assert found["tags"]["optimizer.schedule"] == "constant"
  plain = make_setup(validate(tiny("")))
  erm = Run("erm", "d0", 0)
  assert identity(setup, erm) == identity(plain, erm)
  assert found["config_hash"] == identity(plain, erm)["config_hash"]


def test_a_workdir_that_vanishes_is_an_error(command, tmp_path, monkeypatch):
  stop = tables.train_all

  def vanish(shared, runs, on_wave, *, done=()):
    shutil.rmtree(tmp_path / "w")
    stop(shared, runs, on_wave, done=done)

  monkeypatch.setattr(tables, "train_all", vanish)
  with pytest.raises(WorkdirError, match="was removed or emptied while"):
    command()
  assert not (tmp_path / "w" / "results.jsonl").exists()


def test_records_are_counted_before_done_is_written(command, tmp_path, monkeypatch):
  stop = tables.train_all

  def lose(shared, runs, on_wave, *, done=()):
    stop(shared, runs[:2], on_wave, done=done)
    (tmp_path / "w" / "results.jsonl").unlink()
    stop(shared, runs[2:], on_wave, done=done)

  command(targets=("d0",))
  monkeypatch.setattr(tables, "train_all", lose)
  with pytest.raises(
    WorkdirError, match="lacks records of 4 of 6 runs: it was removed"
  ):
    command(targets=("d0", "d1", "d2"))
  assert not (tmp_path / "w" / "done").exists()  # That of the first command.
  monkeypatch.setattr(tables, "train_all", stop)
  assert len(command(targets=("d0", "d1", "d2"))[0]) == 4
  assert (tmp_path / "w" / "done").exists()


def test_a_table_whose_runs_all_diverge_says_so(command, tmp_path):
  runs, text = command(optimizer__lr=1e10)
  assert len(runs) == 4
  assert "Every run diverged" in text
  assert "erm, target d1, seed 1: loss/fused stopped being finite at step 5" in text
  assert (tmp_path / "w" / "report" / "report.md").read_text() == text + "\n"
  assert command(optimizer__lr=1e10) == ([], text)
  # Another learning rate is another run.
  runs, text = command()
  assert len(runs) == 4
  assert "stopped being finite" not in text


def test_a_set_whose_runs_all_diverge_does_not_end_a_benchmark(
  tiny, trained, tmp_path, capsys
):
  config = tiny("", methods=("erm",), targets=("d0",), seeds=(0, 1))
  config.benchmark.datasets = {
    "wild": {"optimizer": {"lr": 1e10}},
    "/Calm/x": {},
  }
  again = []
  for _ in range(2):
    again.append(run(config, workdir=str(tmp_path / "w"), mode="benchmark"))
  assert again[0] == again[1]
  assert len(trained) == 2
  assert "\nwild/leave_one_domain_out/m0+m1: erm, target d0, seed 0: loss/" in again[0]
  assert "| erm 4 |" in again[0]
  progress = (tmp_path / "w" / "progress.md").read_text()
  assert re.search(r"m0\+m1 +\| +2/2 \| every run diverged \|", progress)
  assert (tmp_path / "w" / "done").exists()
  # The name of a set is no path.
  assert [p.name for p in tmp_path.iterdir()] == ["w"]
  inside = {p.name for p in (tmp_path / "w" / "tables").iterdir()}
  assert inside == {"wild", "%2f@calm%2fx"}
  # A method more trains its own runs in each table.
  trained.clear()
  config.methods = ("erm", "heads")
  run(config, workdir=str(tmp_path / "w"), mode="benchmark")
  assert [{r.method for r in call} for call in trained] == [{"heads"}] * 2
  cells = benchmark.plan(validate(config), tmp_path / "w")
  assert [cell.workdir.finished for cell in cells] == [True, True]


def damaged(content: bytes, rng) -> bytes | None:
  """Another content of a file; None removes it."""
  at = int(rng.integers(len(content)))
  flipped = bytearray(content)
  flipped[at] ^= 1 << int(rng.integers(8))
  kinds = (bytes(flipped), content[:at], b"", content + content[at:], None)
  return kinds[int(rng.integers(len(kinds)))]


@pytest.fixture(scope="module")
def three_settings(tmp_path_factory):
  return tmp_path_factory.mktemp("three_settings")


@pytest.mark.parametrize(
  "seed", [s if s < 10 else pytest.param(s, marks=pytest.mark.slow) for s in range(30)]
)
def test_a_damaged_file_is_named_or_made_good(command, three_settings, tmp_path, seed):
  """Never a traceback of the program's own, never other numbers without a word."""
  asked = {"methods": ("erm", "mer_kde")}
  if (three_settings / "text").exists():
    shutil.copytree(three_settings / "w", tmp_path / "w")
    text = (three_settings / "text").read_text()
  else:
    command(**asked, optimizer__lr=1e10)
    command(**asked, optimizer__lr=0.02)
    _, text = command(**asked)
    shutil.copytree(tmp_path / "w", three_settings / "w")
    (three_settings / "text").write_text(text)
  rng = np.random.default_rng(seed)
  folder = tmp_path / "w"
  names = ("config.json", "asked.json", "results.jsonl", "diverged.jsonl", "done")
  path = folder / names[seed % len(names)]
  content = damaged(path.read_bytes(), rng)
  whole = {(r["run_id"], r["step"]): r for r in read_records(folder / "results.jsonl")}
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    error = None
    try:
      _, again = command(**asked)
    except USER_ERRORS as found:
      error = found
    if error is not None:
      assert str(path) in str(error) or str(folder) in str(error)
      assert len(str(error).splitlines()) == 1
      return
    # What was not asked for may be gone; what was is there, or was trained again.
    rows = lambda text: [line for line in text.splitlines() if line[0] == "|"]
    assert rows(again) == rows(text)
    for record in read_records(folder / "results.jsonl"):
      before = whole[record["run_id"], record["step"]]
      assert record["metrics"] == before["metrics"]
      assert record["seed"] == before["seed"]
