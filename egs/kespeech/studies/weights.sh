#!/usr/bin/env bash
# Which weights should CTC and the accent loss have, with imbalanced accents? Should rare accents weigh more?
#
#   studies/weights.sh                                    three seeds of each of fifteen pairs and three powers
#   studies/weights.sh --size tiny --seeds 0 --train-args trainer.epochs=1
#   studies/weights.sh --corpus <corpus> --ngpu 8             KeSpeech, one seed
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

decoders() {            # <weight of the decoders>: of the two decoders of KeSpeech's configs, the reverse one gets 30 % of it
  if [[ -z $corpus ]]; then echo "losses.attention.weight=$1"; return; fi
  awk -v weight="$1" 'BEGIN { print "losses.attention.weight=" 0.7 * weight " losses.reverse.weight=" 0.3 * weight }'
}

begin "Weights of CTC and accent"
rows=()
for pair in "0.3 0.7" "0.5 0.5" "0.7 0.3"; do
  read -r ctc attention <<< "$pair"
  for accent in 0 0.1 0.3 1 3; do
    tag=ctc${ctc}_accent$accent
    changes="losses.ctc.weight=$ctc losses.accent.weight=$accent $(decoders "$attention")"
    if [[ $accent == 0 ]]; then changes+=" model.encoder.accent.classes=0 trainer.gradient_cosine=null"; fi
    # shellcheck disable=SC2086    # changes are words
    train "$tag" "$qifusion" $changes
    decode "$tag" whole
    rows+=("CTC $ctc, accent $accent={$tag}/whole")
  done
done
# Accents are weighted by the inverse of their frequency to a power; 0: all equally.
powers=()
for power in 0 0.5 1; do
  train "power$power" "$qifusion" "losses.accent.class_weights=inverse_frequency losses.accent.class_power=$power"
  decode "power$power" whole
  powers+=("power $power={power$power}/whole")
done
table "Weights of rare accents" --against "power 0" --by subdialect "${powers[@]}"
table "Weights" --against "CTC 0.5, accent 0.3" --by subdialect "${rows[@]}"
