#!/usr/bin/env bash
# Does Qifusion-Net help? Against the Conformer of the same width and training, and against one of as many parameters, whole and in
# chunks of 16, accents unevenly spread.
#
#   studies/baseline.sh                                   three seeds, hours on a laptop
#   studies/baseline.sh --size tiny --seeds 0 --train-args trainer.epochs=1
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

begin "Qifusion-Net against the Conformer"
train u2pp u2pp/train_u2pp_mini
train wide u2pp/train_u2pp_mini model.encoder.ffn_dim=362     # what the fusion has in parameters, put into the layers
train qifusion qifusion/train_qifusion_mini
for tag in u2pp wide qifusion; do
  decode $tag whole
  decode $tag chunk16 chunk=16
done
table "Character error rate" --against Conformer \
  "Conformer={u2pp}/whole" "Conformer, wider={wide}/whole" "Qifusion-Net={qifusion}/whole" \
  "Conformer, chunk 16={u2pp}/chunk16" "Qifusion-Net, chunk 16={qifusion}/chunk16"
table "In chunks of 16" --against Conformer \
  "Conformer={u2pp}/chunk16" "Conformer, wider={wide}/chunk16" "Qifusion-Net={qifusion}/chunk16"
{ printf '\n## Cosine of the gradients of the accent loss and of the others\n\n'
  python studies/cosines.py --exp "$exp" --seeds "$seeds" qifusion; } | tee -a "$out"
