#!/usr/bin/env bash
# What do chunks cost in accuracy? One model, offline and in chunks of 640, 320 and 160 ms; with chunk sizes that were not trained; in
# noise; with little left context.
#
#   studies/chunks.sh                                     three seeds
#   studies/chunks.sh --size tiny --seeds 0 --train-args trainer.epochs=1
#   studies/chunks.sh --corpus <corpus> --ngpu 8             KeSpeech, one seed
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/kespeech/studies/common.sh
. ./common.sh

begin "Chunk sizes"
train qifusion "$qifusion"
decode qifusion whole
for ms in 640 320 160; do decode qifusion "chunk$ms" "chunk_ms=$ms"; done
for left in 1 2 4; do decode qifusion "chunk640_left$left" "chunk_ms=640 left_chunks=$left"; done
table "One model" --against whole --by subdialect "whole={qifusion}/whole" "640 ms={qifusion}/chunk640" \
  "320 ms={qifusion}/chunk320" "160 ms={qifusion}/chunk160"
table "Left context of chunks of 640 ms" --against all "all={qifusion}/chunk640" "4 chunks={qifusion}/chunk640_left4" \
  "2 chunks={qifusion}/chunk640_left2" "1 chunk={qifusion}/chunk640_left1"

# Trained only on 160, 320 and 640 ms: how good are other sizes?
train qifusion_sizes "$qifusion" "model.encoder.chunk.sizes_ms=[160,320,640]"
for ms in 640 480 320 240 160 80; do decode qifusion_sizes "chunk$ms" "chunk_ms=$ms"; done
table "Trained on 160, 320 and 640 ms; 80, 240 and 480 ms are unseen" --against "320 ms" "80 ms={qifusion_sizes}/chunk80" \
  "160 ms={qifusion_sizes}/chunk160" "240 ms={qifusion_sizes}/chunk240" "320 ms={qifusion_sizes}/chunk320" \
  "480 ms={qifusion_sizes}/chunk480" "640 ms={qifusion_sizes}/chunk640"

# The first model on the test set with white noise at 10 dB.
python studies/noisy_set.py --data "$data/test" --out "$data/test_noisy" --snr-db 10
test_sets=test_noisy
recipe --stage 1 --stop-stage 1 --train-config "conf/$qifusion.yaml" --test-sets test_noisy
decode qifusion whole
for ms in 640 320 160; do decode qifusion "chunk$ms" "chunk_ms=$ms"; done
table "At 10 dB" --set test_noisy --against whole "whole={qifusion}/whole" "640 ms={qifusion}/chunk640" \
  "320 ms={qifusion}/chunk320" "160 ms={qifusion}/chunk160"
