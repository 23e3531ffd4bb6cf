#!/usr/bin/env bash
# Tests and benchmarks that need a GPU, for a machine with one GPU and little time.
#
#   tools/gpu.sh OUT              all parts, one after the other
#   tools/gpu.sh OUT step         one part: tests, step, profile, peers, compile, kernels, loading, search or studies
#   tools/gpu.sh OUT step cpu     a trial run without a GPU, at sizes that are too small to measure speed
#
# What each part needs is printed first. A part is stopped after four minutes. Each figure is appended to OUT/figures.jsonl as soon as it is measured; running a part again appends
# more. At the end, all are printed as a table. The exit status is 1 if a part failed, was stopped, or needs what this machine lacks.
set -euo pipefail
if [[ $# -lt 1 || $# -gt 3 || $1 == -* ]]; then awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; exit 2; fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
parts=${2:-all}
device=${3:-cuda}
cd "$(dirname "$0")/.."
# shellcheck source=utils/path.sh
. utils/path.sh
if [[ $parts == all ]]; then parts="tests step profile peers compile kernels loading search studies"; fi

python tools/benchmarks/gpu.py needs --out "$out"
status=0
for part in $parts; do
  echo "== $part"
  timeout --kill-after 10 230 python tools/benchmarks/gpu.py "$part" --out "$out" --device "$device" || status=1
done
python tools/benchmarks/gpu.py table --out "$out" --device "$device" || status=1
exit $status
