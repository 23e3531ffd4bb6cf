#!/usr/bin/env bash
# How much should CTC and the accent weigh, when accents are unevenly spread?
#
#   studies/weights.sh                                    three seeds of each of fifteen pairs
#   studies/weights.sh --size tiny --seeds 0 --train-args trainer.epochs=1
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

begin "Weights of CTC and accent"
rows=()
for pair in "0.3 0.7" "0.5 0.5" "0.7 0.3"; do
  read -r ctc attention <<< "$pair"
  for accent in 0 0.1 0.3 1 3; do
    tag=ctc${ctc}_accent$accent
    changes="losses.ctc.weight=$ctc losses.attention.weight=$attention losses.accent.weight=$accent"
    if [[ $accent == 0 ]]; then changes+=" model.encoder.accent.classes=0 trainer.gradient_cosine=null"; fi
    # shellcheck disable=SC2086    # changes are words
    train "$tag" qifusion/train_qifusion_mini $changes
    decode "$tag" whole
    rows+=("CTC $ctc, accent $accent={$tag}/whole")
  done
done
table "Weights" --against "CTC 0.5, accent 0.3" --by subdialect "${rows[@]}"
