"""Search: fresh seeds, source validation only, honest number of trials."""

import dataclasses
import math

import numpy as np
import pytest

from mer_dg.experiments import ConfigError, check, make_setup, single, validate
from mer_dg.experiments.budget import affordable_seeds, said, seconds_a_step
from mer_dg.experiments.choice import with_encoder
from mer_dg.experiments.grid import Grid, train_all
from mer_dg.experiments.runs import Evaluation, Run, record_of, run_hyper, run_id
from mer_dg.experiments.search import (
  choose,
  choose_by_sources,
  choose_encoders,
  draws,
  encoder_runs,
  final_runs,
  runs_before,
  search_runs,
)
from mer_dg.experiments.setup import _judges
from mer_dg.experiments.tables import is_trained, shown, train_table
from mer_dg.experiments.workdir import Workdir
from mer_dg.methods import hyperparameters_of
from mer_dg.protocol import Assignment, append_records

TASKS = [Assignment("d0"), Assignment("d1")]
SPACE = {"mer_kde": {"mer": {"weight": (0.01, 1.0)}, "optimizer": {"lr": (0.001, 0.1)}}}


@pytest.fixture
def config(tiny):
  made = tiny("", methods=("erm", "mer_kde"), search__trials=3)
  made.search.space = SPACE
  return validate(made)


def test_draws_fill_the_space_evenly_and_go_on_where_they_stopped():
  space = {"mer.weight": (0.01, 1.0), "optimizer.lr": (1e-4, 1e-2)}
  found = draws(space, 16, seed=3)
  share = {
    name: np.log([d[name] / low for d in found]) / np.log(high / low)
    for name, (low, high) in space.items()
  }
  for unit in share.values():
    assert unit.min() >= 0
    assert unit.max() <= 1
    # Independent draws leave one of eight parts empty in two of three cases.
    assert set((8 * unit).astype(int)) == set(range(8))
  # No quarter of the square has less than two of sixteen points.
  cells = [
    tuple(int(2 * u) for u in point) for point in zip(*share.values(), strict=True)
  ]
  assert min(cells.count((i, j)) for i in (0, 1) for j in (0, 1)) >= 2
  assert draws(space, 20, seed=3)[:16] == found
  wider = draws(space | {"mer.bandwidth": (0.1, 1.0)}, 16, seed=3)
  assert [{k: d[k] for k in space} for d in wider] == found
  assert draws(space, 16, seed=4) != found


def test_default_nothing_then_draws_and_a_method_without_space_has_the_default(config):
  runs = search_runs(config, TASKS)
  of = lambda method: [r for r in runs if r.method == method]
  assert len(of("erm")) == 2 * 2  # Targets x search seeds.
  assert len(of("mer_kde")) == 5 * 2 * 2  # Default, weight 0 and three draws.
  assert {r.seed for r in runs} == {100, 101}
  assert [r.overrides for r in of("mer_kde")[:4]] == [()] * 4
  assert [r.overrides for r in of("mer_kde")[4:8]] == [(("mer.weight", 0.0),)] * 4
  assert {name for name, _ in of("mer_kde")[-1].overrides} == {
    "mer.weight",
    "optimizer.lr",
  }


def evaluations(run, *values, nll=1.0):
  return [
    Evaluation(
      run, 10 * i, {"val/accuracy": v, "val/nll": nll, "target/accuracy": 1 - v}, 0.0
    )
    for i, v in enumerate(values)
  ]


def test_the_best_mean_of_best_source_validations_wins():
  runs = [Run("m", "t", s, o) for o in ((), (("w", 1.0),)) for s in (0, 1)]
  found = [
    *evaluations(runs[0], 0.5, 0.9, 0.1),
    *evaluations(runs[1], 0.5),
    *evaluations(runs[2], 0.75),
    *evaluations(runs[3], 0.75),
  ]
  assert choose(runs, found, "accuracy", "source_val") == {
    ("m", ("t", ())): ((("w", 1.0),), 2)
  }


