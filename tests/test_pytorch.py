"""Tensors of PyTorch in our losses: the page of the docs, and what is refused."""

import re

import jax
import numpy as np
import pytest

import mer_dg
from tests.losses._cases import all_cases

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def page(repo_root):
  """Names that the code of docs/pytorch.md leaves behind."""
  text = (repo_root / "docs" / "pytorch.md").read_text()
  names = {}
  for block in re.findall(r"^```python\n(.+?)^```", text, re.M | re.S):
    exec(compile(block, "docs/pytorch.md", "exec"), names)
  return names


def test_the_loop_of_the_page_trains(page):
  losses = page["losses"]
  assert np.isfinite(losses).all()
  assert losses[-1] < losses[0] - 0.3


def test_value_and_gradient_are_those_of_jax(page):
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=(48, 8)).astype(np.float32) for _ in range(2)]
  # Transposed: strides that a row-major array does not have.
  tensors = [torch.tensor(a.T.copy()).T.requires_grad_() for a in arrays]
  assert not tensors[0].is_contiguous()
  (3 * page["mer"](*tensors)).backward()

  def loss(video, audio):
    z = {"video": video, "audio": audio}
    return 3 * mer_dg.entropy_regularizer(z, kernel="gaussian", bandwidth=0.3)[0]

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(*arrays)
  for t, expected in zip(tensors, gradients, strict=True):
    np.testing.assert_allclose(t.grad.numpy(), expected, rtol=1e-5, atol=1e-7)


def _grown(tree):
  """Arrays as tensors that require grad."""
  as_tensor = lambda a: torch.tensor(a, dtype=torch.float32, requires_grad=True)
  return jax.tree.map(as_tensor, tree)


Z = np.arange(6.0).reshape(3, 2)
CASES = {
  name: (case.fn, case.floats, case.integers) for name, case in all_cases(4).items()
}
for name in ("entropy_weights", "prototype_cross_entropy", "miro"):
  del CASES[name]  # Their cases compute with the arrays before the loss sees them.
ONE = {
  "kde_entropy": mer_dg.kde_entropy,
  "logdet_entropy": mer_dg.logdet_entropy,
  "knn_entropy": lambda z: mer_dg.knn_entropy(z, k=1),
  "unit_sphere": mer_dg.unit_sphere,
  "entropy_regularizer": lambda z: mer_dg.entropy_regularizer({"a": z}),
  "gradient_reversal": lambda z: mer_dg.gradient_reversal(z, 1.0),
  "masked_mean": mer_dg.masked_mean,
  "target_kl": lambda z: mer_dg.target_kl(np.ones((3, 2)) / 2, z),
  "prediction_strength": lambda z: mer_dg.prediction_strength(z, np.zeros(3, int)),
  "modality_mix": lambda z: mer_dg.modality_mix(
    jax.random.key(0), {"a": z}, np.zeros(3, int), num_classes=2
  ),
}
CASES |= {name: (lambda z, _, __, fn=fn: fn(z), Z, None) for name, fn in ONE.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_that_would_be_lost_is_a_sentence(name):
  fn, floats, integers = CASES[name]
  with pytest.raises(TypeError, match="is a tensor that requires grad, and JAX sees"):
    fn(_grown(floats), integers, None)


def test_a_tensor_without_gradient_is_an_array():
  label = np.array([0, 1, 1])
  found = mer_dg.cross_entropy(torch.tensor(Z), torch.tensor(label))
  assert float(found) == pytest.approx(float(mer_dg.cross_entropy(Z, label)))
