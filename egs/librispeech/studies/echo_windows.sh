#!/usr/bin/env bash
# Does Echo-MSA help? Which windows, which mode, which gate? On the miniature, the baseline is a Conformer without echo of as many
# parameters. With --corpus (data2vec) or --train-config, it is the same model without echo.
#
#   studies/echo_windows.sh                               three seeds of each of twelve systems
#   studies/echo_windows.sh --corpus <corpus> --train-set train_1h --ngpu 2
#   studies/echo_windows.sh --size tiny --seeds 0 --train-args "trainer.epochs=1"
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/librispeech/studies/common.sh
. ./common.sh

begin "Windows and gates of Echo-MSA"
ctc="losses.ctc.weight=1.0 losses.ctc.class_weights=none 'losses.focal={type: focal_ctc, weight: 0}'"
if [[ $from_scratch == true ]]; then
  baseline="plain, equal parameters"
  run_system plain conf/train_mini.yaml model.encoder.ffn_dim=443     # as many parameters as with Echo-MSA
else
  baseline="without echo"
  run_system plain "$train_config" "$ctc" "$echo_groups" "$attention=null"
fi
systems=("$baseline={plain}")
attention() {           # <tag> <name> <settings>: a system trained with plain CTC
  run_system "$1" "$train_config" "$ctc" "$echo_groups" "'$attention={type: echo, $3}'"
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
table "Word error rate" --against "$baseline" "${systems[@]}"
features=$(python -m asrtool.bin.check_config --train-config "$train_config" --decode-config conf/decode_greedy.yaml)
for seed in $seeds; do
  for tag in adaptive16 adaptive64; do
    { printf '\n## Windows by speaking rate and length: %s, seed %s\n\n```\n' "$tag" "$seed"
      python -m asrtool plot echo "$exp/$tag-s$seed" --data "dump$variant/$features/dev" --survey \
        --out "$exp/$tag-s$seed/echo.png"
      printf '```\n'; } | tee -a "$out"
  done
done
