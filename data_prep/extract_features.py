r"""Caches embeddings of EPIC-Kitchens or HAC for configs/features.py.

  python -m data_prep.extract_features --set=hac --data=HAC --out=hac.npz \
      --video_weights=rgb.safetensors --audio_weights=audio.safetensors \
      --flow_weights=flow.safetensors
  python main.py --config=configs/features.py --config.data.path=hac.npz

Every clip goes once through the pretrained encoders, trunk and layer4, in evaluation
mode: the centre of the clip, or with ``--clips=N`` the mean over N windows spread
evenly over it. The result is one file of the format of docs/data.md with a vector per
modality (2304 video, 512 audio, 2048 flow), the published split, and the recording a
clip was cut from as its group. The folder is a prepared set or the published one after
its audit (docs/video_data.md).

Parts of 256 clips are written as they are ready; started again it goes on after the
last of them. They are joined at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from data_prep.video_scan import Meter
from mer_dg.data.archive import read_arrays
from mer_dg.data.arrays import eval_blocks
from mer_dg.data.dataset import DataError, make_dataset
from mer_dg.data.npz import save_npz, to_npz_arrays
from mer_dg.data.stream import stream_blocks
from mer_dg.data.video.dataset import VIDEO_SETS, VideoDataset, load_video
from mer_dg.data.video.reader import device_inputs
from mer_dg.data.video.table import MODALITIES
from mer_dg.experiments.video_config import KINDS
from mer_dg.files import replacing, write_atomic
from mer_dg.networks import Backbone, load_weights, make_backbone
from mer_dg.networks.published import encode

CLIPS_PER_PART = 256


def extract(
  dataset: VideoDataset,
  out: str | os.PathLike,
  backbones: Mapping[str, Backbone],
  weights: Mapping[str, str | os.PathLike],
  *,
  clips: int = 1,
  batch: int = 8,
  threads: int = 8,
  workers: int = 0,
  progress: bool = False,
) -> pathlib.Path:
  """Writes the embeddings of all clips, or what is missing of them.

  Args:
    dataset: The clips and the modalities.
    out: The ``.npz`` file. Parts lie in ``<out>.parts`` until it is whole.
    backbones: Encoder of each modality.
    weights: Its weights file; a modality without one has random weights.
    clips: Windows per clip, evenly spread, whose embeddings are averaged; 1 is the
      middle.
    batch: Clips at once.
    threads: Threads that decode.
    workers: Processes that decode beside this one.
    progress: Write progress to stderr.

  Returns:
    ``out``.

  Raises:
    DataError: Parts of other clips, weights or options are there; a damaged file.
    FileNotFoundError: A weights file is not there.
    ValueError: Weights of another network, or a number out of range.
  """
  for name, value in (("clips", clips), ("batch", batch)):
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}.")
  out = pathlib.Path(out).expanduser()
  plan = _plan(dataset, backbones, weights, clips)
  if out.exists():
    if _made_from(out) == plan:
      return out
    raise DataError(f"{out}: is there already; remove it or take another name.")
  variables = {m: _variables(backbones[m], weights.get(m)) for m in backbones}
  parts = out.with_name(f"{out.name}.parts")
  _claim(parts, plan)
  embed = _embed(backbones, variables)
  # The middle of each of N equal stretches; of one, the middle.
  places = [(i + 0.5) / clips for i in range(clips)]
  readers = [dataset.reader(train=False, at=at) for at in places]
  starts = range(0, len(dataset), CLIPS_PER_PART)
  meter = Meter("clips", len(dataset)) if progress else None
  for start in starts:
    stop = min(start + CLIPS_PER_PART, len(dataset))
    part = parts / f"{start:06d}.npz"
    if not part.exists():
      rows, mask = eval_blocks(np.arange(start, stop), batch)
      passes = []
      for reader in readers:
        stream = stream_blocks(
          reader,
          rows,
          np.zeros_like(rows),
          mask,
          num_threads=threads,
          num_workers=workers,
          prefetch=max(threads, 1),
        )
        try:
          found = []
          for z in map(functools.partial(_one, embed, variables), stream):
            found = [*jax.device_get(found), z]  # Runs while the next is read.
            if meter is not None and reader is readers[-1]:
              meter.show(min(start + batch * len(found), stop))
          passes.append(_rows(found, stop - start))
        finally:
          stream.close()
      _write_part(part, passes)
  _join(dataset, out, [parts / f"{s:06d}.npz" for s in starts], plan)
  shutil.rmtree(parts)
  return out


def _embed(backbones: Mapping[str, Backbone], variables: Mapping[str, Any]):
  """Compiled ``(variables, batch) -> {modality: [B, D]}``."""

  def embed(variables, batch):
    inputs = device_inputs(batch)
    return {m: encode(b, variables[m], inputs[m])[0] for m, b in backbones.items()}

  return jax.jit(embed)


def _variables(backbone: Backbone, path: str | os.PathLike | None) -> Any:
  if path is None:
    return jax.jit(backbone.init)(jax.random.key(0))
  return jax.device_put(load_weights(path, backbone))


def _one(embed, variables, batch) -> dict[str, Any]:
  """Embeddings and flags of a batch; still on their way."""
  present = {f"{m}_present": p for m, p in batch["present"].items()}
  return {**embed(variables, batch), **present}


def _rows(found: Sequence[Mapping[str, Any]], count: int) -> dict[str, np.ndarray]:
  """All batches in one, without the padding."""
  found = jax.device_get(found)
  return {k: np.concatenate([f[k] for f in found])[:count] for k in found[0]}


def _write_part(path: pathlib.Path, passes: Sequence[Mapping[str, np.ndarray]]) -> None:
  """Mean embeddings over the windows in which a modality is there."""
  arrays: dict[str, Any] = {}
  for key in [k for k in passes[0] if not k.endswith("_present")]:
    there = np.stack([p[f"{key}_present"] for p in passes])
    z = np.stack([p[key] for p in passes])
    total = np.where(there[..., None], z, 0).sum(axis=0)
    arrays[key] = total / np.maximum(there.sum(axis=0), 1)[:, None].astype(np.float32)
    arrays[f"{key}_present"] = there.any(axis=0)
  with replacing(path) as temporary, temporary.open("wb") as file:
    np.savez(file, **arrays)


def _join(dataset: VideoDataset, out, files: Sequence[pathlib.Path], plan) -> None:
  """The file of the format of docs/data.md."""
  parts = []
  for file in files:
    with np.load(file) as archive:
      parts.append(dict(archive))
  column = lambda key: np.concatenate([part[key] for part in parts])
  filled = make_dataset(
    name=dataset.name,
    inputs={m: column(m) for m in dataset.modalities},
    present={m: column(f"{m}_present") for m in dataset.modalities},
    label=dataset.label,
    domain=dataset.domain,
    class_names=dataset.class_names,
    domain_names=dataset.domain_names,
    group=dataset.group,
    split=dataset.split,
    index=dataset.index,
  )
  arrays = {
    **to_npz_arrays(dataclasses.replace(filled, version=dataset.version)),
    "id": np.array([clip.id for clip in dataset.source.table.clips]),
    "made_from": np.array(json.dumps(plan)),  # For people, and to see what is done.
  }
  save_npz(arrays, out)


def _plan(dataset, backbones, weights, clips: int) -> dict[str, Any]:
  """Everything that an embedding depends on."""
  return {
    "set": dataset.name,
    "version": dataset.version,
    "dedup": dataset.source.table.dedup,
    "clips": clips,
    "encoders": {m: _plain(b.options) for m, b in backbones.items()},
    "weights": {
      m: _file_hash(weights[m]) if m in weights else "random" for m in backbones
    },
  }


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(dict(options)))


def _file_hash(path: str | os.PathLike) -> str:
  with pathlib.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _made_from(path: pathlib.Path) -> Any:
  """The plan that a finished file notes; None where there is none."""
  try:
    return json.loads(str(read_arrays(path, ["made_from"])["made_from"]))
  except ValueError:  # DataError is one.
    return None


def _claim(parts: pathlib.Path, plan: Mapping[str, Any]) -> None:
  """Makes the folder of the parts, or checks that it is of this plan.

  Raises:
    DataError: If it is not.
  """
  note = parts / "plan.json"
  if note.is_file():
    begun = json.loads(note.read_text())
    changed = [k for k in plan if begun.get(k) != plan[k]]
    if changed:
      raise DataError(
        f"{parts}: begun with other {', '.join(changed)}; remove it to start afresh."
      )
    return
  parts.mkdir(parents=True, exist_ok=True)
  write_atomic(note, json.dumps(plan))


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--set", required=True, choices=VIDEO_SETS, dest="name")
  parser.add_argument("--data", default="", help="folder; default: in MER_DG_DATA")
  parser.add_argument("--out", required=True, help=".npz file to write")
  parser.add_argument("--modalities", default="", help="default: all there are")
  for m in MODALITIES:
    parser.add_argument(f"--{m}_weights", default="", help="safetensors file")
  parser.add_argument(
    "--random", action="store_true", help="allow random weights, to try things out"
  )
  parser.add_argument("--clips", type=int, default=1, help="windows per clip")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
  parser.add_argument("--workers", type=int, default=0, help="processes that decode")
  parser.add_argument(
    "--compute_dtype", default="float32", choices=("float32", "bfloat16")
  )
  parser.add_argument("--depths", default="", help="of small encoders: 1,1,1,1")
  parser.add_argument("--width", type=int, default=64, help="of small encoders")
  args = parser.parse_args(argv)
  try:
    dataset = load_video(args.name, args.data)
    if args.modalities:
      dataset = dataset.select_modalities(args.modalities.split(","))
    given = {m: getattr(args, f"{m}_weights") for m in dataset.modalities}
    bare = [m for m, path in given.items() if not path]
    if bare and not args.random:
      raise DataError(
        f"no weights for {', '.join(bare)} (--{bare[0]}_weights=FILE, from "
        "data_prep.convert_checkpoint). --modalities leaves some out; --random takes "
        "random weights, whose features are of no use."
      )
    backbones = {
      m: make_backbone(
        KINDS[m],
        depths=tuple(map(int, args.depths.split(","))) if args.depths else None,
        width=args.width,
        compute_dtype=args.compute_dtype,
      )
      for m in dataset.modalities
    }
    out = extract(
      dataset,
      args.out,
      backbones,
      {m: path for m, path in given.items() if path},
      clips=args.clips,
      batch=args.batch,
      threads=args.threads,
      workers=args.workers,
      progress=True,
    )
  except (DataError, FileNotFoundError, ValueError, ImportError) as error:
    raise SystemExit(f"error: {error}") from None
  size = out.stat().st_size / 1e6
  print(f"{len(dataset)} clips, {', '.join(dataset.modalities)}: {out} ({size:.1f} MB)")


if __name__ == "__main__":
  main()
