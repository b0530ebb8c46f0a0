"""Recipes: composition, defaults, and every wrong field named."""

import pytest

from mer_dg.methods import (
  TERMS,
  MethodError,
  Task,
  build_method,
  check_recipe,
  merge_recipes,
)

TASK = Task(("a", "b"), num_classes=3, num_domains=2, num_samples=9, total_steps=10)


def test_fused_is_always_there_and_defaults_fill_in():
  method = build_method("m", {"mer": {"weight": 2}}, TASK)
  assert list(method.terms) == ["fused", "mer"]
  assert method.hyper["fused"] == {"weight": 1.0}
  assert method.hyper["mer"]["weight"] == 2.0
  assert method.hyper["mer"]["weight_a"] == 1.0
  assert method.words["mer"]["estimator"] == "kde"


def test_a_method_has_the_numbers_of_its_estimator_only():
  logdet = build_method("m", {"mer": {"estimator": "logdet"}}, TASK).hyper["mer"]
  assert "bandwidth" not in logdet
  assert "spectral_weight" in logdet
  assert "spectral_weight" not in build_method("m", {"mer": {}}, TASK).hyper["mer"]


def test_composition_takes_the_terms_of_both_and_the_later_fields():
  recipes = {"a": {"mer": {"weight": 1, "start": 0.5}}, "b": {"mer": {"weight": 2}}}
  recipes["c"] = {"unimodal": {"weight": 0.1}}
  merged = merge_recipes("a+b+c", recipes)
  assert merged == {"mer": {"weight": 2, "start": 0.5}, "unimodal": {"weight": 0.1}}
  assert recipes["a"]["mer"]["weight"] == 1  # Not changed in place.
  with pytest.raises(MethodError, match=r"'x' is not one of \('a', 'b', 'c'\)"):
    merge_recipes("a+x", recipes)


@pytest.mark.parametrize(
  ("recipe", "message"),
  [
    ({"mre": {}}, r"config.recipes.m.mre: 'mre' is not one of \('fused'"),
    ({"mer": 3}, "config.recipes.m.mer=3 must be a group"),
    ({"mer": {"wieght": 1}}, "config.recipes.m.mer.wieght: no such field"),
    ({"mer": {"weight": -1}}, r"mer.weight=-1 must lie in \[0.0, 10000.0\]"),
    ({"mer": {"weight": float("nan")}}, "mer.weight=nan must lie in"),
    ({"mer": {"weight": "1"}}, "mer.weight='1' must be a number"),
    ({"mer": {"weight": True}}, "mer.weight=True must be a number"),
    ({"mer": {"estimator": "kd"}}, r"mer.estimator='kd' is not one of \('kde', "),
    ({"mer": {"scope": "domain"}}, r"'domain' is not one of \('batch', 'per_domain'\)"),
    ({"mer": {"weight_c": 1}}, "mer.weight_c: no such field"),
    ({"unimodal": {"weight_a": 1}}, "unimodal.weight_a: no such field"),
    ({"mer": {"marginal_weight": 1}}, "has no effect with estimator='kde'"),
    ({"mer": {"estimator": "logdet", "bandwidth": 1}}, "bandwidth=1 has no effect"),
  ],
)
def test_errors_name_field_value_and_what_is_allowed(recipe, message):
  with pytest.raises(MethodError, match=message):
    build_method("m", recipe, TASK)


def test_modality_weights_pass_while_modalities_are_unknown_but_not_their_values():
  check_recipe("m", {"mer": {"weight_anything": 2.0}})
  with pytest.raises(MethodError, match="weight_anything=-2"):
    check_recipe("m", {"mer": {"weight_anything": -2.0}})
  with pytest.raises(MethodError, match="unimodal.weight_a: no such field"):
    check_recipe("m", {"unimodal": {"weight_a": 1.0}})


def test_every_term_has_a_weight_and_sane_specs():
  for name, spec in TERMS.items():
    assert "weight" in spec.numeric, name
    for number in spec.numeric.values():
      assert number.low <= number.default <= number.high
    for option, values in spec.only.values():
      assert set(values) <= set(spec.options[option])
