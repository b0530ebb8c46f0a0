"""AGM, G-Blend, MMPareto, uniform, Data Remixing, MLA: each one's own mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.losses import cross_entropy, gradient_blending_weights, mmpareto_direction
from mer_dg.methods import agm, g_blend, mla, recipes, remix
from tests.methods import linear
from tests.methods.linear import CLASSES, MODALITIES, ROWS, TASK, Run, make_batch, near


def test_shapley_values_of_two_are_half_of_two_marginal_gains():
  coalitions, shares = agm.shapley(2)
  assert coalitions.tolist() == [[False, True], [True, False], [True, True]]
  # f(1) counts for one and against the other: (f(12) - f(2) + f(1)) / 2.
  assert shares.tolist() == [[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5]]


def test_shapley_values_of_four_sum_to_the_grand_coalition_and_spare_the_useless():
  coalitions, shares = agm.shapley(4)
  worth = (coalitions[:, :3] * np.array([1.0, 2.0, 4.0])).sum(axis=1) ** 2
  value = shares @ worth
  np.testing.assert_allclose(value.sum(), worth[-1], rtol=1e-6)
  np.testing.assert_allclose(value[3], 0.0, atol=1e-5)
  assert value[0] < value[1] < value[2]


def test_agm_damps_the_modality_ahead_of_its_running_optimum():
  memory = {"mean": jnp.array([-1.0, -1.0]), "count": jnp.float32(1.0)}
  factor, new = agm.damping(memory, jnp.array([-0.5, -1.5]), True, 0.2)
  near(new["mean"], [-0.75, -1.25])
  # rho = exp(2 (s - mean s)): e and 1 / e now, their roots of the running means.
  lead = np.exp([0.5, -0.5]) - np.exp([1.0, -1.0])
  near(factor, np.exp(0.2 * lead))
  assert factor[0] < 1 < factor[1]
  same, old = agm.damping(memory, jnp.zeros(2), False, 0.2)
  near(same, [1.0, 1.0])
  near(old, memory)


def test_agm_scales_the_gradient_that_arrives_at_each_shapley_value():
  batch = make_batch(a=np.arange(ROWS) > 1)
  run = Run("agm", alpha=0.5)
  run.memory = {"mean": jnp.array([-3.0, -0.2]), "count": jnp.float32(9.0)}
  value, aux = run.loss(batch)
  plain = lambda logits: cross_entropy(logits, batch["label"])
  near(value, plain(linear.apply(run.params, batch).logits))
  factor = jnp.array([aux[f"agm/{m}"] for m in MODALITIES])
  assert abs(factor[0] - factor[1]) > 0.1

  # A linear fusion without bias: phi_m = z_m W_m, whatever the coalition.
  def scaled(params):
    z = linear.apply(params, batch).embeddings
    blocks = jnp.split(params["fusion"], 2)
    phi = [z[m] @ w for m, w in zip(MODALITIES, blocks, strict=True)]
    stop = jax.lax.stop_gradient
    logits = sum(k * p + (1 - k) * stop(p) for k, p in zip(factor, phi, strict=True))
    return plain(logits)

  # The coefficient of "b" is about 100.
  near(run.gradient(batch), jax.grad(scaled)(run.params), tolerance=1e-4)


def test_g_blend_learns_from_the_rows_that_are_not_held_out_alone():
  held = np.asarray(g_blend.held_out(jnp.arange(10_000), 0.1))
  assert 0.09 < held.mean() < 0.11
  batch = make_batch()
  held = g_blend.held_out(batch["index"], 0.5)
  assert 0 < held.sum() < ROWS
  run = Run("g_blend", held_out=0.5)
  outputs = linear.apply(run.params, batch)
  grad = jax.grad(lambda o: run.loss(batch, outputs=o)[0])(outputs)
  for g in (grad.logits, *grad.unimodal_logits.values()):
    np.testing.assert_array_equal(np.abs(g).sum(axis=1) > 0, ~held)


def test_g_blend_weighs_by_gain_over_overfitting_of_two_windows():
  run = Run("g_blend", window=0.2)  # Two of ten steps.
  first = run.memory["weights"]
  near(first, [0.3, 0.3, 0.4])
  # Losses of three heads on training and held-out rows, steps with unequal rows.
  old, new = (
    np.array([[2, 2, 2], [2.5, 2.6, 2.7]]),
    np.array([[1, 1, 1.5], [2, 2, 2.8]]),
  )
  for at, (losses, shift) in enumerate([(old, 1), (old, -0.5), (new, 1), (new, -0.5)]):
    near(run.memory["weights"], first)
    rows = 1.0 if shift > 0 else 2.0
    run.step = at
    aux = {"nll": jnp.float32(losses + shift), "count": jnp.full((2, 3), rows)}
    run.memory = run.term.update(run.memory, aux, run.params, run.context())
  heads = (*MODALITIES, "fused")
  named = [dict(zip(heads, v, strict=True)) for v in (*new, *old)]
  expected = gradient_blending_weights(*named, eps=1e-6, gain="positive")
  near(run.memory["weights"], [expected[h] for h in heads])
  near(run.memory["weights"][2], 0.0)  # Its held-out loss rose.


def test_mmpareto_gives_encoders_its_direction_and_all_else_the_sum():
  batch, run = make_batch(), Run("mmpareto", gamma=1.5)
  fused = lambda params: cross_entropy(
    linear.apply(params, batch).logits, batch["label"]
  )
  g = {"net": jax.grad(fused)(run.params), "terms": {}}
  u = {"net": run.gradient(batch), "terms": {}}
  before = jax.tree.map(lambda x: 2 * x, g)  # What an earlier transformation made.
  update = run.term.transform(run.hyper).update
  found, _ = update(
    before, None, {}, gradient=g, grad_fn=lambda params, only: u, model=linear.MODEL
  )
  for name, value in found["net"].items():
    f, own = g["net"][name], u["net"][name]
    both = f + own
    if name.startswith("encoder"):
      both = mmpareto_direction(f, own, gamma=1.5)
    near(value, both + f)


def test_uniform_trains_every_head_alone_and_is_judged_by_their_average():
  batch, run = make_batch(b=np.arange(ROWS) > 2), Run("uniform")
  near(run.loss(batch)[0], linear.unimodal(run.params, batch))
  np.testing.assert_array_equal(run.gradient(batch)["fusion"], 0.0)
  assert recipes()["uniform"]["network"] == {"fusion": "average"}


def test_remix_gives_a_row_to_its_least_sure_modality_that_is_there():
  flat, sure = jnp.zeros((3, CLASSES)), jnp.eye(3, CLASSES) * 9
  here = jnp.array([[True, True], [False, True], [True, False]])
  given = remix.weakest({"b": flat, "a": sure}, here)
  assert given.tolist() == [0, 1, 0]


def test_remix_trains_one_modality_on_the_rows_given_to_it():
  batch, turns = make_batch(a=np.arange(ROWS) > 1), set()
  flat = jnp.arange(ROWS) % 4 == 0  # Where "b" knows nothing; "a" elsewhere.
  for key in range(6):
    run = Run("remix", step=5, key=key)
    outputs = linear.apply(run.params, batch)
    logits = {"b": jnp.where(flat[:, None], 0, 9.0) * jnp.eye(ROWS, CLASSES)}
    logits["a"] = jnp.where(flat[:, None], 9.0, 0) * jnp.eye(ROWS, CLASSES)
    outputs = outputs._replace(unimodal_logits=logits)
    grad = jax.grad(lambda o, run=run: run.loss(batch, outputs=o)[0])(outputs)
    moved = {m: np.abs(g).sum(axis=1) > 0 for m, g in grad.embeddings.items()}
    turn = "b" if moved["b"].any() else "a"
    turns.add(turn)
    assert not moved["a" if turn == "b" else "b"].any()
    given = remix.weakest(
      {m: logits[m] for m in MODALITIES},
      jnp.stack([batch["present"][m] for m in MODALITIES], axis=1),
    )
    np.testing.assert_array_equal(moved[turn], given == MODALITIES.index(turn))
  assert turns == {"a", "b"}


def test_remix_warms_up_with_everything():
  batch, run = make_batch(), Run("remix", step=0, unimodal=0.5)
  fused = cross_entropy(linear.apply(run.params, batch).logits, batch["label"])
  near(run.loss(batch)[0], fused + 0.5 * linear.unimodal(run.params, batch))


def test_mla_projects_by_recursive_least_squares():
  h = linear.draw(3, linear.WIDTH)
  p = jnp.eye(linear.WIDTH)
  for row in h:
    p = mla.away(p, row, 0.3)
  direct = np.linalg.inv(np.eye(linear.WIDTH) + np.asarray(h.T @ h) / 0.3)
  np.testing.assert_allclose(p, direct, atol=1e-5)


def test_mla_later_modalities_do_not_move_the_head_along_earlier_features():
  batch, run = make_batch(), Run("mla", alpha=1e-6)
  shared = mla.share_heads(run.params, linear.MODEL)
  near(shared["head_a"], shared["head_b"])
  near(shared["head_a"], (run.params["head_a"] + run.params["head_b"]) / 2)
  z = linear.apply(run.params, batch).embeddings
  loss = lambda head, m: cross_entropy(z[m] @ head, batch["label"])
  own = {m: jax.grad(loss)(shared["head_a"], m) for m in MODALITIES}
  first = z["b"].mean(axis=0)
  away = np.eye(linear.WIDTH) - np.outer(first, first) / (first @ first)
  # Half of the shared gradient is each head's.
  expected = (own["b"] + away @ own["a"]) / 2
  grad = run.gradient(batch)
  np.testing.assert_allclose(grad["head_a"], expected, atol=1e-4)
  np.testing.assert_allclose(grad["head_b"], expected, atol=1e-4)
  # Encoders learn through the shared head as it is.
  through = lambda w: loss_of(batch, w, "a", shared["head_a"])
  near(grad["encoder_a"], jax.grad(through)(run.params["encoder_a"]))


def loss_of(batch, encoder, m, head):
  return cross_entropy(batch["inputs"][m] @ encoder @ head, batch["label"])


def test_mla_is_judged_with_the_shared_head():
  batch, run = make_batch(), Run("mla")
  run.update(run.loss(batch)[1])
  evaluated = run.term.eval_params(run.params, run.memory)
  near(evaluated, mla.share_heads(run.params, linear.MODEL))


@pytest.mark.parametrize(
  ("name", "task", "message"),
  [
    ("mla", TASK._replace(widths=(8, 6)), "mla shares one head; the widths"),
    ("g_blend", TASK._replace(num_samples=0), "g_blend needs stable sample ids"),
    ("agm", TASK._replace(modalities=tuple("abcdefg")), "7 are too many"),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_sentence(name, task, message):
  with pytest.raises(ValueError, match=message):
    Run(name, task)
