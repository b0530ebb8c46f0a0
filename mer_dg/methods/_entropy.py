"""What the estimators of entropy have to be told: options, numbers, what clashes."""

from mer_dg.entropy.regularizer import ESTIMATORS, NORMALIZE
from mer_dg.methods import _parts
from mer_dg.methods.term import WEIGHT, Hyperparameter

# Estimators that have a kernel with a width, and those that choose the kernel.
_WIDE, _KERNELS = ("kde", "renyi", "mixture"), ("kde", "renyi")
# The two parts of the released loss.
PARTS = dict.fromkeys(("marginal_weight", "spectral_weight"), WEIGHT)


OPTIONS = {
  "estimator": ESTIMATORS,
  "kernel": ("gaussian", "vmf", "student-t"),
  "width": ("fixed", "median", "scott", "silverman"),
  "apply_to": ("embedding", "projector"),
  # Rows to the unit sphere; "standardize": columns over the batch, so that scale
  # cannot buy entropy.
  "normalize": NORMALIZE,
  # The pooled entropy also rewards the distance of domains and of classes.
  "scope": _parts.SCOPES,
  "queue": (0, 64, 256, 1024),  # Rows of earlier batches in the density.
}


def static_options(options) -> dict:
  """Words for the estimator; an option that would be without effect is an error."""
  estimator, kernel, width = (options[w] for w in ("estimator", "kernel", "width"))
  if kernel != "gaussian" and estimator not in _KERNELS:
    raise ValueError(f"kernel={kernel!r} needs one of {_KERNELS}.")
  if width != "fixed" and estimator not in _WIDE:
    raise ValueError(f"width={width!r} needs one of {_WIDE}.")
  alone = options["scope"] == "batch" and options["normalize"] != "standardize"
  if options["queue"] and not (estimator == "kde" and alone):
    raise ValueError(
      "queue needs estimator='kde', scope='batch' and normalize='unit' or 'none'."
    )
  static = {"kernel": kernel} if estimator in _KERNELS else {}
  static |= {"bandwidth": width} if width != "fixed" else {}  # No gradient through it.
  return static | {"estimator": estimator, "normalize": options["normalize"]}


def hyperparameters(options) -> dict[str, Hyperparameter]:
  """Each estimator brings its own."""
  numbers = {"weight": Hyperparameter(0.1, 0.0, 1e4, search=(0.01, 3.0))}
  if options["estimator"] in _WIDE and options["width"] == "fixed":
    # In units of the (normalised) features.
    numbers["bandwidth"] = Hyperparameter(0.3, 1e-6, 1e6, search=(0.1, 2.0))
  numbers |= PARTS if options["estimator"] == "logdet" else {}
  return numbers | _parts.RAMP


def strengthened(ctx, factor):
  """The context with the weight of each modality times a factor."""
  own = {f"weight_{m}": ctx.hyper[f"weight_{m}"] * f for m, f in factor.items()}
  return ctx._replace(hyper=dict(ctx.hyper) | own)
