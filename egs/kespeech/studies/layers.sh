#!/usr/bin/env bash
# Which layers know the accent? All upper layers against each layer alone, and without each of them; and the parts of the method.
#
#   studies/layers.sh                                     three seeds
#   studies/layers.sh --size tiny --seeds 0 --train-args trainer.epochs=1
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

layers=model.encoder.accent.layers
begin "Layers and parts"
train qifusion qifusion/train_qifusion_mini
for layer in 0 1 2 3; do train "layer$layer" qifusion/train_qifusion_mini "$layers=[$layer]"; done
train without1 qifusion/train_qifusion_mini "$layers=[2,3]"
train without2 qifusion/train_qifusion_mini "$layers=[1,3]"
train without3 qifusion/train_qifusion_mini "$layers=[1,2]"
train laf qifusion/train_qifusion_mini model.encoder.accent.fusion=none
train attention qifusion/train_qifusion_mini "$layers=[3] model.encoder.accent.kernel=1"
train acoustic qifusion/train_qifusion_mini model.encoder.accent.query=acoustic
train added qifusion/train_qifusion_mini model.encoder.accent.fusion=add
train entropy qifusion/train_qifusion_mini losses.accent.form=cross_entropy
all="layer0 layer1 layer2 layer3 without1 without2 without3 laf attention acoustic added entropy"
for tag in qifusion $all; do decode "$tag" whole; done
table "Each layer alone, counted from 0" --against 1,2,3 --by subdialect "1,2,3={qifusion}/whole" "0={layer0}/whole" "1={layer1}/whole" \
  "2={layer2}/whole" "3={layer3}/whole"
table "Without one layer" --against 1,2,3 "1,2,3={qifusion}/whole" "without 1={without1}/whole" "without 2={without2}/whole" \
  "without 3={without3}/whole"
table "Parts" --against whole "whole={qifusion}/whole" "fusion of layers only={laf}/whole" "cross attention only={attention}/whole" \
  "query acoustic={acoustic}/whole" "sum in the place of attention={added}/whole" "cross entropy of accents={entropy}/whole"
