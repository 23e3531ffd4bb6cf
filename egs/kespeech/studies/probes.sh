#!/usr/bin/env bash
# Does the cross attention remove the accent from the decoder's input? Linear classifiers of the accent before and after it.
#
#   studies/probes.sh                                     three seeds
#   studies/probes.sh --size tiny --seeds 0 --train-args trainer.epochs=1
#   studies/probes.sh --corpus <corpus> --ngpu 8             KeSpeech, one seed
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

begin "Linear probes of the accent"
train qifusion "$qifusion"
train no_labels "$qifusion" losses.accent.weight=0 model.encoder.accent.classes=0 trainer.gradient_cosine=null
for tag in qifusion no_labels; do
  { printf '\n## %s\n\n' "$tag"
    python studies/probes.py --exp "$exp" --seeds "$seeds" --tag "$tag" --train "$dump/train" --test "$dump/test"; } | tee -a "$out"
done
