"""The published video, flow and audio encoders, and their weights."""

from mer_dg.networks.published.backbone import (
  BACKBONES,
  BN_MODES,
  LAYER4_INITS,
  Backbone,
  encode,
  make_backbone,
)
from mer_dg.networks.published.hust import make_hust_cnn
from mer_dg.networks.published.named import FROM_SCRATCH, make_from_scratch
from mer_dg.networks.published.sentiment import make_sentiment_encoder
from mer_dg.networks.published.torch_names import Report, from_torch, torch_name
from mer_dg.networks.published.weights import load_weights, save_weights

__all__ = (
  "BACKBONES",
  "BN_MODES",
  "FROM_SCRATCH",
  "LAYER4_INITS",
  "Backbone",
  "Report",
  "encode",
  "from_torch",
  "load_weights",
  "make_backbone",
  "make_from_scratch",
  "make_hust_cnn",
  "make_sentiment_encoder",
  "save_weights",
  "torch_name",
)
