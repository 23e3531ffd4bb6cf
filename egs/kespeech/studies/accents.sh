#!/usr/bin/env bash
# Does the method scale with the number of accents? Nine and twenty.
#
#   studies/accents.sh                                    three seeds of each
#   studies/accents.sh --size tiny --seeds 0 --train-args trainer.epochs=1
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

if [[ -n $corpus ]]; then usage_error "this study needs the miniature: the accents of the corpus are fixed"; fi

begin "Nine and twenty accents"
for accents in 9 20; do
  locate_exp
  train u2pp u2pp/train_u2pp_mini
  train qifusion qifusion/train_qifusion_mini "model.encoder.accent.classes=$accents"
  for tag in u2pp qifusion; do decode $tag whole; done
  table "$accents accents" --against Conformer --by subdialect "Conformer={u2pp}/whole" "Qifusion-Net={qifusion}/whole"
done
