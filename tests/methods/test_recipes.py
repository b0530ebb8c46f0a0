"""Recipes: composition, defaults, and every wrong field named."""

import pytest

from mer_dg.contracts import Task
from mer_dg.methods import (
  SPECS,
  MethodError,
  build_method,
  check_recipe,
  hyperparameters_of,
  merge_recipes,
  recipes,
)

TASK = Task(
  ("a", "b"), num_classes=3, num_domains=2, num_samples=9, total_steps=10,
  widths=(4, 4), fused_width=8, projection_width=3,
)  # fmt: skip


def test_fused_is_always_there_and_defaults_fill_in():
  method = build_method("m", {"mer": {"weight": 2}}, TASK)
  assert list(method.terms) == ["fused", "mer"]
  assert method.hyper["fused"] == {"weight": 1.0}
  assert method.hyper["mer"]["weight"] == 2.0
  assert method.hyper["mer"]["weight_a"] == 1.0
  assert method.options["mer"]["estimator"] == "kde"


def test_a_method_has_the_numbers_of_its_estimator_only():
  logdet = build_method("m", {"mer": {"estimator": "logdet"}}, TASK).hyper["mer"]
  assert "bandwidth" not in logdet
  assert "spectral_weight" in logdet
  assert "spectral_weight" not in build_method("m", {"mer": {}}, TASK).hyper["mer"]


def test_composition_takes_the_terms_and_fields_of_all_parts():
  known = {
    "a": {"mer": {"weight": 1, "start": 0.5}},
    "b": {"mer": {"weight": 1, "ramp": 0.2}, "optimizer": {"lr": 0.1}},
    "c": {"unimodal": {"weight": 0.1}},
    "plain": {},
  }
  merged = merge_recipes("a+b+c", known)
  assert merged == {
    "mer": {"weight": 1, "start": 0.5, "ramp": 0.2},
    "optimizer": {"lr": 0.1},
    "unimodal": {"weight": 0.1},
  }
  assert list(merged["mer"]) == ["weight", "start", "ramp"]
  assert known["a"]["mer"] == {"weight": 1, "start": 0.5}  # Not changed in place.
  assert merge_recipes("plain", known) == {}


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ("a+x", r"'x' is not one of \('a', 'b'"),
    ("a+b", r"method 'a\+b': 'b' wants mer.weight=2, another part 1"),
    ("a+a", r"method 'a\+a': 'a' adds nothing to \['a'\]"),
    ("a+plain", r"method 'a\+plain': 'plain' adds nothing to \['a'\]"),
    ("less+a", r"method 'less\+a': 'less' adds nothing to \['a'\]"),
    ("a+net+wide", r"'wide' wants network.fusion='gated', another part 'late'"),
  ],
)
def test_parts_that_contradict_each_other_or_add_nothing(names, message):
  known = {
    "a": {"mer": {"weight": 1, "start": 0.5}},
    "b": {"mer": {"weight": 2}},
    "less": {"mer": {"start": 0.5}},
    "net": {"network": {"fusion": "late"}},
    "wide": {"network": {"fusion": "gated"}},
    "plain": {},
  }
  with pytest.raises(MethodError, match=message):
    merge_recipes(names, known)


@pytest.mark.parametrize(
  ("recipe", "message"),
  [
    ({"mre": {}}, r"config.recipes.m.mre: 'mre' is not one of \('fused'"),
    ({"mer": 3}, "config.recipes.m.mer=3 must be a group"),
    ({"mer": {"wieght": 1}}, "config.recipes.m.mer.wieght=1: no such field"),
    ({"mer": {"weight": -1}}, r"mer.weight=-1 must lie in \[0.0, 10000.0\]"),
    ({"mer": {"weight": float("nan")}}, "mer.weight=nan must lie in"),
    ({"mer": {"weight": "1"}}, "mer.weight='1' must be a number"),
    ({"mer": {"weight": True}}, "mer.weight=True must be a number"),
    ({"mer": {"estimator": "kd"}}, r"mer.estimator='kd' is not one of \('kde', "),
    ({"mer": {"scope": "domain"}}, r"'domain' is not one of \('batch', 'per_domain', "),
    ({"mer": {"weight_c": 1}}, "mer.weight_c=1: no such field"),
    (
      {"unimodal": {"weight_a": 1}},
      "unimodal.weight_a=1: no such field; .* \\('weight',\\)",
    ),
    (
      {"mer": {"marginal_weight": 1}},
      "mer.marginal_weight=1: no such field with estimator='kde'",
    ),
    (
      {"mer": {"estimator": "logdet", "bandwidth": 1}},
      "bandwidth=1: no such field with estimator='logdet'.*; there are .*'spectral_w",
    ),
    ({"mer": {}, "network": 3}, "config.recipes.m.network=3 must be a group"),
  ],
)
def test_errors_name_field_value_and_what_is_allowed(recipe, message):
  with pytest.raises(MethodError, match=message):
    build_method("m", recipe, TASK)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ("md+mixup", "'md.mixup': md and mixup each stand in for the fused loss; keep one"),
    ("moosa+mer_kde+group_dro", "moosa and group_dro each stand in"),
    ("ema+swad", "average and swad both choose the parameters that are evaluated"),
    ("uniform+late", "'late' wants network.fusion='late', another part 'average'"),
    ("mer_kde+mer_vmf", "'mer_vmf' wants mer.kernel='vmf', another part 'gaussian'"),
    ("sam+sam", r"'sam' adds nothing to \['sam'\]"),
    ("heads+mm", r"'heads' adds nothing to \['mm'\]"),
    ("cmc+cmt_l2", "'cmt_l2' wants cmc.weight=0.15, another part 3.0"),
  ],
)
def test_what_cannot_be_composed_is_one_sentence(names, message):
  with pytest.raises(MethodError, match=message) as error:
    build_method(names, merge_recipes(names, recipes()), TASK)
  assert "\n" not in str(error.value)


