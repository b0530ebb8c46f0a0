r"""HUST motor, vibration + sound; one speed held out.

  python -m data_prep.hust --root=HUST --out=hust.npz
  python main.py --config=configs/hust.py --config.data.path=hust.npz   # All targets.
  python main.py --config=configs/hust.py:30HZ --config.data.path=hust.npz
  # With the published encoders and split, and a linear classifier behind both:
  python -m data_prep.hust --root=HUST --split=overlap --out=hust_overlap.npz
  python main.py --config=configs/hust.py --config.data.path=hust_overlap.npz \
      --config.network.fusion=late

Encoders are the 1-D CNNs of the reference, trained from scratch. Iterations, batch,
validation interval and L2 are the reference's; one Adam with a cosine schedule stands
in for its optimisers (docs/sensor_and_text_data.md). No result yet: the recordings
could not be fetched where this was written.
"""

from configs import common

SPEEDS = ("5HZ", "10HZ", "20HZ", "30HZ")


def get_config(target: str = ""):
  if target and target not in SPEEDS:
    raise ValueError(f"target={target!r} is not one of {SPEEDS}.")
  c = common.get_config()
  c.target = target
  c.network.encoder = "hust_cnn"
  c.batch_size = 126  # 42 from each of three sources; the reference has 128 over all.
  c.total_steps = 10_000
  c.eval_every = 200
  c.optimizer = dict(lr=1e-3, weight_decay=5e-4, schedule="cosine")
  return c


def sweep(add):
  for target in SPEEDS:
    for seed in range(5):
      add(config_arg=target, seed=seed)
