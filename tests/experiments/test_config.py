"""Every config file is valid; every wrong field is named before anything compiles."""

import dataclasses
import importlib
import pathlib

import pytest

from mer_dg.experiments import ConfigError, check, make_setup, validate
from mer_dg.experiments.config import Config, as_dict, fields_of, protocol_hash
from mer_dg.methods import MethodError

CONFIGS = sorted(
  path.stem
  for path in (pathlib.Path(__file__).resolve().parents[2] / "configs").glob("*.py")
  if not path.stem.startswith("_")
)
# Config files that stand for no experiment without an argument.
ARGUMENTS = {"epic_kitchens": ["D3,va"], "hac": ["cartoon"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_is_valid(name):
  module = importlib.import_module(f"configs.{name}")
  config = validate(module.get_config(*ARGUMENTS.get(name, [])))
  assert config.methods
  assert module.__doc__
  if hasattr(module, "sweep"):
    runs = []
    module.sweep(lambda **fields: runs.append(fields))
    assert runs
    validate(module.get_config(runs[-1]["config_arg"]))


def leaves(kind, path=()):
  for name, of in fields_of(kind).items():
    if dataclasses.is_dataclass(of):
      yield from leaves(of, (*path, name))
    else:
      yield (*path, name)


def test_names_of_the_mixing_study():
  from configs import mm_study

  for dataset in mm_study.SETS:
    for fusion in mm_study.FUSIONS:
      for search, trials in (("", 0), (",search", 16)):
        config = validate(mm_study.get_config(f"{dataset},{fusion}{search}"))
        assert config.network.fusion == fusion
        assert config.search.trials == trials
  for wrong in ("av_digits", "av_digits,sum", "x,late", "av_digits,late,find", ""):
    with pytest.raises(ValueError, match="is not SET,FUSION"):
      mm_study.get_config(wrong)
  with pytest.raises(ValueError, match="is not SET,FUSION"):
    mm_study.get_config("av_digits,late,search,more")


@pytest.mark.parametrize("path", list(leaves(Config)), ids=".".join)
def test_every_field_refuses_nonsense_and_names_itself(tiny, path):
  field = "config." + ".".join(path)
  for value in (object(), None, -7, float("nan"), "nonsense", (1.5,), {"x": 1}):
    config = as_dict(validate(tiny()))
    group = config
    for name in path[:-1]:
      group = group[name]
    fine = group[path[-1]]
    # What is a value of the right type may be allowed: names are any string, say.
    if type(value) is type(fine) and not isinstance(value, int | float | dict):
      continue
    if isinstance(value, tuple) and isinstance(fine, list):
      continue
    if value == "nonsense" and path[-1] in ("path", "target", "weights"):
      continue
    group[path[-1]] = value
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
      validate(config)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"methods": ()}, "config.methods=.. must be a tuple of at least 1"),
    ({"methods": ("erm", "erm")}, "config.methods=.* without repeats"),
    ({"methods": ("erm", "x")}, "config.methods=.*: method 'x' is not one of"),
    ({"method": "erm+x"}, r"config.method='erm\+x': method 'x' is not one of"),
    (
      {"method": "mer_kde+mer_logdet"},
      "wants mer.estimator='logdet', another part 'kde'",
    ),
    ({"method": "mer_kde+erm"}, "config.method=.*: 'erm' adds nothing to .'mer_kde'"),
    ({"seeds": (0, 1.5)}, r"config.seeds=\[0, 1.5\] must be a tuple, each an integer"),
    ({"seed": 2**32}, r"config.seed=4294967296 must be an integer in \[0, "),
    ({"metric": "f1"}, "config.metric='f1' must be one of .'accuracy', 'balanced"),
    ({"sources": ("d0", "d1")}, "config.target: 'd1' is also one of config.sources"),
    ({"network__dropout": 1.0}, r"config.network.dropout=1.0 must be .* \[0, 1\)"),
    ({"network__fusion": "max"}, "config.network.fusion='max' must be one of"),
    ({"network__hidden_dim": 2**31 - 1}, r"config.network.hidden_dim=.*1, 65536"),
    ({"optimizer__lr": 1e308}, "config.optimizer.lr=1e.308 must be a number in"),
    ({"optimizer__lr": 0.0}, "config.optimizer.lr=0.0 must be a number in .0.0"),
    ({"recipes__mer_kde__mer__weight": -1.0}, "config.recipes.mer_kde.mer.weight=-1"),
    ({"recipes__mer_kde__mer__scope": "all"}, "mer.scope='all' is not one of"),
    (
      {"recipes__erm": {"network": {"fusion": "max"}}, "method": "erm"},
      "config.recipes.erm.network.fusion='max' must be one of",
    ),
    (
      {"recipes__erm": {"optimizer": {"lrr": 1.0}}, "method": "erm"},
      "config.recipes.erm.optimizer.lrr is not a field",
    ),
    (
      {"search__space": {"md": {"fused": {"weight": (0.1, 1.0)}}}},
      r"space.md.fused is no term of the method; it has \('md', 'network', 'opt",
    ),
    (
      {"search__trials": 2, "search__seeds": (0,)},
      "config.search.seeds=.0,. and .*fresh",
    ),
  ],
)
def test_values_and_combinations(tiny, fields, message):
  with pytest.raises(ConfigError, match=message):
    validate(tiny(**fields))


