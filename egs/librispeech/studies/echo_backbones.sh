#!/usr/bin/env bash
# data2vec, wav2vec 2.0, HuBERT and WavLM with and without Echo-MSA, and with only the new modules trained.
#
#   studies/echo_backbones.sh --corpus <corpus> --train-set train_1h --ngpu 2
#   studies/echo_backbones.sh --size tiny --seeds 0       random weights, four steps: only a check that it runs
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=egs/librispeech/studies/common.sh
. ./common.sh

[[ $given != *" train_config "* ]] || usage_error "this study has its own configs, with the schedule for train_1h; it has no --train-config"
config=conf/echotune/train_echotune_1h
what=${what%, *}
begin "Backbones of Echotune"
backbone() {            # <type> <published weights>: the keys of the encoder that depend on the type
  if [[ -n $corpus ]]; then echo "type: $1, size: base, weights: $2"; else echo "type: $1, size: tiny, weights: null"; fi
}
# the miniature does not use published weights: it only checks that the study runs
small=
if [[ -z $corpus ]]; then
  small="trainer.steps=4 trainer.validate_every=4 trainer.precision=float32 data.batch.seconds=60 data.batch.max_seconds_per_device=60"
fi
masks="time_mask: 0.65, channel_mask: 0.25, layer_drop: 0.1, activation_dropout: 0.1"
echo_on="attention: {type: echo, mode: adaptive, windows: [64]}"
systems=()
while read -r type weights; do
  encoder=$(backbone "$type" "$weights")
  # shellcheck disable=SC2086    # small is words
  run_system "$type" "${config}_plain.yaml" "'model.encoder={$encoder, attention: null, $masks}'" $small
  # shellcheck disable=SC2086
  run_system "${type}_echo" "$config.yaml" "'model.encoder={$encoder, $masks, $echo_on}'" $small
  # shellcheck disable=SC2086
  run_system "${type}_frozen" "$config.yaml" "'model.encoder={$encoder, $masks, $echo_on}'" \
    "'optim.groups={\"encoder.model.*\": {freeze: true, freeze_until: 0}}'" $small
  systems+=("$type={$type}" "$type with echo={${type}_echo}" "$type, only echo trained={${type}_frozen}")
done <<- END
	data2vec facebook/data2vec-audio-base
	wav2vec2 facebook/wav2vec2-base
	hubert facebook/hubert-base-ls960
	wavlm microsoft/wavlm-base-plus
END
table "Word error rate" --against data2vec "${systems[@]}"
