#!/usr/bin/env bash
# Every benchmark in the shapes of a GPU, and one Markdown table in the end.
#
#   benchmarks/all_gpu.sh OUT           # about 30 minutes on one GPU
#   benchmarks/all_gpu.sh --tiny OUT    # on any machine: shows that all of it works
#
# OUT/NAME.txt holds what a benchmark printed, OUT/table.md the table. One that fails is
# a row of the table; the others run. Peers need PyTorch with CUDA.
set -u
cd "$(dirname "$0")/.."
tiny=
if [ "${1:-}" = --tiny ]; then tiny=1; shift; fi
if [ $# -ne 1 ]; then sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; fi
out=$1
mkdir -p "$out" || exit 1
rm -f "$out"/*.txt

run() {  # NAME, then the arguments of python
  local name=$1; shift
  echo "== $name: python $*"
  python "$@" > "$out/$name.txt" 2>&1
  local code=$?
  if [ $code -ne 0 ]; then echo "failed with $code" >> "$out/$name.txt"; fi
}

if [ $tiny ]; then
  run entropy benchmarks/entropy.py --n=256 --d=8 --only=floor,small
  run grid benchmarks/grid.py --runs 1 2 --steps=2 --peer=1
  run resident benchmarks/resident.py --runs 1 2 --steps=2 --rounds=1
  run encoders -m benchmarks.encoders --time --batch=1 --kind=vggsound_resnet18
  run video_step -m benchmarks.video --step --only=erm/layer4 --depths=1,1,1,1 \
    --width=8 --batch=1 --repeats=1
else
  run entropy benchmarks/entropy.py --n=8192 --d=128 --only=floor,torch,memory,small
  run entropy_wide benchmarks/entropy.py --n=1024 --d=2304 --only=floor,torch,small
  run grid benchmarks/grid.py --runs 1 16 128 1024
  run resident benchmarks/resident.py --runs 1 8 64 256
  run resident_waves benchmarks/resident.py --waves 64 128 256 512
  run encoders -m benchmarks.encoders --time --batch=16 --dtype=bfloat16
  run video_step -m benchmarks.video --step --batch=16 --dtype=bfloat16
  run video_peer -m benchmarks.video --peer --batches=16,48
  run video_wait -m benchmarks.video --wait --batch=16 --dtype=bfloat16 \
    --threads="$(nproc)"
fi
python benchmarks/one_table.py "$out" | tee "$out/table.md"
