"""Encoders, projectors, fusion and heads; the only room that imports flax.linen."""

from mer_dg.networks.branches import place_weights
from mer_dg.networks.convolution import convolve
from mer_dg.networks.encoders import REGISTERED, register_encoder
from mer_dg.networks.fusion import FUSIONS
from mer_dg.networks.mlp import init_mlp, mlp
from mer_dg.networks.network import ENCODERS, count_parameters, describe, make_network
from mer_dg.networks.published import BACKBONES, Backbone, load_weights, make_backbone

__all__ = (
  "BACKBONES",
  "ENCODERS",
  "FUSIONS",
  "REGISTERED",
  "Backbone",
  "convolve",
  "count_parameters",
  "describe",
  "init_mlp",
  "load_weights",
  "make_backbone",
  "make_network",
  "mlp",
  "place_weights",
  "register_encoder",
)