@pytest.mark.parametrize(("given", "taken"), [(3, 2), (50, 10), (5, 5), (10, 10)])
def test_a_log_interval_that_does_not_divide_is_adjusted(tiny, given, taken):
  assert validate(tiny(log_every=given)).log_every == taken


def test_a_stream_is_one_run(tiny):
  with pytest.raises(ConfigError, match="config.driver='stream' trains one run"):
    validate(tiny("", driver="stream"))


@pytest.mark.parametrize(
  ("space", "message"),
  [
    ({"x": {}}, "space.x: method 'x' is not one of"),
    ({"erm": {"mer": {"weight": (1, 2)}}}, r"space.erm.mer is no term of the method"),
    ({"mer_kde": {"mer": {"wight": (1, 2)}}}, "space.mer_kde.mer.wight is not one of"),
    (
      {"mer_kde": {"mer": {"spectral_weight": (1, 2)}}},
      "spectral_weight is not one of",
    ),
    ({"mer_kde": {"mer": {"weight": (2, 1)}}}, r"weight=\[2, 1\] must be .low, high."),
    ({"mer_kde": {"mer": {"weight": (0, 1)}}}, "0 < low <= high"),
    ({"mer_kde": {"mer": {"weight": 3}}}, "mer.weight=3 must be .low, high."),
    ({"mer_kde": {"mer": {"start": (0.5, 2)}}}, r"within \[0.0, 1.0\]"),
    (
      {"mer_kde": {"optimizer": {"beta": (1, 2)}}},
      "optimizer.beta is not one of .'lr'",
    ),
    ({"mer_kde": 3}, "space.mer_kde=3 must be a group"),
    (
      {"erm": {"network": {"embedding_dropout": (0.1, 0.5)}}},
      "space.erm.network.embedding_dropout: .* a rate that is searched must not be 0",
    ),
  ],
)
def test_search_space(tiny, space, message):
  config = as_dict(validate(tiny()))
  config["search"]["space"] = space
  with pytest.raises(ConfigError, match=message):
    validate(config)


def test_modality_weights_are_checked_when_the_modalities_are_known(tiny):
  config = as_dict(validate(tiny()))
  config["recipes"]["mer_kde"]["mer"]["weight_m1"] = 0.5
  config["search"]["space"] = {"mer_kde": {"mer": {"weight_m0": [0.1, 1.0]}}}
  check(make_setup(validate(config)))
  config["search"]["space"]["mer_kde"]["mer"] = {"weight_m7": [0.1, 1.0]}
  with pytest.raises(ConfigError, match="space.mer_kde.mer.weight_m7 is not one of"):
    check(make_setup(validate(config)))
  config["search"]["space"] = {}
  config["recipes"]["mer_kde"]["mer"]["weight_m7"] = 0.5
  with pytest.raises(
    MethodError, match=r"mer_kde\S*\.mer\.weight_m7=0.5: no such field"
  ):
    check(make_setup(validate(config)))


def test_unknown_and_missing_fields(tiny):
  config = as_dict(validate(tiny()))
  config["data"]["pth"] = "x"
  with pytest.raises(ConfigError, match=r"config.data.pth is not a field; config.data"):
    validate(config)
  config = as_dict(validate(tiny()))
  del config["network"]["fusion"]
  with pytest.raises(ConfigError, match=r"config.network.fusion is missing"):
    validate(config)
  config = as_dict(validate(tiny()))
  config["network"] = 3
  with pytest.raises(ConfigError, match=r"config.network=3 must be a group"):
    validate(config)


def test_protocol_is_what_rows_of_a_table_share(tiny):
  reference = protocol_hash(validate(tiny()))
  same = {"seed": 5, "method": "erm", "driver": "stream", "data__path": "elsewhere"}
  same |= {"methods": ("erm",), "seeds": (7,), "targets": ("d0",), "sources": ("d0",)}
  same |= {"network__dropout": 0.1, "optimizer__lr": 0.5, "log_every": 10, "wave": 3}
  same |= {"search__trials": 4, "selection": "re-paired_val", "data__audio": "waveform"}
  other = {"total_steps": 40, "eval_every": 20, "batch_size": 6, "split_seed": 1}
  other |= {"metric": "balanced_accuracy", "protocol": "target_alone"}
  other |= {"data__val_fraction": 0.3, "data__cooccurrence__seed": 7}
  other |= {"data__drop_unseen_classes": True, "data__modalities": ("m1", "m0")}
  for field, value in same.items():
    assert protocol_hash(validate(tiny(**{field: value}))) == reference, field
  for field, value in other.items():
    assert protocol_hash(validate(tiny(**{field: value}))) != reference, field


def test_a_field_added_later_off_is_no_other_protocol(tiny):
  config = as_dict(validate(tiny()))
  older = {**config, "data": dict(config["data"])}
  del older["data"]["drop_unseen_classes"]
  assert protocol_hash(older) == protocol_hash(config)
  later = {**config, "data": {**config["data"], "later": 3}}
  assert protocol_hash(later) == protocol_hash(config)