def test_ties_go_to_lower_nll_then_to_the_default():
  runs = [Run("m", "t", 0, o) for o in ((), (("w", 1.0),), (("w", 2.0),))]
  equal = [e for r in runs for e in evaluations(r, 0.5)]
  assert choose(runs, equal, "accuracy", "source_val")[("m", ("t", ()))] == ((), 3)
  better = [*equal[:2], *evaluations(runs[2], 0.5, nll=0.5)]
  assert choose(runs, better, "accuracy", "source_val")[("m", ("t", ()))] == (
    (("w", 2.0),),
    3,
  )


def test_re_paired_validation_may_choose_another_trial():
  runs = [Run("m", "t", 0, o) for o in ((), (("w", 1.0),))]
  scores = ((0.9, 0.4), (0.8, 0.6))  # Paired and re-paired validation.
  found = [
    Evaluation(
      run,
      10,
      {
        "val/accuracy": paired,
        "val/nll": 1.0,
        "val/re-paired/accuracy": re_paired,
        "val/re-paired/nll": 1.0,
      },
      0.0,
    )
    for run, (paired, re_paired) in zip(runs, scores, strict=True)
  ]
  task = ("m", ("t", ()))
  assert choose(runs, found, "accuracy", "source_val")[task][0] == ()
  assert choose(runs, found, "accuracy", "re-paired_val")[task][0] == (("w", 1.0),)


def test_a_diverged_seed_is_no_better_mean():
  runs = [Run("m", "t", s, o) for o in ((), (("w", 1.0),)) for s in (0, 1)]
  found = [*evaluations(runs[0], 0.5), *evaluations(runs[1], 0.5)]
  found += evaluations(runs[2], 0.9)  # Seed 1 of this trial diverged.
  assert choose(runs, found, "accuracy", "source_val") == {("m", ("t", ())): ((), 2)}
  assert choose(runs, [], "accuracy", "source_val") == {("m", ("t", ())): ((), 2)}


def test_final_runs_have_fresh_seeds_and_own_up_to_the_trials(config):
  chosen = {("mer_kde", TASKS[0]): ((("mer.weight", 0.5),), 4)}
  runs = final_runs(config, TASKS, chosen)
  assert len(runs) == 2 * 2 * 5
  tuned = [r for r in runs if r.overrides]
  assert {(r.method, r.target, r.trials) for r in tuned} == {("mer_kde", "d0", 4)}
  assert {r.seed for r in tuned} == {0, 1, 2, 3, 4}


def test_overrides_reach_state_and_record(config):
  setup = make_setup(config)
  run = Run("mer_kde", "d0", 0, (("mer.weight", 0.25), ("optimizer.lr", 0.5)), trials=4)
  hyper = run_hyper(setup, run)
  assert hyper["method"]["mer"]["weight"] == 0.25
  assert hyper["optimizer"]["lr"] == 0.5
  record = record_of(setup, Evaluation(run, 10, {"val/accuracy": math.nan}, 1.0))
  assert record["hyper"]["mer.weight"] == 0.25
  assert record["tags"]["mer.estimator"] == "kde"
  assert record["tags"]["network.fusion"] == "concat"
  assert record["hyper"]["network.embedding_dim"] == 8
  assert record["trials"] == 4
  assert record["run_id"] == run_id(setup, run)
  # The default of the next run is untouched.
  default = config.recipes["mer_kde"]["mer"]["weight"]
  plain = run_hyper(setup, Run("mer_kde", "d0", 0))
  assert plain["method"]["mer"]["weight"] == default != 0.25
  with pytest.raises(
    ConfigError, match="override mer.weight: method 'erm' has no such"
  ):
    run_hyper(setup, Run("erm", "d0", 0, (("mer.weight", 0.25),)))


