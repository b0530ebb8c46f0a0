r"""CMU-MOSEI, CMU-MOSI and CH-SIMS, text + audio + vision; one corpus held out.

  python -m data_prep.sentiment --set=mosei --file=mosei.pkl --set=mosi \
      --file=mosi.pkl --set=ch_sims --file=sims.pkl --out=sentiment.npz
  python main.py --config=configs/sentiment.py --config.data.path=sentiment.npz
  python main.py --config=configs/sentiment.py:mosi --config.data.path=sentiment.npz

Encoders are the sequence transformers of the reference, trained from scratch; accuracy
is its Acc2, here of a classifier and not of a regression
(docs/sensor_and_text_data.md). Batch and learning rate are the reference's. The data of
a run lie on the device: see --dtype and --modalities of the preparation where they do
not fit. No result yet: the features could not be fetched where this was written.
"""

from configs import common

CORPORA = ("mosei", "mosi", "ch_sims")


def get_config(target: str = ""):
  if target and target not in CORPORA:
    raise ValueError(f"target={target!r} is not one of {CORPORA}.")
  c = common.get_config()
  c.target = target
  c.network.encoder = "sentiment_transformer"
  c.batch_size = 24  # 12 from each of two sources.
  c.total_steps = 1_750  # 15 epochs of MOSI are 1605 steps, of CH-SIMS 1710.
  c.eval_every = 250
  c.optimizer = dict(lr=1e-4, weight_decay=0.0, schedule="constant")
  return c


def sweep(add):
  for target in CORPORA:
    for seed in range(5):
      add(config_arg=target, seed=seed)
