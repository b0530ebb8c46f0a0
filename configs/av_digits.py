r"""Spoken + handwritten digits; a new pair of speakers and image source held out.

  python main.py --config=configs/av_digits.py                  # table of all targets
  python main.py --config=configs/av_digits.py:semeion --workdir=/tmp/semeion

The data folder is config.data.path or the environment variable MER_DG_DATA;
docs/data.md tells how to get it. Encoders train from log-mel frames stretched to
one length, and from pixels. The convolutional encoders, on unstretched frames or on
the waveform, are
  --config.network.encoder=auto --config.data.audio=logmel    # or waveform
and generalise worse to another image source (docs/results.md).
Results with time and device: docs/results.md.
"""

from configs import common

DOMAINS = ("mnist", "optdigits", "semeion")


def get_config(target: str = ""):
  if target and target not in DOMAINS:
    raise ValueError(f"target={target!r} is not one of {DOMAINS}.")
  c = common.get_config()
  c.target = target
  c.data.name = "av_digits"
  c.data.audio = "logmel_resampled"
  c.network.encoder = "mlp"
  c.network.hidden_dim = 256
  c.total_steps = 300
  c.eval_every = 100
  return c


def sweep(add):
  for target in DOMAINS:
    for seed in range(5):
      add(config_arg=target, seed=seed)
