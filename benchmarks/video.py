r"""Video sets: decoding, waiting for data, step time and memory.

  python -m benchmarks.video --decode
  python -m benchmarks.video --decode --data=HAC --data=DATA/hac_video --set=hac
  python -m benchmarks.video --step --depths=1,1,1,1 --width=8 --batch=2
  python -m benchmarks.video --step --batch=16 --dtype=bfloat16      # On a GPU.
  python -m benchmarks.video --wait --depths=1,1,1,1 --width=8 --batch=4 --threads=2
  python -m benchmarks.video --peer --batches=16,48          # On a GPU, with PyTorch.

``--decode`` times training rows, one thread and then all of them: frames per second and
processor time per clip, from JPEG folders, mp4 files and the prepared form of both.
Without ``--data`` it makes a small set of 256 x 456 frames in the published layout
first; real frames have more detail and take longer. ``--step`` compiles the training
step of ERM, MER and MER + MM with a frozen trunk, and of MER with everything trained;
memory is what XLA plans for it (arguments, temporaries). ``--wait`` runs the stream
driver and prints the share of the time in which it waits for a batch. ``--peer`` reads
no data: MER's step on EPIC against the same step in PyTorch, see `video_torch.py`.
Random weights; speed does not depend on them.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
import contextlib
import csv
import io
import itertools
import os
import pathlib
import resource
import tempfile
import time
from typing import Any
import wave

import jax
import numpy as np

from configs import hac
from data_prep import audit
from data_prep import video as prepare
from mer_dg.data.stream import DevicePrefetch, stream_batches
from mer_dg.data.video.dataset import VIDEO_SETS, VideoDataset, load_video
from mer_dg.data.video.files import encode_jpeg
from mer_dg.experiments import Config, make_setup, single, validate
from mer_dg.training.drivers import StreamDriver
from mer_dg.training.state import run_keys

SIZE = (256, 456)
FRAMES = 90
DOMAINS = ("human", "animal", "cartoon")
# Method, and what is trained of the encoders.
STEPS = (
  ("erm", "layer4"),
  ("mer_kde", "layer4"),
  ("mer_kde+mm", "layer4"),
  ("mer_kde", "all"),
)


# --- a set to read -------------------------------------------------------------------


def _noise(rng, channels: int) -> np.ndarray:
  """A picture with grain, whose JPEG is not much smaller than a real one."""
  y, x = np.mgrid[: SIZE[0], : SIZE[1]]
  smooth = 127 + 60 * np.sin(x / 40) * np.cos(y / 30)
  grain = rng.normal(0, 9, (*SIZE, channels))
  return np.clip(smooth[..., None] + grain, 0, 255).astype(np.uint8)


def make_hac(root: pathlib.Path, clips: int = 2) -> None:
  """HAC with ``clips`` training clips and one test clip per domain."""
  import av

  def video(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
      stream: Any = file.add_stream("libx264", rate=24)
      stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
      for frame in frames:
        file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
      file.mux(stream.encode())

  rng = np.random.default_rng(0)
  (root / "HAC_Splits").mkdir(parents=True)
  for domain in DOMAINS:
    for split, count in (("train", clips), ("test", 1)):
      names = [f"{split}{i}" for i in range(count)]
      lists = root / "HAC_Splits" / f"HAC_{split}_only_{domain}.csv"
      with lists.open("w", newline="") as file:
        csv.writer(file).writerows((f"{n}.mp4", i % 2) for i, n in enumerate(names))
      for name in names:
        frames = [np.roll(_noise(rng, 3), 4 * t, axis=1) for t in range(FRAMES)]
        video(root / domain / "videos" / f"{name}.mp4", frames)
        grey = [f[..., :1].repeat(3, axis=-1) for f in frames]
        for way in "xy":
          video(root / domain / "flow" / f"{name}_flow_{way}.mp4", grey)
        sound = rng.integers(-3000, 3000, FRAMES * 16_000 // 24).astype("<i2")
        path = root / domain / "audio" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        with wave.open(str(path), "wb") as file:
          file.setparams((1, 2, 16_000, 0, "NONE", ""))
          file.writeframes(sound.tobytes())


def make_epic(root: pathlib.Path) -> None:
  """EPIC as JPEG folders: one recording per kitchen and list, two clips in each."""
  rng = np.random.default_rng(0)
  lists = root / "MM-SADA_Domain_Adaptation_Splits"
  lists.mkdir(parents=True)
  columns = "uid participant_id video_id narration start_timestamp stop_timestamp "
  columns += "start_frame stop_frame verb verb_class"
  for d, kitchen in enumerate(("P08", "P01", "P22")):
    for split, number in (("train", "01"), ("test", "02")):
      name, stop = f"{kitchen}_{number}", FRAMES
      with (lists / f"D{d + 1}_{split}.csv").open("w", newline="") as file:
        rows = [
          (i, kitchen, name, "open", "00:00:00.00", "00:00:01.50", 0, stop, "open", i)
          for i in range(2)
        ]
        csv.writer(file).writerows([columns.split(), *rows])
      colour = root / "rgb" / split / f"D{d + 1}"
      flow = root / "flow" / split / f"D{d + 1}" / name
      for folder, channels, last in (
        (colour / name, 3, stop),
        (flow / "u", 1, stop // 2 + 1),
        (flow / "v", 1, stop // 2 + 1),
      ):
        folder.mkdir(parents=True)
        picture = _noise(rng, channels)
        for n in range(last):
          data = encode_jpeg(np.roll(picture, 4 * n, axis=1), quality=75)
          (folder / f"frame_{n:010d}.jpg").write_bytes(data)
      with wave.open(str(colour / f"{name}.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound = rng.integers(-3000, 3000, 3 * 16_000).astype("<i2")
        file.writeframes(sound.tobytes())


def _made(folder: pathlib.Path) -> dict[str, VideoDataset]:
  """Small sets in the published and in the prepared form."""
  found = {}
  for name, make, form in (("epic", make_epic, "JPEG"), ("hac", make_hac, "mp4")):
    root = folder / name
    make(root)
    words = [f"--set={name}", f"--root={root}", "--on_error=skip", "--workers=2"]
    with contextlib.redirect_stdout(io.StringIO()):
      audit.main(words)
      prepare.main([*words, f"--data_dir={folder / 'data'}"])
    prepared = folder / "data" / {"epic": "epic_mmsada", "hac": "hac_video"}[name]
    found[f"{name}, {form} folders"] = load_video(name, root)
    found[f"{name}, prepared"] = load_video(name, prepared)
  return found


# --- what is measured ----------------------------------------------------------------


def decode(sets: dict[str, VideoDataset], threads: int, seconds: float) -> None:
  """Prints rows per second and processor time per row."""
  print("| set | modality | ms of a core per clip | clips/s, 1 thread | ", end="")
  print(f"clips/s, {threads} threads |\n|---|---|---:|---:|---:|")
  for name, dataset in sets.items():
    for m in (*dataset.modalities, "all"):
      chosen = dataset.modalities if m == "all" else (m,)
      reader = dataset.select_modalities(chosen).reader(train=True)
      work = lambda i, reader=reader: reader.read(i % len(reader), i)
      work(0)
      one = _rate(map(work, itertools.count()), seconds)
      with ThreadPoolExecutor(threads) as pool:
        many = _rate(_ahead(pool, work, threads), seconds)
      print(f"| {name} | {m} | {1e3 * one[1]:.1f} | {one[0]:.1f} | {many[0]:.1f} |")


def _ahead(pool: ThreadPoolExecutor, work, threads: int):
  """Results of ``work(0), work(1), ...``, some of them on their way."""
  waiting = [pool.submit(work, i) for i in range(2 * threads)]
  for i in itertools.count(2 * threads):
    yield waiting.pop(0).result()
    waiting.append(pool.submit(work, i))


def _rate(rows, seconds: float) -> tuple[float, float]:
  """Rows per second, and processor seconds of this process per row."""
  began, used, count = time.perf_counter(), time.process_time(), 0
  while time.perf_counter() - began < seconds:
    next(rows)
    count += 1
  spent = time.perf_counter() - began
  return count / spent, (time.process_time() - used) / count


def _config(args, method: str, trainable: str, folder) -> Config:
  c = hac.get_config(f"cartoon,{args.subset}")
  c.data.path = str(folder)
  c.method, c.backbones.trainable = method, trainable
  c.batch_size, c.network.compute_dtype = args.batch, args.dtype
  c.backbones.remat = args.remat
  c.reader.update(threads=args.threads, workers=args.workers)
  c.reader.prefetch = max(args.threads, 1)
  for m in ("video", "audio", "flow"):
    c.backbones[m].update(depths=args.depths, width=args.width)
  return validate(c)


def _driver(config):
  """Driver, state and stream of the run of a config."""
  setup = make_setup(config)
  run = single.the_run(setup)
  task, state, step = single._prepare(setup, run)
  stream = stream_batches(
    setup.dataset.reader(train=True),
    key=run_keys(state.key).order,
    pool=task.pool,
    per_domain=setup.per_domain(run.task),
    num_threads=config.reader.threads,
    num_workers=config.reader.workers,
    prefetch=config.reader.prefetch,
  )
  return step, state, stream


def steps(args, folder: pathlib.Path) -> None:
  """Prints time and planned memory of training steps."""
  print(
    "| step | trained | ms | clips/s | arguments MiB | temporaries MiB | TFLOP ", end=""
  )
  print("| TFLOP/s |\n|---|---|---:|---:|---:|---:|---:|---:|")
  for method, trainable in STEPS:
    if args.only not in ("", f"{method}/{trainable}"):
      continue
    step, state, stream = _driver(_config(args, method, trainable, folder))
    batch = jax.device_put(next(stream))
    stream.close()
    one = jax.jit(
      lambda s, b, step=step: step(
        s, b, jax.random.fold_in(run_keys(s.key).step, s.step)
      )
    )
    compiled = one.lower(state, batch).compile()
    best = np.inf
    for _ in range(args.repeats + 1):  # The first one warms up.
      began = time.perf_counter()
      state, metrics = jax.block_until_ready(compiled(state, batch))
      best = min(best, time.perf_counter() - began)
    planned, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    sizes = [
      getattr(planned, f"{kind}_size_in_bytes", 0) / 2**20
      for kind in ("argument", "temp")
    ]
    rows, work = int(batch["mask"].sum()), cost.get("flops", np.nan) / 1e12
    print(
      f"| {method} | {trainable} | {1e3 * best:.0f} | {rows / best:.2f} | "
      f"{sizes[0]:.0f} | {sizes[1]:.0f} | {work:.3f} | {work / best:.3f} |",
      flush=True,
    )


class _Timed:
  """A stream that notes how long it is waited for."""

  def __init__(self, stream):
    self._stream, self.waited = stream, 0.0

  def __next__(self):
    began = time.perf_counter()
    batch = next(self._stream)
    self.waited += time.perf_counter() - began
    return batch

  def __iter__(self):
    return self


def wait(args, folder: pathlib.Path) -> None:
  """Prints the share of the time in which the stream driver waits for data."""
  step, state, stream = _driver(_config(args, "mer_kde", "layer4", folder))
  timed = _Timed(DevicePrefetch(stream))
  driver = StreamDriver(step, timed)
  state, _ = jax.block_until_ready(driver.advance(state, 2))  # Compiles, fills.
  timed.waited, began = 0.0, time.perf_counter()
  jax.block_until_ready(driver.advance(state, args.steps))
  spent = time.perf_counter() - began
  stream.close()
  print("| stream | clips/s | waiting for data, % |\n|---|---:|---:|")
  print(
    f"| {args.steps} steps of {args.batch}, {args.threads} threads, {args.workers} "
    f"processes | {args.steps * args.batch / spent:.2f} | "
    f"{100 * timed.waited / spent:.1f} |"
  )


def _words(of) -> Any:
  """Type of an argument that is a list with commas."""
  return lambda words: tuple(map(of, words.split(",")))


def _add_peer(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("--peer")
  group.add_argument("--peer", action="store_true")
  group.add_argument("--batches", type=_words(int), default=(16, 48))
  group.add_argument(
    "--dtypes", type=_words(str), default=("float32", "bfloat16"), help="of the rows"
  )
  group.add_argument("--rounds", type=int, default=7, help="turns, of --steps steps")
  group.add_argument(
    "--compile", choices=("off", "default", "max-autotune"), default="default"
  )
  group.add_argument("--tf32", action=argparse.BooleanOptionalAction, default=True)
  group.add_argument(
    "--peak_tflops", type=_words(float), default=(), help="one for each of --dtypes"
  )


def _peer(args) -> None:
  # PyTorch needs room on the same device; read when JAX first looks at it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  from benchmarks import video_torch

  video_torch.compare(args)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for action in ("decode", "step", "wait"):
    parser.add_argument(f"--{action}", action="store_true")
  parser.add_argument("--data", action="append", help="folders to read from")
  parser.add_argument("--set", choices=VIDEO_SETS, default="hac", dest="name")
  parser.add_argument("--subset", default="vaf")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--remat", action="store_true")
  parser.add_argument("--only", default="", help="one of the steps: mer_kde/layer4")
  parser.add_argument(
    "--depths",
    default=(),
    type=_words(int),
    help="of smaller encoders: 1,1,1,1",
  )
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--workers", type=int, default=0)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
  _add_peer(parser)
  args = parser.parse_args()
  if args.peer:
    return _peer(args)
  print(f"Device: {jax.devices()[0].device_kind}, batch {args.batch}, {args.dtype}")
  with tempfile.TemporaryDirectory() as name:
    if args.data:
      sets = {path: load_video(args.name, path) for path in args.data}
    else:
      sets = _made(pathlib.Path(name))
    if args.decode:
      decode(sets, args.threads, args.seconds)
    folder = args.data[-1] if args.data else pathlib.Path(name, "data", "hac_video")
    if args.step:
      steps(args, folder)
    if args.wait:
      wait(args, folder)
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(f"largest memory of this process: {used:.1f} GiB")


if __name__ == "__main__":
  main()
