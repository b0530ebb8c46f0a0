r"""MER-DG on EPIC-Kitchens: eight verbs, a new kitchen held out (D1, D2 or D3).

  python main.py --config=configs/epic_kitchens.py:D3
  python main.py --config=configs/epic_kitchens.py:D3,va,reference
  # Any field; pretrained weights are named one by one:
  #   --config.data.path=FOLDER --config.method=mer_kde+mm
  #   --config.backbones.video.weights=rgb.safetensors (and audio, flow)

The argument is TARGET[,SUBSET][,SETTINGS]: subsets va, vf, af, vaf (default);
settings ours (default) or reference. The folder is config.data.path, or
EPIC-KITCHENS (epic_mmsada, if it is prepared) in MER_DG_DATA. From the download to
here: docs/video_data.md; weights: docs/encoders.md.

Sources train on their train lists and validate on their test lists; the target is
tested on its test list. 20 epochs of the smallest source, Adam 1e-4 with coupled L2
1e-4. Ours: batch 48, batch norms with running statistics, pretrained audio layer4, MER
(kde). Reference: batch 16, batch statistics also in the frozen trunks, audio layer4
from random weights, the released MER loss; its numbers belong into another table.
No result is published here yet: the videos could not be had.
"""

from configs import _video

# Rows of the train lists.
ROWS = {"D1": 1543, "D2": 2495, "D3": 3897}
DOMAINS = tuple(ROWS)


def get_config(name: str = ""):
  return _video.get_config("epic", name, ROWS)


def sweep(add):
  _video.sweep(add, DOMAINS)
