"""Made-up things of the right kind, for the tests of all rooms."""

from mer_dg import protocol


def record(**fields):
  """A record of a made-up run, built by the function that builds real ones."""
  defaults = {
    "method": "erm",
    "target": "d3",
    "sources": ["d1", "d2"],
    "modalities": ["video", "audio"],
    "dataset": "toy",
    "data_version": "1.0",
    "seed": 0,
    "split_seed": 0,
    "hyper": {},
    "config_hash": "c0",
    "trials": 1,
    "step": 100,
    "metrics": {"val/accuracy": 0.9, "val/nll": 0.1, "target/accuracy": 0.5},
    "git_revision": "0123456789abcdef0123456789abcdef01234567-dirty",
    "wall_time_s": 1.5,
    "device": "2 cores of some CPU",
  }
  return protocol.make_record(**(defaults | fields))
