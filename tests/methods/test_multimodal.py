"""CMC, CMT, MOOSA, CMRF, MBCD, JAT, GMP, NEL: each one's own mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mer_dg.contracts import named_key
from mer_dg.entropy import unit_sphere
from mer_dg.losses import (
  cross_entropy,
  mean_shift_contrastive,
  supervised_contrastive,
)
from mer_dg.methods import _parts, cmrf, mbcd, moosa, nel
from tests.methods import linear
from tests.methods.linear import MODALITIES, ROWS, TASK, Run, make_batch, near

LACKS = np.arange(ROWS) % 4 > 0  # Two rows lack "a".


def test_cmc_contrasts_unit_projections_of_whole_rows():
  batch, run = make_batch(a=LACKS), Run("cmc", temperature=0.5)
  outputs = linear.apply(run.params, batch)
  unit = lambda r: r / jnp.linalg.norm(r, axis=1, keepdims=True)
  whole = {m: unit(r[LACKS]) for m, r in outputs.projections.items()}
  expected = supervised_contrastive(whole, batch["label"][LACKS], temperature=0.5)
  near(run.loss(batch)[0], expected)


def test_cmt_without_translators_is_the_distance_of_unit_projections():
  batch, run = make_batch(), Run("cmt", options={"translator": "none"})
  outputs = linear.apply(run.params, batch)
  one, other = jnp.eye(ROWS, 5)[:1], jnp.eye(ROWS, 5)[1:2]
  side = lambda row: jnp.tile(row, (ROWS, 1))
  apart = outputs._replace(projections={"b": side(3 * one), "a": side(2 * other)})
  near(run.loss(batch, outputs=apart)[0], np.sqrt(2))
  near(
    run.loss(batch, outputs=apart._replace(projections=dict.fromkeys("ba", side(one))))[
      0
    ],
    0.0,
  )


def test_cmt_translates_in_both_directions_and_moves_the_target_too():
  batch, run = make_batch(), Run("cmt")
  assert set(run.own) == {"translate_b_a", "translate_a_b"}
  moved = run.gradient(batch)
  assert all(np.abs(moved[f"encoder_{m}"]).max() > 0 for m in MODALITIES)
  own = jax.grad(lambda own: run.loss(batch, own=own)[0])(run.own)
  for layers in own.values():
    assert all(np.abs(layer["kernel"]).max() > 0 for layer in layers)


def test_moosa_puzzles_are_distinct_permutations_of_whole_parts():
  table = moosa.jigsaw_table((8, 4), 2)  # Parts of 4, 4, 2 and 2 columns: 4! orders.
  assert len(table) == len({tuple(row) for row in table}) == 24
  blocks = {(0, 1, 2, 3), (4, 5, 6, 7), (8, 9), (10, 11)}
  for row in table:
    left, found = list(row), set()
    while left:
      block = next(b for b in blocks if b[0] == left[0])
      assert tuple(left[: len(block)]) == block
      found.add(block)
      left = left[len(block) :]
    assert found == blocks
  assert moosa.jigsaw_table((8, 8), 4).shape == (128, 16)


def test_moosa_weighs_the_heads_of_each_sample_by_their_entropy():
  sure, flat = jnp.array([[40.0, 0.0], [40.0, 0.0]]), jnp.zeros((2, 2))
  here = jnp.array([[True, True, True], [True, False, True]])
  logits = {"b": sure, "a": flat, "fused": flat}
  label = jnp.array([1, 0])
  value, entropy = _parts.weighted_heads(logits, label, here, 1.0)
  # Entropies 0 and log 2, weights 1 and 1/2; the head that is not there has none.
  first = (40 * 1 + 2 * np.log(2) / 2) / 2
  second = (0 * 1 + np.log(2) / 2) / 1.5
  near(value, (first + second) / 2)
  near(entropy, 2 * np.log(2) / 3)
  of = lambda a: _parts.weighted_heads(logits | {"a": a}, label, here, 1.0)[0]
  grad = jax.grad(of)(flat + 0.5)
  np.testing.assert_array_equal(grad[1], 0.0)
  assert np.abs(grad[0]).max() > 0


def test_cmrf_shares_are_in_the_near_half():
  share = cmrf.near_share(jax.random.key(0), (4000,), 0.1)
  assert share.min() >= 0.5
  assert share.max() <= 1.0
  draws = stats.beta(0.1, 0.1).rvs(100_000, random_state=0)
  expected = np.quantile(draws[draws >= 0.5], [0.1, 0.25, 0.5])
  np.testing.assert_allclose(np.quantile(share, [0.1, 0.25, 0.5]), expected, atol=0.02)


def test_cmrf_distills_from_mixes_of_the_teacher_once_it_averages():
  batch = make_batch()
  before, after = Run("cmrf", step=0, start=0.1), Run("cmrf", step=1, start=0.1)
  assert before.loss(batch)[1]["cmrf/distill"] == 0.0
  value, aux = after.loss(batch)
  own = {
    m: unit_sphere(r) for m, r in linear.apply(after.params, batch).projections.items()
  }
  expected = 0.0
  for near_by, far in (("b", "a"), ("a", "b")):
    key = named_key(after.key, f"{near_by}/{far}")
    share = cmrf.near_share(key, (ROWS,), 0.1)[:, None]
    mix = share * own[near_by] + (1 - share) * own[far]  # The teacher is the student.
    gap = mix / jnp.linalg.norm(mix, axis=1, keepdims=True) - own[near_by]
    expected += jnp.linalg.norm(gap, axis=1).mean()
  near(aux["cmrf/distill"], expected, tolerance=1e-4)
  contrast = supervised_contrastive(own, batch["label"], temperature=0.1)
  heads = linear.unimodal(after.params, batch)
  near(value, 2 * heads + 3 * contrast + 3 * expected, tolerance=1e-4)
  halved = Run("cmrf", step=0, weight_a=0.5, contrast=0.0)
  logits = linear.apply(halved.params, batch).unimodal_logits
  each = {m: cross_entropy(logits[m], batch["label"]) for m in MODALITIES}
  near(halved.loss(batch)[0], 2 * (each["b"] + 0.5 * each["a"]))


def test_cmrf_evaluates_the_uniform_mean_of_weights_since_its_start():
  run = Run("cmrf", start=0.2)
  weights = [
    jax.tree.map(lambda p, k=k: p + k, run.params) for k in (5.0, 1.0, 2.0, 6.0)
  ]
  for params in weights:
    run.update({}, params)
  # Steps 1 to 4; the mean starts with the weights of step 3, or of 2 with nothing.
  expected = jax.tree.map(lambda p: p + 4.0, run.params)
  near(run.term.eval_params(None, run.memory), expected)


def test_mbcd_takes_the_fused_loss_after_a_unimodal_step_of_the_encoders():
  batch = make_batch()
  run = Run("mbcd", inner_lr=0.3, heads=0.0, distill=0.0, distill_heads=0.0)
  run.params["head_b"] *= 4  # Sure of itself, so that some of "b" is dropped.
  slope = jax.grad(linear.unimodal)(run.params, batch)
  ahead = dict(run.params)
  for m in MODALITIES:
    ahead[f"encoder_{m}"] = run.params[f"encoder_{m}"] - 0.3 * slope[f"encoder_{m}"]
  outputs = linear.apply(ahead, batch)
  value, aux = run.loss(batch)
  rates = jnp.stack([aux[f"mbcd/drop/{m}"] for m in MODALITIES])
  assert rates.min() == 0.0 < rates.max()
  keep = mbcd.drop(run.key, jnp.ones((ROWS, 2), bool), rates)
  assert not keep.all()
  kept = {m: keep[:, i] for i, m in enumerate(MODALITIES)}

  def fused(params):
    logits = linear.fuse(params, linear.apply(params, batch).embeddings, kept)
    return cross_entropy(logits, batch["label"])

  near(value, fused(ahead))
  near(run.gradient(batch), jax.grad(fused)(ahead))  # First order.
  assert abs(value - cross_entropy(outputs.logits, batch["label"])) > 1e-3


def test_mbcd_drops_no_row_empty():
  here = jnp.array([[True, True], [True, False], [False, False]] * 50)
  keep = mbcd.drop(jax.random.key(0), here, jnp.array([0.9, 0.0]))
  assert (keep <= here).all()
  np.testing.assert_array_equal(keep.any(axis=1), here.any(axis=1))
  assert keep[::3, 1].all()
  assert 0 < keep[::3, 0].sum() < 15
  assert keep[1::3, 0].all()  # Nothing else is there.


def test_mbcd_teacher_divergences_vanish_where_it_agrees():
  batch = make_batch()
  run = Run("mbcd", inner_lr=0.0)
  _, aux = run.loss(batch)
  logits = linear.apply(run.params, batch)
  kl = 0.0
  p = jax.nn.log_softmax(logits.logits)
  for m in MODALITIES:
    q = jax.nn.log_softmax(logits.unimodal_logits[m])
    kl += jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=1))
  near(aux["mbcd/distill_heads"], kl)
  same = logits._replace(unimodal_logits=dict.fromkeys(MODALITIES, logits.logits))
  near(run.loss(batch, outputs=same)[1]["mbcd/distill_heads"], 0.0)


def test_jat_trusts_the_modality_whose_domain_cannot_be_told():
  batch, run = make_batch(), Run("jat")
  kernel = run.own["domain_b"][0]["kernel"]
  run.own["domain_b"][0]["kernel"] = jnp.zeros_like(kernel)  # Nothing of "b" arrives.
  _, aux = run.loss(batch)
  trust = {m: float(aux[f"jat/trust/{m}"]) for m in MODALITIES}
  near(sum(trust.values()), 1.0)
  assert trust["b"] > 0.5 > trust["a"]
  logits = linear.apply(run.params, batch).unimodal_logits
  heads = sum(trust[m] * cross_entropy(logits[m], batch["label"]) for m in MODALITIES)
  near(aux["jat/heads"], heads)


def test_jat_discriminators_learn_what_encoders_unlearn():
  batch = make_batch()
  settings = dict(heads=0.0, modality=0.0, domain=1.0)
  plain = Run("jat", reverse_domain=-1.0, **settings)  # Nothing is reversed.
  run = Run("jat", reverse_domain=0.5, **settings)
  own = lambda r: jax.grad(lambda own: r.loss(batch, own=own)[0])(r.own)
  near(own(run), own(plain))
  expected = jax.tree.map(lambda g: -0.5 * g, plain.gradient(batch))
  near(run.gradient(batch), expected)


def test_jat_of_one_source_domain_trusts_by_classes():
  task = TASK._replace(num_domains=1)
  batch, run = make_batch(), Run("jat", task)
  assert not [name for name in run.own if name.startswith(("domain", "all"))]
  _, aux = run.loss(batch)
  logits = linear.apply(run.params, batch).unimodal_logits
  entropy = [_parts.entropy_of(logits[m]).mean() for m in MODALITIES]
  trust = jnp.stack([aux[f"jat/trust/{m}"] for m in MODALITIES])
  near(trust, jax.nn.softmax(jnp.stack(entropy)))


@pytest.mark.parametrize("class_leads", [True, False])
def test_gmp_projects_the_gradient_of_the_larger_ratio(class_leads):
  c = {"encoder_a": jnp.array([2.0]), "head_a": jnp.array([1.0, 0.0])}
  d = {"encoder_a": jnp.array([-1.0]), "head_a": jnp.array([0.0, 3.0])}
  agreed = {"encoder_b": jnp.array([1.0, 5.0])}
  gives_way = {"a": class_leads, "b": True}
  found = _parts.agree(c | agreed, d | agreed, gives_way, linear.MODEL)
  near(found["encoder_b"], 2 * agreed["encoder_b"])
  flat = lambda g: np.concatenate([g["encoder_a"], g["head_a"]])
  x, y = flat(c), flat(d)
  if class_leads:
    x = x - (x @ y) / (y @ y) * y
  else:
    y = y - (x @ y) / (x @ x) * x
  near(flat(found), x + y)
  near(x @ y, 0.0)


def test_gmp_adds_its_gradient_to_encoders_and_heads():
  task, batch = TASK._replace(num_domains=1), make_batch()
  run = Run("gmp", task, weight=2.0, alpha_class=0.7)
  _, aux = run.loss(batch)
  factor = {m: float(aux[f"gmp/class/{m}"]) for m in MODALITIES}  # Times 3.
  assert min(factor.values()) < 3 == max(factor.values())
  logits = linear.apply(run.params, batch).unimodal_logits
  p = [jax.nn.softmax(logits[m])[jnp.arange(ROWS), batch["label"]].mean() for m in "ba"]
  near(min(factor.values()), 3 * (1 - np.tanh(0.7 * max(p) / min(p))))
  slope = jax.grad(linear.unimodal)(run.params, batch)
  update = run.term.transform(run.hyper).update
  grads = {"net": jax.tree.map(jnp.ones_like, run.params), "terms": {}}
  found, _ = update(grads, None, {}, aux=aux)
  for m in MODALITIES:
    for name in (f"encoder_{m}", f"head_{m}"):
      near(found["net"][name], 1 + 2.0 * factor[m] * slope[name])
  near(found["net"]["fusion"], grads["net"]["fusion"])


def test_gmp_discriminators_learn_and_encoders_are_fooled():
  batch = make_batch()
  run = Run("gmp", heads=0.0, domain=1.0, reversal=0.3, alpha_domain=0.0)
  value, aux = run.loss(batch)
  np.testing.assert_array_equal(run.gradient(batch)["encoder_a"], 0.0)
  own = jax.grad(lambda own: run.loss(batch, own=own)[0])(run.own)
  assert np.abs(own["domain"][-1]["kernel"]).max() > 0
  assert np.abs(own["domain_a"][0]["kernel"]).max() > 0

  def told(params):
    z = linear.apply(params, batch).embeddings
    see = lambda m: _parts.discriminate(run.own, "domain", m, z[m], run.key)
    return sum(cross_entropy(see(m), batch["domain"]) for m in MODALITIES)

  near(value, told(run.params))
  expected = jax.tree.map(lambda g: -0.3 * g, jax.grad(told)(run.params))
  near(aux["gradient"], expected)


def test_nel_second_view_is_noise_in_parts_of_each_channel():
  batch = make_batch(a=LACKS)
  x = batch["inputs"]["a"] * jnp.array([[1.0, 10.0, 0.0, 1.0]]) + 3.0
  x = jnp.where(LACKS[:, None], x, jnp.nan)
  batch["inputs"]["a"] = x
  view = nel.second_view(jax.random.key(0), batch, MODALITIES, 0.1)["inputs"]["a"]
  assert np.isfinite(view).all()
  view, x = np.asarray(view), np.asarray(x)
  moved = np.abs(view - x)[LACKS].mean(axis=0) / np.std(x[LACKS], axis=0).clip(1e-9)
  assert (moved[[0, 1, 3]] > 0.02).all()
  assert (moved[[0, 1, 3]] < 0.2).all()
  np.testing.assert_array_equal(view[LACKS, 2], x[LACKS, 2])


def test_nel_sums_its_four_losses_over_two_views():
  batch = make_batch(a=LACKS)
  run = Run("nel", noise=0.0, alpha=0.6, entropy=2.0)  # The views are equal.
  value, aux = run.loss(batch)
  outputs = linear.apply(run.params, batch)
  shared = _parts.project_shared(run.own, outputs.embeddings)
  shared = {m: r[LACKS] for m, r in shared.items()}
  shift = mean_shift_contrastive(shared, shared, neighbours=8, temperature=0.25)
  near(aux["nel/shift"], shift, tolerance=1e-4)
  twice = {m: jnp.concatenate([r, r]) for m, r in shared.items()}
  label = jnp.tile(batch["label"][LACKS], 2)
  contrast = supervised_contrastive(twice, label, temperature=0.1)
  near(aux["nel/contrast"], contrast, tolerance=1e-4)
  spectrum = np.linalg.svd(outputs.fused[LACKS], compute_uv=False) ** 2
  spectrum = spectrum[spectrum > 1e-6] / spectrum.sum()
  near(aux["nel/entropy"], -(spectrum * np.log(spectrum)).sum(), tolerance=1e-4)
  ce = cross_entropy(outputs.logits, batch["label"])
  expected = ce + 0.6 * shift + 0.4 * contrast - 2.0 / ROWS * aux["nel/entropy"]
  near(value, expected, tolerance=1e-4)


@pytest.mark.parametrize(
  ("name", "task", "message"),
  [
    ("moosa", TASK._replace(widths=(8, 7)), "moosa halves the embeddings"),
    ("moosa", TASK._replace(widths=(8, 6)), "moosa cuts embeddings into 4 parts"),
    ("nel", TASK._replace(widths=(8, 7)), "nel halves the embeddings"),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_sentence(name, task, message):
  with pytest.raises(ValueError, match=message):
    Run(name, task)