def test_a_method_without_a_space_takes_the_ranges_of_its_terms(tiny):
  config = tiny("", methods=("heads", "mer_vmf"), search__trials=2)
  config.search.space = {"heads": {"unimodal": {"weight": (0.2, 0.2)}}}
  config = validate(config)
  named = {r.method: r.overrides for r in search_runs(config, TASKS) if r.overrides}
  assert named["heads"] == (("unimodal.weight", pytest.approx(0.2)),)
  (name, value), *_ = named["mer_vmf"]
  low, high = hyperparameters_of("mer", {}, ())["weight"].search
  assert name == "mer.weight"
  assert low <= value <= high


def _records(setup, runs, score):
  """What runs leave that score ``score(run)`` on the domain they leave out."""
  metrics = lambda run: {"target/accuracy": score(run), "val/accuracy": 1 - score(run)}
  return [record_of(setup, Evaluation(run, 20, metrics(run), 0.0)) for run in runs]


def test_every_source_is_left_out_and_the_target_is_in_no_run_that_chooses(config):
  search = dataclasses.replace(
    config.search,
    rule="leave_one_source_out",
    seeds=(100,),
    encoders=("auto", "linear"),
  )
  setup = make_setup(dataclasses.replace(config, search=search))
  check(setup)
  runs = runs_before(setup)
  # Three domains: each pair (trained, judged), for each trial of both methods.
  assert {(r.sources, r.target) for r in runs} == {
    ((a,), b) for a in ("d0", "d1", "d2") for b in ("d0", "d1", "d2") if a != b
  }
  assert len(runs) == 6 * (1 + 5)
  # Judged on d1 alone is what d2 and then d0 hold out: the target never trains.
  better = lambda r: 0.9 if ("mer.weight", 0.0) in r.overrides else 0.5
  mine = lambda r: better(r) if {*r.sources, r.target} == {"d0", "d1"} else 0.6
  chosen = choose_by_sources(setup, runs, _records(setup, runs, mine))
  of = {task.target: choice for (m, task), choice in chosen.items() if m == "mer_kde"}
  assert of["d2"] == ((("mer.weight", 0.0),), 5)
  assert of["d0"] == of["d1"] == ((), 5)  # All alike: the default.
  # A trial that lacks a source is none.
  lost = [r for r in runs if r.target != "d0" or not r.overrides]
  chosen = choose_by_sources(setup, lost, _records(setup, lost, mine))
  assert chosen["mer_kde", setup.tasks[2]][0] == ()


def test_a_class_that_lives_in_two_domains_does_not_judge_what_never_saw_it(tiny):
  config = tiny("", methods=("erm",), search__encoders=("mlp", "linear"))
  whole = make_setup(validate(config)).dataset
  # Class 0 lives in d0 and d1: with d1 held out and d0 left out nobody has it.
  rows = np.flatnonzero((whole.domain != 2) | (whole.label > 0))
  setup = make_setup(validate(config), whole.take(rows))
  assert {len(np.unique(setup.dataset.label[s.test])) for s in setup.splits} == {3, 4}
  inner = setup.folds["d0", ("d2",)]
  assert 0 not in setup.dataset.label[inner.test]
  check(setup)


def test_sources_choose_the_encoder_of_each_target(config):
  search = dataclasses.replace(config.search, seeds=(7,), encoders=("auto", "linear"))
  setup = make_setup(
    dataclasses.replace(config, search=search, methods=("erm", "late"))
  )
  runs = encoder_runs(setup)
  assert {r.trained for r in runs} == {"erm", "erm@linear"}
  # Linear is much better where d2 is held out, and less than three points elsewhere.
  gain = lambda r: 0.25 if "d2" not in (*r.sources, r.target) else 0.029
  score = lambda r: 0.5 + (gain(r) if r.encoder == "linear" else 0.0)
  scores = choose_encoders(setup, _records(setup, runs, score))
  of = {task.target: found for task, found in scores.items()}
  assert of["d2"] == {"linear": 0.75, "auto": 0.5}
  assert of["d0"] == {"auto": 0.5, "linear": pytest.approx(0.529)}
  assert list(of["d0"]) == ["auto", "linear"]  # Less than three points are chance.
  best = {task: next(iter(found)) for task, found in scores.items()}
  table = final_runs(setup.config, setup.tasks, {}, best)
  assert {(r.target, r.encoder) for r in table} == {
    ("d0", ""),
    ("d1", ""),
    ("d2", "linear"),
  }
  assert {r.trials for r in table} == {2}


