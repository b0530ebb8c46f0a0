"""Entropy with strengths that follow training."""

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.losses import cross_entropy
from mer_dg.methods import learned, mer
from mer_dg.methods._entropy import OPTIONS
from tests.methods import linear
from tests.methods.linear import MODALITIES, ROWS, TASK, Run, make_batch, near


def test_modalities_come_from_rows_of_one_class_whoever_else_is_there():
  label = jnp.array([2, 0, 0, 1, 0, 2, 1, 0])
  rows = jnp.array([True] * 6 + [False] * 2)
  z = {m: jnp.arange(8)[:, None] for m in MODALITIES}
  draws = [learned.within_class(jax.random.key(i), z, label, rows) for i in range(40)]
  moved = {m: np.stack([d[m][:, 0] for d in draws]) for m in MODALITIES}
  for m in MODALITIES:
    np.testing.assert_array_equal(np.sort(moved[m], axis=1), [np.arange(8)] * 40)
    np.testing.assert_array_equal(label[moved[m]][:, :6], [label[:6]] * 40)
    assert rows[moved[m]][:, :6].all()  # Rows that lack a modality stay away.
    assert set(moved[m][:, 1]) == {1, 2, 4}
  assert (moved["a"] != moved["b"]).any()  # They move independently.


def test_a_strength_grows_as_a_step_of_its_entropy_lowers_the_re_paired_loss():
  """By differences: the loss after a small step along each encoder's gradient."""
  batch = make_batch()
  run = Run("learned", weight=0.7, rate=0.3)
  _, aux = run.loss(batch)
  inner = mer.make(TASK, {k: v[0] for k, v in OPTIONS.items()})
  rows = np.ones(ROWS, bool)

  def re_paired(params):
    z = linear.apply(params, batch).embeddings
    z = learned.within_class(run.key, z, batch["label"], rows)
    logits = linear.fuse(params, z, dict.fromkeys(z, rows))
    return cross_entropy(logits, batch["label"])

  def entropy_loss(params):
    return inner.loss(linear.apply(params, batch), batch, run.context(params))[0]

  slope, against = jax.grad(entropy_loss)(run.params), jax.grad(re_paired)(run.params)
  for m in MODALITIES:
    assert aux[f"learned/{m}"] == 1.0
    name, size = f"encoder_{m}", 1e-2
    moved = lambda s, name=name: run.params | {name: run.params[name] - s * slope[name]}
    gain = (re_paired(moved(-size)) - re_paired(moved(size))) / (2 * size)
    norms = np.linalg.norm(slope[name]) * np.linalg.norm(against[name])
    near(aux["log"][m], 0.3 * gain / norms, 1e-3)
  before = run.loss(batch)[0]
  run.update(aux)
  value, later = run.loss(batch)
  for m in MODALITIES:
    near(later[f"learned/{m}"], jnp.exp(aux["log"][m]))
  factors = {f"weight_{m}": later[f"learned/{m}"] for m in MODALITIES}
  near(value, Run("mer", weight=0.7, **factors).loss(batch)[0])
  assert value != before
  run.hyper["rate"] = jnp.float32(1e6)
  bounds = [run.loss(batch)[1]["log"][m] for m in MODALITIES]
  near(np.abs(bounds), np.log([10.0, 10.0]))


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
    logits = z[m] @ own[f"probe_{m}"][0]["kernel"] + own[f"probe_{m}"][0]["bias"]
    score[m] = jax.nn.softmax(logits)[jnp.arange(ROWS), batch["label"]].mean()
  best = max(score.values())
  for m in MODALITIES:
    near(aux[f"explored/{m}"], 1 + 3.0 * (1 - score[m] / best))
  # The probes learn, and the network does not hear of it.
  slope = jax.grad(lambda own: run.loss(batch, own=own)[0])(run.own)
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(slope))
  factors = {f"weight_{m}": aux[f"explored/{m}"] for m in MODALITIES}
  expected = Run("mer", **factors)
  near(run.loss(batch)[0], expected.loss(batch)[0])
  jax.tree.map(near, run.gradient(batch), expected.gradient(batch))
