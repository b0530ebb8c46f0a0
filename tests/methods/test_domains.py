"""CORAL, MMD, DANN, V-REx, Group DRO, Fishr, MIRO: each one's own mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import losses
from mer_dg.methods import fishr
from mer_dg.networks import mlp
from tests.methods import linear
from tests.methods.linear import CLASSES, ROWS, Run, make_batch, near

LACKS = np.arange(ROWS) % 4 > 0  # Two rows lack "a", one of each domain.


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_distance_of_the_fused_feature_on_whole_rows_or_of_each_modality(name):
  batch = make_batch(a=LACKS)
  outputs = linear.apply(linear.make_params(), batch)
  distance = getattr(losses, name)
  whole = distance(outputs.fused[LACKS], batch["domain"][LACKS], num_domains=2)
  near(Run(name).loss(batch)[0], whole)
  each = [
    distance(outputs.embeddings["b"], batch["domain"], num_domains=2),
    distance(outputs.embeddings["a"][LACKS], batch["domain"][LACKS], num_domains=2),
  ]
  near(Run(name, options={"features": "each"}).loss(batch)[0], sum(each) / 2)


def test_dann_reverses_the_gradient_at_the_feature_and_nowhere_else():
  batch, run = make_batch(), Run("dann", step=5, reversal=0.5)
  outputs = linear.apply(run.params, batch)

  def plain(own, fused):
    logits = mlp(own["discriminator"], fused)
    return losses.cross_entropy(logits, batch["domain"])

  found = lambda own, fused: run.loss(
    batch, own=own, outputs=outputs._replace(fused=fused)
  )[0]
  own, feature = jax.grad(plain, argnums=(0, 1))(run.own, outputs.fused)
  own_found, feature_found = jax.grad(found, argnums=(0, 1))(run.own, outputs.fused)
  near(own_found, own)
  ramp = 2 / (1 + np.exp(-5.0)) - 1
  near(feature_found, -0.5 * ramp * feature)
  run.step = 0  # The ramp begins at nothing.
  np.testing.assert_array_equal(jax.grad(found, argnums=1)(run.own, outputs.fused), 0.0)


def test_vrex_is_the_variance_of_the_risks():
  batch = make_batch()
  outputs = linear.apply(linear.make_params(), batch)
  half = ROWS // 2
  first, second = (
    losses.cross_entropy(outputs.logits[rows], batch["label"][rows])
    for rows in (slice(half), slice(half, None))
  )
  expected = ((first - second) / 2) ** 2
  near(Run("vrex", step=1, start=0.1).loss(batch)[0], expected)
  near(Run("vrex", step=0, start=0.1, early=0.25).loss(batch)[0], 0.25 * expected)
  # A domain without rows is no part of it: nothing varies.
  near(Run("vrex", step=1).loss(make_batch(mask=np.arange(ROWS) < half))[0], 0.0)


def test_group_dro_moves_weight_to_the_worse_domain():
  run, half = Run("group_dro", eta=2.0), ROWS // 2
  batch = make_batch()
  logits = linear.apply(run.params, batch).logits
  risk = np.array([
    losses.cross_entropy(logits[rows], batch["label"][rows])
    for rows in (slice(half), slice(half, None))
  ])  # fmt: skip
  q = np.ones(2)
  for _ in range(2):
    value, aux = run.loss(batch)
    run.update(aux)
    q = q * np.exp(2.0 * risk)
    q /= q.sum()
    near(value, q @ risk)
  # Only one domain is there: its risk alone, whatever its weight.
  value, aux = run.loss(make_batch(mask=np.arange(ROWS) < half))
  near(value, risk[0])


def test_fishr_variance_is_that_of_the_gradients_of_rows():
  feature, label = linear.draw(ROWS, 5), jnp.arange(ROWS) % CLASSES
  weights = linear.draw(5 + 1, CLASSES, seed=1)
  where = jnp.arange(ROWS) < 6

  def loss(w, f, y):
    return -jax.nn.log_softmax(jnp.append(f, 1.0) @ w)[y]

  rows = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(weights, feature, label)
  logits = jnp.hstack([feature, jnp.ones((ROWS, 1))]) @ weights
  error = jax.nn.softmax(logits) - jax.nn.one_hot(label, CLASSES)
  found = fishr.gradient_variance(feature, error, where)
  near(found, np.var(rows[:6], axis=0).T)


def test_fishr_smooths_and_compares_domains_after_its_start():
  batch, run = make_batch(), Run("fishr", step=3, start=0.3, penalty=2.0, decay=0.75)
  now = {}
  for _ in range(2):
    value, aux = run.loss(batch)
    logits = mlp(run.own["classifier"], linear.apply(run.params, batch).fused)
    error = jax.nn.softmax(logits) - jax.nn.one_hot(batch["label"], CLASSES)
    fused = linear.apply(run.params, batch).fused
    for d in (0, 1):
      v = fishr.gradient_variance(fused, error, batch["domain"] == d)
      now[d] = 0.75 * now.get(d, 0.0) + 0.25 * v
    apart = jnp.mean(((now[0] - now[1]) / 2 / 0.25) ** 2)
    near(aux["fishr/apart"], apart)
    near(value, losses.cross_entropy(logits, batch["label"]) + 2 * apart)
    run.update(aux)
  run.step = 2
  near(run.loss(batch)[0], losses.cross_entropy(logits, batch["label"]))
  np.testing.assert_array_equal(run.gradient(batch)["encoder_a"], 0.0)


def test_miro_holds_embeddings_to_those_of_the_first_network():
  batch, run = make_batch(a=LACKS), Run("miro")
  near(run.loss(batch)[0], 2 * 0.5 * np.log(0.1))
  moved = run.params | {"encoder_a": run.params["encoder_a"] + 0.1}
  first, now = (linear.apply(p, batch).embeddings["a"] for p in (run.params, moved))
  square = np.mean((now - first)[LACKS] ** 2)
  near(run.loss(batch, moved)[0], np.log(0.1) + 0.5 * square / 0.1)
  run.update({}, moved)  # The reference stays.
  near(run.loss(batch)[0], np.log(0.1))
