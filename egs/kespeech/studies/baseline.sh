#!/usr/bin/env bash
# Does Qifusion-Net help? Compares it with a Conformer of the same heads, kernel, frame rate, width and training, and with a wider one of as
# many parameters, offline and in chunks of 640 ms, with imbalanced accents.
#
#   studies/baseline.sh                                   three seeds, hours on a laptop
#   studies/baseline.sh --size tiny --seeds 0 --train-args trainer.epochs=1
#   studies/baseline.sh --corpus <corpus> --ngpu 8             KeSpeech, one seed
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

begin "Qifusion-Net against the Conformer"
train u2pp "$baseline" model.encoder.ffn_dim=$width
train wide "$baseline" model.encoder.ffn_dim=$wider     # as many parameters as with the fusion
train qifusion "$qifusion"
for tag in u2pp wide qifusion; do
  decode $tag whole
  decode $tag chunk640 chunk_ms=640
done
table "Character error rate" --against Conformer \
  "Conformer={u2pp}/whole" "Conformer, wider={wide}/whole" "Qifusion-Net={qifusion}/whole" \
  "Conformer, 640 ms={u2pp}/chunk640" "Qifusion-Net, 640 ms={qifusion}/chunk640"
table "In chunks of 640 ms" --against Conformer \
  "Conformer={u2pp}/chunk640" "Conformer, wider={wide}/chunk640" "Qifusion-Net={qifusion}/chunk640"
{ printf '\n## Cosine between the gradient of the accent loss and that of the other losses\n\n'
  python studies/cosines.py --exp "$exp" --seeds "$seeds" qifusion; } | tee -a "$out"
