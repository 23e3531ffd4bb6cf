#!/usr/bin/env bash
# Which layers encode the accent? All upper layers, each layer alone, and all but each layer; then ablations of the method.
#
#   studies/layers.sh                                     three seeds
#   studies/layers.sh --size tiny --seeds 0 --train-args trainer.epochs=1
#   studies/layers.sh --corpus <corpus> --ngpu 8             KeSpeech, one seed
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

# Numbered from 0, as in config keys; the tables count from 1, as the paper does.
fused=(1 2 3) alone=(0 1 2 3) left_out=(1 2 3)
if [[ -n $corpus ]]; then fused=(5 6 7 8 9 10 11) alone=(5 7 9 11) left_out=(5 7 9 11); fi
key=model.encoder.accent.layers

without() { printf '%s\n' "${fused[@]}" | grep -vx "$1" | paste -sd, -; }

begin "Layers and parts"
train qifusion "$qifusion"
tags=() each=() less=()
for layer in "${alone[@]}"; do
  train "layer$layer" "$qifusion" "$key=[$layer]"
  tags+=("layer$layer") each+=("layer $((layer + 1))={layer$layer}/whole")
done
for layer in "${left_out[@]}"; do
  train "without$layer" "$qifusion" "$key=[$(without "$layer")]"
  tags+=("without$layer") less+=("without layer $((layer + 1))={without$layer}/whole")
done
train laf "$qifusion" model.encoder.accent.fusion=none
train attention "$qifusion" "$key=[${fused[-1]}] model.encoder.accent.kernel=1"
train acoustic "$qifusion" model.encoder.accent.query=acoustic
train added "$qifusion" model.encoder.accent.fusion=add
train entropy "$qifusion" losses.accent.form=cross_entropy
for tag in qifusion "${tags[@]}" laf attention acoustic added entropy; do decode "$tag" whole; done
all="layers $((fused[0] + 1)) to $((fused[-1] + 1))"
table "Each layer alone, counted from 1" --against "$all" --by subdialect "$all={qifusion}/whole" "${each[@]}"
table "Without one layer" --against "$all" "$all={qifusion}/whole" "${less[@]}"
table "Parts" --against whole "whole={qifusion}/whole" "fusion of layers only={laf}/whole" "cross attention only={attention}/whole" \
  "query acoustic={acoustic}/whole" "sum instead of attention={added}/whole" "cross entropy of accents={entropy}/whole"
