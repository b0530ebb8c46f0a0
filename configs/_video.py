"""What the experiments on EPIC-Kitchens and HAC share."""

from collections.abc import Mapping, Sequence

from configs import common

SUBSETS = {
  "va": ("video", "audio"),
  "vf": ("video", "flow"),
  "af": ("audio", "flow"),
  "vaf": ("video", "audio", "flow"),
}
SETTINGS = ("ours", "reference")
EPOCHS = 20


def parse(argument: str, domains: Sequence[str]) -> tuple[str, str, str]:
  """Target, subset and settings of ``TARGET[,SUBSET][,SETTINGS]``.

  Raises:
    ValueError: A word that is none of them.
  """
  target, *words = argument.split(",")
  subset, settings = "vaf", "ours"
  if words and words[0] in SUBSETS:
    subset = words.pop(0)
  if words and words[0] in SETTINGS:
    settings = words.pop(0)
  if words or target not in ("", *domains):
    raise ValueError(
      f"{argument!r} is not TARGET[,SUBSET][,SETTINGS]: targets {tuple(domains)}, "
      f"subsets {tuple(SUBSETS)}, settings {SETTINGS}."
    )
  return target, subset, settings


def get_config(name: str, argument: str, rows: Mapping[str, int]):
  """The config of a set.

  Args:
    name: "epic" or "hac".
    argument: See `parse`.
    rows: Rows of the train list of each domain, for the number of steps.
  """
  target, subset, settings = parse(argument, tuple(rows))
  c = common.get_config()
  c.target = target
  c.driver = "stream"
  c.data.name = name
  c.data.modalities = SUBSETS[subset]
  c.network.encoder = "backbones"
  # The published heads: classifier 512, projector 2048-2048-128.
  c.network.classifier_dim = 512
  c.network.projector_dim = 2048
  c.network.projection_dim = 128
  # Adam with coupled L2, no schedule.
  c.optimizer = dict(lr=1e-4, weight_decay=1e-4, schedule="constant")
  if settings == "reference":
    c.method = "mer_logdet"  # The released loss.
    c.batch_size = 16
    c.backbones.bn_mode = "batch"
    c.backbones.audio_layer4 = "random"
    c.data.reencode = False  # A prepared set of videos cannot; True there.
  else:
    c.method = "mer_kde"
    c.batch_size = 48
  # An epoch ends with the smallest source, as that of the balanced sampler.
  sources = [rows[d] for d in rows if d != target]
  c.log_every = 10
  per_source = c.batch_size // len(sources)
  epoch = min(sources) // per_source
  c.eval_every = max(epoch // c.log_every, 1) * c.log_every  # About once an epoch.
  c.total_steps = EPOCHS * epoch
  return c


def sweep(add, domains: Sequence[str]) -> None:
  """Every target and modality subset, three seeds."""
  for target in domains:
    for subset in SUBSETS:
      for seed in range(3):
        add(config_arg=f"{target},{subset}", seed=seed)
