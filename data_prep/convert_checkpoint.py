r"""Turns a published PyTorch checkpoint into weights for `mer_dg.networks`, once.

  python -m data_prep.convert_checkpoint --kind=slowfast_r101 \
      slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth rgb.safetensors
  python -m data_prep.convert_checkpoint --kind=slowonly_r50_flow \
      slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth flow.safetensors
  python -m data_prep.convert_checkpoint --kind=vggsound_resnet18 \
      vggsound_avgpool.pth.tar audio.safetensors

Needs safetensors, as training does; PyTorch is not needed. The file is read without
executing anything in it. Every name must be accounted for: a variable that is
not found, a tensor that nothing knows, a wrong shape, a value that is not finite, and
nothing is written. The classifier of the pretraining task is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import hashlib
import os
import pathlib
import re
import sys

from data_prep._untrusted import read_state_dict
from mer_dg.data.dataset import DataError
from mer_dg.networks.published import (
  BACKBONES,
  Backbone,
  Report,
  from_torch,
  make_backbone,
  save_weights,
)


def convert(
  source: str | os.PathLike[str], target: str | os.PathLike[str], backbone: Backbone
) -> Report:
  """Writes ``target``, or nothing.

  Args:
    source: PyTorch file.
    target: File to write; replaced if it exists.
    backbone: The network that the weights are for.

  Returns:
    The report, which is ``ok``.

  Raises:
    DataError: If not every name is accounted for, or ``source`` is no PyTorch file,
      or one that asks for more than tensors.
    FileNotFoundError: If ``source`` or the folder of ``target`` does not exist.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  if not target.parent.is_dir():
    raise FileNotFoundError(f"{target.parent}: no such folder.")
  variables, report = from_torch(backbone, read_state_dict(source))
  if not report.ok:
    raise DataError(f"{source} is no {backbone.kind} checkpoint: {report}")
  note = f"{source.name} sha256:{file_hash(source)}"
  save_weights(target, backbone, variables, source=note)
  return report


def file_hash(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def broken_promise(path: pathlib.Path) -> str:
  """A complaint if the name ends in eight digits of another file's SHA-256.

  The model zoos name files ``<name>-<first eight digits>.pth``; a truncated download
  shows here.
  """
  promised = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
  actual = file_hash(path)[:8]
  if promised is None or promised[1] == actual:
    return ""
  return (
    f"the name promises a SHA-256 that starts with {promised[1]}, but it starts with "
    f"{actual}: another file, or a damaged download"
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kind", required=True, choices=BACKBONES)
  parser.add_argument("source", type=pathlib.Path, help="PyTorch file to read")
  parser.add_argument("target", type=pathlib.Path, help="safetensors file to write")
  args = parser.parse_args(argv)
  try:
    report = convert(args.source, args.target, make_backbone(args.kind))
  except (DataError, FileNotFoundError, ImportError) as error:
    raise SystemExit(f"error: {error}") from None
  if complaint := broken_promise(args.source):
    print(f"warning: {args.source}: {complaint}", file=sys.stderr)
  print(f"{args.target}: {report}")


if __name__ == "__main__":
  main()
