"""The published networks in PyTorch, written from their definitions, for parity tests.

Module names are those of the published checkpoints, so `state_dict()` of the full size
must have exactly the names and shapes in `published_keys/`.
"""

import collections

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

DEPTHS = {
  "slowfast_r101": (3, 4, 23, 3),
  "slowonly_r50_flow": (3, 4, 6, 3),
  "vggsound_resnet18": (2, 2, 2, 2),
}


class ConvModule(nn.Module):
  def __init__(self, i, o, kernel, stride, padding, *, norm=True, act=True):
    super().__init__()
    self.conv = nn.Conv3d(i, o, kernel, stride, padding, bias=False)
    if norm:
      self.bn = nn.BatchNorm3d(o)
    self.norm, self.act = norm, act

  def forward(self, x):
    x = self.conv(x)
    x = self.bn(x) if self.norm else x
    return F.relu(x) if self.act else x


class Bottleneck3d(nn.Module):
  def __init__(self, i, planes, stride, inflate, project):
    super().__init__()
    k, p = ((3, 1, 1), (1, 0, 0)) if inflate else ((1, 1, 1), (0, 0, 0))
    s = (1, stride, stride)
    self.conv1 = ConvModule(i, planes, k, (1, 1, 1), p)
    self.conv2 = ConvModule(planes, planes, (1, 3, 3), s, (0, 1, 1))
    self.conv3 = ConvModule(planes, 4 * planes, 1, 1, 0, act=False)
    if project:
      self.downsample = ConvModule(i, 4 * planes, 1, s, 0, act=False)

  def forward(self, x):
    shortcut = self.downsample(x) if hasattr(self, "downsample") else x
    return F.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)


class Path3d(nn.Module):
  """One ResNet3d path; `lateral_of` is the width of the fast path that feeds it."""

  def __init__(
    self, channels, width, depths, conv1_t, conv1_pad, inflate, lateral_of=0
  ):
    super().__init__()
    self.conv1 = ConvModule(
      channels, width, (conv1_t, 7, 7), (1, 2, 2), (conv1_pad, 3, 3)
    )
    if lateral_of:
      self.conv1_lateral = self.lateral(lateral_of)
    i = width + 2 * lateral_of
    for n in range(4):
      planes = width * 2**n
      blocks = []
      for b in range(depths[n]):
        stride = 2 if n > 0 and b == 0 else 1
        blocks.append(Bottleneck3d(i, planes, stride, inflate[n], b == 0))
        i = 4 * planes
      setattr(self, f"layer{n + 1}", nn.Sequential(*blocks))
      if lateral_of and n < 3:
        fast = lateral_of * 2**n * 4
        setattr(self, f"layer{n + 1}_lateral", self.lateral(fast))
        i += 2 * fast

  @staticmethod
  def lateral(fast):
    return ConvModule(
      fast, 2 * fast, (7, 1, 1), (4, 1, 1), (3, 0, 0), norm=False, act=False
    )

  @staticmethod
  def maxpool(x):
    return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))


class SlowFast(nn.Module):
  def __init__(self, depths, width):
    super().__init__()
    fast = width // 8
    self.slow_path = Path3d(3, width, depths, 1, 0, (0, 0, 1, 1), lateral_of=fast)
    self.fast_path = Path3d(3, fast, depths, 5, 2, (1, 1, 1, 1))

  def trunk(self, x):
    slow = F.interpolate(x, mode="nearest", scale_factor=(0.25, 1.0, 1.0))
    slow = self.slow_path.maxpool(self.slow_path.conv1(slow))
    fast = self.fast_path.maxpool(self.fast_path.conv1(x))
    slow = torch.cat([slow, self.slow_path.conv1_lateral(fast)], 1)
    for n in (1, 2, 3):
      slow = getattr(self.slow_path, f"layer{n}")(slow)
      fast = getattr(self.fast_path, f"layer{n}")(fast)
      lateral = getattr(self.slow_path, f"layer{n}_lateral")(fast)
      slow = torch.cat([slow, lateral], 1)
    return slow, fast

  def last(self, maps):
    slow, fast = self.slow_path.layer4(maps[0]), self.fast_path.layer4(maps[1])
    pool = lambda m: F.adaptive_avg_pool3d(m, 1).flatten(1)
    return torch.cat([pool(fast), pool(slow)], 1)


