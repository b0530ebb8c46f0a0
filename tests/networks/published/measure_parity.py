"""Prints how far the networks are from the PyTorch definitions, at published size.

  PYTHONPATH=. python tests/networks/published/measure_parity.py [--small]

Needs PyTorch, and 12 GB for SlowFast. One random clip of the published input size per
network (``--small``: the sizes of the tests), random weights and batch-norm statistics,
evaluation mode and batch statistics. A deviation is the largest difference in a tensor
over the largest magnitude in it. Listed is the worst of all modules: of ours in
float32 from PyTorch in float32, and of either from PyTorch in float64, because batch
norms over nearly constant channels magnify rounding errors in both alike.
"""

import argparse

# Siblings: this folder is first on the path of a script.
import _parity
import _torch_reference
import numpy as np
import torch

from mer_dg.networks.published import BACKBONES, from_torch, make_backbone

FULL = {
  "slowfast_r101": (1, 32, 224, 224, 3),
  "slowonly_r50_flow": (1, 8, 224, 224, 2),
  "vggsound_resnet18": (1, 257, 1004, 1),
}


def measure(kind, shape, depths, width, *, train):
  """Lines of the table for one network and mode."""
  model = _torch_reference.build(kind, depths, width)
  _torch_reference.randomise(model, seed=1)
  backbone = make_backbone(kind, depths=depths, width=width)
  state = {name: t.numpy().copy() for name, t in model.state_dict().items()}
  variables, report = from_torch(backbone, state)
  assert report.ok, report
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  x_torch = torch.from_numpy(_parity.to_torch_layout(x).copy())
  with torch.no_grad():
    single, _, z_single = _torch_reference.activations(model, x_torch, train=train)
    model.double().load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    double, _, z_double = _torch_reference.activations(
      model, x_torch.double(), train=train, dtype=np.float32
    )
  ours, _, z, _ = _parity.all_activations(
    kind, variables, x, depths=backbone.options["depths"], width=width, train=train
  )
  names = {path: _parity.torch_module(kind, path) for path in ours}
  names = {path: name for path, name in names.items() if name in single}
  single["z"], double["z"] = z_single.numpy(), z_double.numpy()
  ours = {names[p]: _parity.to_torch_layout(ours[p]) for p in names} | {"z": z}
  print(
    f"{kind}, {'batch statistics' if train else 'evaluation'}, {len(names)} modules"
  )
  for title, a, b in (
    ("ours from PyTorch", ours, single),
    ("ours from float64", ours, double),
    ("PyTorch from float64", single, double),
  ):
    deviations = {name: relative(a[name], b[name]) for name in ours}
    worst = max(deviations, key=deviations.__getitem__)
    print(
      f"  {title}: {deviations[worst]:.1e} ({worst}), embedding {deviations['z']:.1e}",
      flush=True,
    )


def relative(actual, expected):
  actual, expected = np.asarray(actual), np.asarray(expected)
  return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--small", action="store_true")
  parser.add_argument("--kind", choices=BACKBONES, action="append")
  args = parser.parse_args()
  for kind in args.kind or BACKBONES:
    if args.small:
      size = (_parity.INPUTS[kind], _parity.DEPTHS, _parity.WIDTH)
    else:
      size = (FULL[kind], None, 64)
    for train in (False, True):
      measure(kind, *size, train=train)


if __name__ == "__main__":
  main()
