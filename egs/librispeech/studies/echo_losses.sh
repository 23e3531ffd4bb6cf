#!/usr/bin/env bash
# CTC, focal CTC, class-weighted CTC and their sums: which loss, with which lambda?
#
#   studies/echo_losses.sh                                three seeds of each of nine losses
#   studies/echo_losses.sh --size tiny --seeds 0 --train-args "trainer.epochs=1"
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/librispeech/studies/common.sh
. ./common.sh

begin "Losses of Echotune"
systems=()
loss() {                # <tag> <name> <weight of CTC> <its class weights> <what they weigh> <weight of focal CTC>
  run_system "$1" echotune/train_echo_mini "losses.ctc.weight=$3 losses.ctc.class_weights=$4 losses.ctc.class_weighting=$5" \
    "losses.focal.weight=$6"
  systems+=("$2={$1}")
}
loss ctc "CTC" 1 none utterance 0
loss focal "focal CTC" 0 none utterance 1
loss utterance "class weights, by utterance" 1 inverse_frequency utterance 0
loss gradient "class weights, by gradient" 1 inverse_frequency gradient 0
loss half "CTC 0.7, focal 0.3" 0.7 none utterance 0.3
for lambda in 0.3 0.5 0.7 0.9; do
  focal=$(python -c "print(round(1 - $lambda, 2))")
  loss "lambda$lambda" "class weights $lambda, focal $focal" "$lambda" inverse_frequency utterance "$focal"
done
table "Word error rate" --against CTC "${systems[@]}"