def test_a_table_with_chosen_encoders_ends_resumes_and_is_one_table(tiny, tmp_path):
  config = validate(
    tiny(
      "", methods=("erm",), seeds=(0,), total_steps=2, eval_every=2, log_every=2,
      search__encoders=("mlp", "linear"), search__seeds=(7,),
    )
  )  # fmt: skip
  setup, workdir = make_setup(config), Workdir(tmp_path / "w", config)
  check(setup)
  with workdir.writing():
    runs, began = train_table(setup, workdir)
  assert began
  assert len(workdir.records(workdir.inner)) == 2 * 6
  found, notes = shown(workdir)
  assert not notes
  assert [r["target"] for r in found] == ["d0", "d1", "d2"]
  assert {r["tags"]["network.encoder"] for r in found} <= {"mlp", "linear"}
  with workdir.writing():
    again, began = train_table(setup, workdir)
  assert (again, began) == (runs, False)


def test_many_domains_judge_in_groups_and_none_sees_its_target():
  names = tuple(f"d{i}" for i in range(9))
  trained = set()
  for target in names:
    sources = tuple(n for n in names if n != target)
    judges = _judges(target, sources, names)
    away = {n for n in names if names.index(n) % 4 == names.index(target) % 4}
    assert {j.target for j in judges} == {*names} - away
    for judge in judges:
      assert not {judge.target, *away} & {*judge.sources}
      trained.add(judge.sources)
  assert len(trained) == 6


@pytest.mark.parametrize(
  "fields",
  [
    {"search__encoders": ("auto", "mlp")},  # The same of vectors.
    {"search__encoders": ("mlp", "linear"), "network__encoder": "linear"},
    # Two sources give 32 rows of 40 each; one alone has no 64.
    {"search__encoders": ("mlp", "linear"), "batch_size": 64},
  ],
  ids=["the same", "named", "batch"],
)
def test_there_is_nothing_to_choose(tiny, fields):
  setup = make_setup(validate(tiny("", methods=("erm",), **fields)))
  check(setup)
  assert encoder_runs(setup) == []


def test_a_single_run_has_the_encoder_that_a_table_would_have(tiny, tmp_path):
  fields = dict(
    total_steps=2, eval_every=2, log_every=2, search__seeds=(7,),
    search__encoders=("mlp", "linear"), methods=("erm",),
  )  # fmt: skip
  config = validate(tiny("d2", method="heads", **fields))
  dataset = make_setup(config).dataset
  chosen = with_encoder(config, tmp_path, dataset)
  assert chosen.method in ("heads", "heads@linear")
  table = dataclasses.replace(config, target="", targets=("d2",))
  folder = Workdir(tmp_path / "encoders", table)
  records = folder.records(folder.inner)
  assert {tuple(r["sources"]) for r in records} == {("d0",), ("d1",)}
  # With scores of our own, and nothing to train again.
  folder.inner.unlink()
  for r in records:
    linear = r["tags"]["network.encoder"] == "linear"
    r["metrics"]["target/accuracy"] = 0.9 if linear else 0.5
  append_records(folder.inner, records)
  again = with_encoder(config, tmp_path, dataset)
  assert again.method == "heads@linear"
  run = single.the_run(make_setup(again, dataset))
  assert (run.method, run.encoder) == ("heads", "linear")
  # A method that names its encoder keeps it.
  named = dataclasses.replace(config, method="heads@mlp")
  assert with_encoder(named, tmp_path, dataset) is named


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"search__encoders": ("auto", "cnn")}, "config.search.encoders"),
    ({"search__encoders": ("auto",), "search__seeds": (0,)}, "seeds of the table"),
    ({"methods": ("erm", "erm@cnn")}, "config.recipes.erm@cnn.network.encoder"),
  ],
)
def test_wrong_encoders_are_named(tiny, fields, said):
  with pytest.raises(ConfigError, match=said):
    validate(tiny("", **fields))


