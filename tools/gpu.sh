#!/usr/bin/env bash
# What only a GPU can show, on a machine with one GPU and little time.
#
#   tools/gpu.sh OUT              every part, one after the other
#   tools/gpu.sh OUT step         one of the parts: tests, step, loading, search
#   tools/gpu.sh OUT step cpu     a rehearsal without a GPU, at sizes that say nothing about speed
#
# A part takes less than four minutes and is ended after that. Each figure is a line of OUT/figures.jsonl as soon as it is measured; a part that
# is run again adds to them. The end prints all as a table. The status is 1 where a part failed, was ended, or lacks something on this machine.
set -euo pipefail
if [[ $# -lt 1 || $# -gt 3 || $1 == -* ]]; then awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; exit 2; fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
parts=${2:-all}
device=${3:-cuda}
cd "$(dirname "$0")/.."
# shellcheck source=utils/path.sh
. utils/path.sh
if [[ $parts == all ]]; then parts="tests step loading search"; fi

status=0
for part in $parts; do
  echo "== $part"
  timeout --kill-after 10 230 python tools/benchmarks/gpu.py "$part" --out "$out" --device "$device" || status=1
done
python tools/benchmarks/gpu.py table --out "$out" --device "$device" || status=1
exit $status