# fmt: off
NEEDS_TWO = {
  "mer_learned", "mer_explored",
  "agm", "cmc", "cmrf", "cmt_l2", "cmt_mlp", "g_blend", "gmp", "jat", "mbcd",
  "mla", "mmpareto", "moosa", "nel", "ogm_ge", "pmr", "remix", "rna",
  "simmmdg",
}
# fmt: on
NEEDS_DOMAINS = {"coral", "mmd", "dann", "vrex", "group_dro", "fishr"}
NEEDS_ROWS = {"coral", "mmd", "fishr", "mer_per_domain", "mer_per_class_and_domain"}


@pytest.mark.parametrize(
  ("task", "refused", "message"),
  [
    (
      TASK._replace(modalities=("a",), widths=(4,)),
      NEEDS_TWO,
      r"config.recipes.{0}.\w+: \w+ needs two modalities, not \('a',\) alone",
    ),
    (
      TASK._replace(num_domains=1),
      NEEDS_DOMAINS,
      "config.recipes.{0}.{0}: {0} needs two source domains, not 1",
    ),
    (
      TASK._replace(domain_rows=1),
      NEEDS_ROWS,
      "needs two rows of a source domain in a batch, not 1: config.batch_size must be "
      "at least 4",
    ),
    (
      TASK._replace(widths=(4, 6)),
      {"moosa", "mla"},
      "moosa cuts embeddings into 4 parts; it cannot cut {{'b': 6}}|mla shares one",
    ),
  ],
)
def test_a_task_that_is_too_small_is_refused_in_one_sentence(task, refused, message):
  for name, recipe in recipes().items():
    if name in refused:
      with pytest.raises(MethodError, match=message.format(name)) as error:
        build_method(name, recipe, task)
      assert "\n" not in str(error.value)
    else:
      build_method(name, recipe, task)


def test_modality_weights_pass_while_modalities_are_unknown_but_not_their_values():
  check_recipe("m", {"mer": {"weight_anything": 2.0}})
  with pytest.raises(MethodError, match="weight_anything=-2"):
    check_recipe("m", {"mer": {"weight_anything": -2.0}})
  with pytest.raises(MethodError, match="unimodal.weight_a=1.0: no such field"):
    check_recipe("m", {"unimodal": {"weight_a": 1.0}})


def test_recipes_are_written_out_and_are_those_of_their_terms():
  known = recipes()
  assert known["erm"] == {}
  assert known["mer_kde"]["mer"].keys() == {
    *SPECS["mer"].options, *hyperparameters_of("mer", {}, ()),
  }  # fmt: skip
  for name, recipe in known.items():
    build_method(name, recipe, TASK)  # Nothing in them is out of range.


def test_every_loss_has_a_weight_and_numbers_lie_in_their_ranges():
  for name, spec in SPECS.items():
    own = [{}, *(r[name] for r in spec.recipes.values() if name in r)]
    for fields in own:
      numbers = hyperparameters_of(name, fields, ("a",))
      assert spec.off is None or set(spec.off) <= set(numbers), name
      assert "weight_a" in numbers or not spec.per_modality_weight
      for number in numbers.values():
        assert number.low <= number.default <= number.high
        low, high = number.search or (number.default, number.default)
        assert number.low <= low <= high <= number.high
