"""Encoders, projectors, fusion and heads; the only room that imports flax.linen."""

from mer_dg.networks.branches import place_weights
from mer_dg.networks.convolution import convolve
from mer_dg.networks.fusion import FUSIONS
from mer_dg.networks.network import ENCODERS, count_parameters, describe, make_network
from mer_dg.networks.preparation import keep_modalities
from mer_dg.networks.pretrained import BACKBONES, Backbone, load_weights, make_backbone
from mer_dg.networks.types import KINDS, InputSpec, Network, Outputs

__all__ = (
  "BACKBONES",
  "ENCODERS",
  "FUSIONS",
  "KINDS",
  "Backbone",
  "InputSpec",
  "Network",
  "Outputs",
  "convolve",
  "count_parameters",
  "describe",
  "keep_modalities",
  "load_weights",
  "make_backbone",
  "make_network",
  "place_weights",
)