def test_one_source_cannot_be_left_out(tiny):
  config = tiny("", sources=("d0",), targets=("d1",), search__trials=1)
  config.search.rule = "leave_one_source_out"
  with pytest.raises(ConfigError, match="two sources or more; target 'd1' has"):
    check(make_setup(validate(config)))


def test_encoders_that_never_meet_are_networks_on_one_modality_each(tiny):
  found = {}
  for modalities in (("m0", "m1"), ("m1",)):
    fields = dict(methods=("uniform",), targets=("d1",), data__modalities=modalities)
    setup = make_setup(validate(tiny("", **fields)))
    (run,) = final_runs(setup.config, setup.tasks, {})[:1]
    waves = []
    train_all(Grid(setup), [run], waves.append)
    found[modalities] = waves[-1].evaluations[-1].metrics
  both, alone = found.values()
  for split in ("val", "target"):
    assert both[f"{split}/only_m1/accuracy"] == alone[f"{split}/accuracy"]
    assert both[f"{split}/only_m0/accuracy"] != both[f"{split}/only_m1/accuracy"]


def test_seeds_that_fit_into_the_minutes(tiny, tmp_path):
  fields = dict(
    methods=("erm", "heads"), seeds=(0, 1, 2), total_steps=2, eval_every=1,
    log_every=1, search__encoders=("mlp", "linear"), search__seeds=(7,), minutes=1.0,
  )  # fmt: skip
  config = validate(tiny("", **fields))
  setup, workdir = make_setup(config), Workdir(tmp_path / "w", config)

  def measured(seconds):
    """Two steps of the three trainings of a wave, the first of which compiles."""
    for run in encoder_runs(setup):
      for step, wall in ((1, 50.0), (2, 50.0 + 3 * seconds)):
        metrics = {"target/accuracy": 0.5, "val/accuracy": 0.5}
        yield record_of(setup, Evaluation(run, step, metrics, wall))

  assert seconds_a_step(list(measured(2.5))) == {"mlp": 2.5, "linear": 2.5}
  # A seed: 3 tasks x 2 steps x 2 methods, a half dearer; 60 s are given.
  for seconds, count in ((1.0, 3), (1.66, 2), (60 / 18 - 0.01, 1), (1e6, 1)):
    found = affordable_seeds(setup, {}, list(measured(seconds)))
    assert found == config.seeds[:count]
  free = dataclasses.replace(config, minutes=0.0)
  assert affordable_seeds(make_setup(free), {}, list(measured(1e6))) == (0, 1, 2)
  assert affordable_seeds(setup, {}, []) == (0, 1, 2)  # Nothing was measured.
  # The table trains these, says so, has ended then, and trains the others later.
  workdir.path.mkdir()
  append_records(workdir.inner, list(measured(1e6)))
  with workdir.writing():
    runs, began = train_table(setup, workdir)
  assert began
  assert {run.seed for run in runs} == {0}
  assert is_trained(setup, workdir)
  assert not is_trained(make_setup(free), workdir)


def test_what_is_said_of_fewer_seeds(tiny):
  config = validate(tiny("", seeds=(0, 1, 2), minutes=10.0))
  assert said((0, 1, 2), config) == ""
  assert said((0,), config).startswith(
    "All 3 seeds would take more than 10 minutes here: training 1."
  )
