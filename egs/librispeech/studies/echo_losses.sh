#!/usr/bin/env bash
# CTC, focal CTC, class-weighted CTC and their sums: which loss, with which lambda? Class weights and focal loss are meant for rare
# classes, so --subset skewed compares them on half of the hours, selected with as few rare letters as possible, and on as many hours
# selected at random (studies/skewed_subset.py).
#
#   studies/echo_losses.sh                                three seeds of each of nine losses
#   studies/echo_losses.sh --subset skewed --corpus <corpus> --train-set train_10h --ngpu 2
#   studies/echo_losses.sh --size tiny --seeds 0 --train-args "trainer.epochs=1"
set -euo pipefail
cd "$(dirname "$0")"
subset=all              # training speech: all or skewed
# shellcheck source=egs/librispeech/studies/common.sh
. ./common.sh

begin "Losses of Echotune"
loss() {                # <tag> <name> <weight of CTC> <its class weights> <its class weighting> <weight of focal CTC>
  run_system "$1$part" "$train_config" "losses.ctc.weight=$3 losses.ctc.class_weights=$4 losses.ctc.class_weighting=$5" \
    "'losses.focal={type: focal_ctc, weight: $6}'"
  systems+=("$2={$1$part}")
}
losses() {              # <title>: a table of all losses
  local lambda focal
  systems=()
  loss ctc "CTC" 1 none utterance 0
  loss focal "focal CTC" 0 none utterance 1
  loss utterance "class weights, by utterance" 1 inverse_frequency utterance 0
  loss gradient "class weights, by gradient" 1 inverse_frequency gradient 0
  loss half "CTC 0.7, focal 0.3" 0.7 none utterance 0.3
  for lambda in 0.3 0.5 0.7 0.9; do
    focal=$(python -c "print(round(1 - $lambda, 2))")
    loss "lambda$lambda" "class weights $lambda, focal $focal" "$lambda" inverse_frequency utterance "$focal"
  done
  table "$1" --against CTC "${systems[@]}"
}
case $subset in
  all) part='' && losses "Word error rate" ;;
  skewed)
    whole=train; if [[ -n $corpus ]]; then whole=$train_set; fi
    recipe --stop-stage 0
    python studies/skewed_subset.py --data "data$variant/$whole" | tee -a "$out"
    base+=(--stage 1)
    for part in _skewed _even; do
      base+=(--train-set "$whole$part")
      losses "Word error rate, trained on $whole$part"
    done ;;
  *) usage_error "option --subset must be all or skewed, not '$subset'" ;;
esac
