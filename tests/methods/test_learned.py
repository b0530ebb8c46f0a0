"""Entropy with strengths that follow training."""

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.losses import cross_entropy
from mer_dg.methods import learned, mer
from mer_dg.methods._entropy import OPTIONS
from tests.factories import quick_jit
from tests.methods import linear
from tests.methods.linear import MODALITIES, ROWS, TASK, Run, make_batch, near


def test_modalities_come_from_rows_of_one_class_whoever_else_is_there():
  label = jnp.array([2, 0, 0, 1, 0, 2, 1, 0])
  rows = jnp.array([True] * 6 + [False] * 2)
  z = {m: jnp.arange(8)[:, None] for m in MODALITIES}
  draw = quick_jit(jax.vmap(lambda key: learned.within_class(key, z, label, rows)))
  found = draw(jax.random.split(jax.random.key(0), 40))
  moved = {m: np.asarray(found[m])[:, :, 0] for m in MODALITIES}
  for m in MODALITIES:
    np.testing.assert_array_equal(np.sort(moved[m], axis=1), [np.arange(8)] * 40)
    np.testing.assert_array_equal(label[moved[m]][:, :6], [label[:6]] * 40)
    assert rows[moved[m]][:, :6].all()  # Rows that lack a modality stay away.
    assert set(moved[m][:, 1]) == {1, 2, 4}
  assert (moved["a"] != moved["b"]).any()  # They move independently.


def test_a_strength_grows_as_a_step_of_its_entropy_lowers_the_re_paired_loss():
  """By differences: the loss after a small step along each encoder's gradient."""
  batch = make_batch()
  run = Run("learned", weight=0.7)

  @quick_jit
  def loss(memory, rate):
    run.memory, run.hyper["rate"] = memory, rate
    return run.loss(batch)

  before, aux = loss(run.memory, 0.3)
  inner = mer.make(TASK, {k: v[0] for k, v in OPTIONS.items()})
  rows = np.ones(ROWS, bool)

  def re_paired(params):
    z = linear.apply(params, batch).embeddings
    z = learned.within_class(run.key, z, batch["label"], rows)
    logits = linear.fuse(params, z, dict.fromkeys(z, rows))
    return cross_entropy(logits, batch["label"])

  def entropy_loss(params):
    return inner.loss(linear.apply(params, batch), batch, run.context(params))[0]

  slopes = lambda params: (jax.grad(entropy_loss)(params), jax.grad(re_paired)(params))
  slope, against = quick_jit(slopes)(run.params)
  for m in MODALITIES:
    assert aux[f"learned/{m}"] == 1.0
    name, size = f"encoder_{m}", 1e-2
    moved = lambda s, name=name: run.params | {name: run.params[name] - s * slope[name]}
    gain = (re_paired(moved(-size)) - re_paired(moved(size))) / (2 * size)
    norms = np.linalg.norm(slope[name]) * np.linalg.norm(against[name])
    near(aux["log"][m], 0.3 * gain / norms, 1e-3)
  value, later = loss(aux["log"], 1e6)
  for m in MODALITIES:
    near(later[f"learned/{m}"], jnp.exp(aux["log"][m]))
    near(np.abs(later["log"][m]), np.log(10.0))  # No further than the limit.
  factors = {f"weight_{m}": later[f"learned/{m}"] for m in MODALITIES}
  near(value, Run("mer", weight=0.7, **factors).loss(batch)[0])
  assert value != before


def test_the_worse_explored_modality_gets_more_entropy():
  batch = make_batch()
  run = Run("explored", eta=3.0, beta=0.5)
  near(run.loss(batch)[1]["explored/a"], 1.0)  # Nothing is known yet.
  own = {f"probe_{m}": run.own[f"probe_{m}"] for m in MODALITIES}
  run.update(run.loss(batch)[1])
  _, aux = run.loss(batch)
  z = linear.apply(run.params, batch).embeddings
  score = {}
  for m in MODALITIES:
    logits = z[m] @ own[f"probe_{m}"][0]["kernel"] + own[f"probe_{m}"][0]["bias"][None]
    score[m] = jax.nn.softmax(logits)[jnp.arange(ROWS), batch["label"]].mean()
  best = max(score.values())
  for m in MODALITIES:
    near(aux[f"explored/{m}"], 1 + 3.0 * (1 - score[m] / best))
  # The probes learn, and the network does not hear of it.
  slope = quick_jit(jax.grad(lambda own: run.loss(batch, own=own)[0]))(run.own)
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(slope))
  factors = {f"weight_{m}": aux[f"explored/{m}"] for m in MODALITIES}
  expected = Run("mer", **factors)
  near(run.loss(batch)[0], expected.loss(batch)[0])
  both = quick_jit(lambda: (run.gradient(batch), expected.gradient(batch)))
  near(*both())
