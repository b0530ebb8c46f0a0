"""The sets that experiments compare methods on, each with its own config."""

import os

from configs import av_digits, cooccurrence, features

# Sets in one .npz file of the folder MER_DG_DATA.
FILES = ("hydraulic", "gesture_phase", "cars", "cars_road", "cars_style", "dsads")
SETS = ("cooccurrence", "av_digits", *FILES)
# What the config of a set says beside the defaults.
GROUPS = ("data", "network", "optimizer", "recipes", "total_steps", "eval_every")


def get_config(name: str):
  """The config of one set; `cooccurrence` has a strong and a weak modality here."""
  if name == "cooccurrence":
    c = cooccurrence.get_config()
    c.data.cooccurrence.strengths = (2.5, 1.0)
  elif name == "av_digits":
    c = av_digits.get_config()
  else:
    c = features.get_config()
    # One encoder and all seeds: what is compared are methods.
    c.search.encoders, c.minutes = (), 0.0
    folder = os.environ.get("MER_DG_DATA", "../shared/data")
    c.data.path = os.path.join(folder, f"{name}.npz")
  return c
