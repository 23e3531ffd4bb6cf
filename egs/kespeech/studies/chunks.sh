#!/usr/bin/env bash
# What do chunks cost? One model, whole and in chunks of 16, 8 and 4; in sizes that were never trained; in noise; with little left context.
#
#   studies/chunks.sh                                     three seeds
#   studies/chunks.sh --size tiny --seeds 0 --train-args trainer.epochs=1
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

begin "Chunk sizes"
train qifusion qifusion/train_qifusion_mini
decode qifusion whole
for chunk in 16 8 4; do decode qifusion "chunk$chunk" "chunk=$chunk"; done
for left in 1 2 4; do decode qifusion "chunk16_left$left" "chunk=16 left_chunks=$left"; done
table "One model" --against whole --by subdialect "whole={qifusion}/whole" "16 (640 ms)={qifusion}/chunk16" \
  "8 (320 ms)={qifusion}/chunk8" "4 (160 ms)={qifusion}/chunk4"
table "Left context of chunks of 16" --against all "all={qifusion}/chunk16" "4 chunks={qifusion}/chunk16_left4" \
  "2 chunks={qifusion}/chunk16_left2" "1 chunk={qifusion}/chunk16_left1"

# Trained on 4, 8 and 16 alone: what of the sizes between?
train qifusion_sizes qifusion/train_qifusion_mini "model.encoder.chunk.sizes=[4,8,16]"
for chunk in 16 12 8 6 4 3; do decode qifusion_sizes "chunk$chunk" "chunk=$chunk"; done
table "Trained on 4, 8 and 16; 3, 6 and 12 are new" --against 8 "3 (120 ms)={qifusion_sizes}/chunk3" \
  "4 (160 ms)={qifusion_sizes}/chunk4" "6 (240 ms)={qifusion_sizes}/chunk6" "8={qifusion_sizes}/chunk8" \
  "12 (480 ms)={qifusion_sizes}/chunk12" "16 (640 ms)={qifusion_sizes}/chunk16"

# The same in noise: white noise at 10 dB on the test set.
python studies/noisy_set.py --data "$data/test" --out "$data/test_noisy" --snr-db 10
test_sets=test_noisy
recipe --stage 1 --stop-stage 1 --train-config conf/qifusion/train_qifusion_mini.yaml --test-sets test_noisy
decode qifusion whole
for chunk in 16 8 4; do decode qifusion "chunk$chunk" "chunk=$chunk"; done
table "At 10 dB" --set test_noisy --against whole "whole={qifusion}/whole" "16 (640 ms)={qifusion}/chunk16" \
  "8 (320 ms)={qifusion}/chunk8" "4 (160 ms)={qifusion}/chunk4"
