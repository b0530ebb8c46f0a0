import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.networks import initialization


def test_noise_has_the_deviation_in_the_box_and_no_correlation():
  box = initialization.fan_in(2.0)(None, (3, 50, 400))
  params = {"a": box, "b": box}
  drawn = initialization.draw(jax.random.key(0), params)
  # 60 000 draws: the deviation of a deviation is 0.3 %, of a correlation 0.4 %.
  np.testing.assert_allclose(drawn["a"].std(), (2 / 150) ** 0.5, rtol=0.01)
  correlation = np.corrcoef(drawn["a"].ravel(), drawn["b"].ravel())[0, 1]
  assert abs(correlation) < 0.02


def test_ordinary_parameters_stay():
  params = {"kernel": jnp.ones((2, 2)), "box": initialization.constant(1.0)(None, (2,))}
  drawn = initialization.draw(jax.random.key(0), params)
  np.testing.assert_array_equal(drawn["kernel"], params["kernel"])
  assert np.all(drawn["box"] != 1.0)


def test_boxes_open_inside_a_module():
  layer = initialization.dense(3, bias=0.5)
  variables = layer.init(jax.random.key(0), jnp.ones((1, 4)))
  params = initialization.draw(jax.random.key(1), variables["params"])
  # The sum over a kernel column plus the bias, by hand.
  expected = params["kernel"].sum(axis=0) + 0.5
  actual = layer.apply({"params": params}, jnp.ones((1, 4)))[0]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
