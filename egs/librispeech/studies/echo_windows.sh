#!/usr/bin/env bash
# Does Echo-MSA help a Conformer from scratch of as many parameters? Which window, which reading of it, which gate?
#
#   studies/echo_windows.sh                               three seeds of each of twelve systems
#   studies/echo_windows.sh --size tiny --seeds 0 --train-args "trainer.epochs=1"
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/librispeech/studies/common.sh
. ./common.sh

begin "Echo-MSA in a Conformer"
ctc="losses.ctc.weight=1.0 losses.ctc.class_weights=none losses.focal.weight=0"
run_system plain train_mini model.encoder.ffn_dim=443     # what Echo-MSA has in parameters, put into the layers
systems=("plain, equal parameters={plain}")
attention() {           # <tag> <name> <settings>: one system with plain CTC
  run_system "$1" echotune/train_echo_mini "$ctc" "'model.encoder.attention={$3}'"
  systems+=("$2={$1}")
}
attention adaptive16 "adaptive, up to 16" "mode: adaptive, windows: [16]"
for window in 4 16 64 256; do
  attention "single$window" "one window of $window" "mode: single, windows: [$window]"
done
attention adaptive64 "adaptive, up to 64" "mode: adaptive, windows: [64]"
attention heads "4, 16, 64, 256 over heads" "mode: heads, windows: [4, 16, 64, 256]"
attention layers "4, 16, 64, 256 over layers" "mode: layers, windows: [4, 16, 64, 256]"
attention gate0 "windows of 16 alone (gate 0)" "mode: single, windows: [16], gate_fixed: 0.0"
attention gate0_64 "windows of 64 alone (gate 0)" "mode: single, windows: [64], gate_fixed: 0.0"
attention gate1 "own attention alone (gate 1)" "mode: single, windows: [16], gate_fixed: 1.0"
table "Word error rate" --against "plain, equal parameters" "${systems[@]}"
for seed in $seeds; do
  for tag in adaptive16 adaptive64; do
    { printf '\n## Windows by speaking rate and length: %s, seed %s\n\n```\n' "$tag" "$seed"
      python -m asrtool plot echo "$exp/$tag-s$seed" --data "dump$variant/fbank80/dev" --survey \
        --out "$exp/$tag-s$seed/echo.png"
      printf '```\n'; } | tee -a "$out"
  done
done