class SlowOnly(Path3d):
  def __init__(self, depths, width):
    super().__init__(2, width, depths, 1, 0, (0, 0, 1, 1))

  def trunk(self, x):
    return self.layer3(self.layer2(self.layer1(self.maxpool(self.conv1(x)))))

  def last(self, maps):
    return F.adaptive_avg_pool3d(self.layer4(maps), 1).flatten(1)


class BasicBlock(nn.Module):
  def __init__(self, i, o, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(o)
    self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(o)
    if stride != 1 or i != o:
      self.downsample = nn.Sequential(
        nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)
      )

  def forward(self, x):
    shortcut = self.downsample(x) if hasattr(self, "downsample") else x
    x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(x + shortcut)


class AudioNet(nn.Module):
  def __init__(self, depths, width):
    super().__init__()
    self.conv1 = nn.Conv2d(1, width, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    i = width
    for n in range(4):
      o, blocks = width * 2**n, []
      for b in range(depths[n]):
        blocks.append(BasicBlock(i, o, 2 if n > 0 and b == 0 else 1))
        i = o
      setattr(self, f"layer{n + 1}", nn.Sequential(*blocks))

  def trunk(self, x):
    x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
    return self.layer3(self.layer2(self.layer1(x)))

  def last(self, maps):
    return F.adaptive_avg_pool2d(self.layer4(maps), 1).flatten(1)


def build(kind, depths=None, width=64, *, head=False):
  """The network inside a container with the prefix of the published names."""
  depths = DEPTHS[kind] if depths is None else depths
  model = nn.Module()
  if kind == "vggsound_resnet18":
    model.audnet = AudioNet(depths, width)
    if head:
      model.audnet.fc = nn.Linear(8 * width, 309)
  else:
    net = SlowFast if kind == "slowfast_r101" else SlowOnly
    model.backbone = net(depths, width)
    if head:
      model.cls_head = nn.Module()
      embedding = 36 * width if kind == "slowfast_r101" else 32 * width
      model.cls_head.fc_cls = nn.Linear(embedding, 400)
  return model


def network(model):
  return model.audnet if hasattr(model, "audnet") else model.backbone


def randomise(model, seed):
  """Random weights, and batch norms that are nothing like fresh ones."""
  generator = torch.Generator().manual_seed(seed)
  normal = lambda like: torch.randn(like.shape, generator=generator)
  uniform = lambda like, a, b: a + (b - a) * torch.rand(like.shape, generator=generator)
  with torch.no_grad():
    for module in model.modules():
      if isinstance(module, nn.Conv2d | nn.Conv3d):
        fan_in = module.weight[0].numel()
        module.weight.copy_(normal(module.weight) * (1.5 / fan_in) ** 0.5)
      elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        module.weight.copy_(uniform(module.weight, 0.5, 1.2))
        module.bias.copy_(0.3 * normal(module.bias))
        module.running_mean.copy_(0.3 * normal(module.running_mean))
        module.running_var.copy_(uniform(module.running_var, 0.5, 2.0))
  return model


def activations(model, x, *, train=False, dtype=None):
  """Runs trunk and layer4; `({module name: output}, maps, embedding)` of one pass."""
  model.train(train)
  seen = collections.OrderedDict()
  hooks = [
    module.register_forward_hook(
      lambda _, __, out, name=name: seen.__setitem__(
        name, np.asarray(out.detach().numpy(), dtype)
      )
    )
    for name, module in model.named_modules()
    if name
  ]
  net = network(model)
  maps = net.trunk(x)
  embedding = net.last(maps)
  for hook in hooks:
    hook.remove()
  return seen, maps, embedding
