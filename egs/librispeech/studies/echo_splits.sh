#!/usr/bin/env bash
# Echotune and plain data2vec on every split, 10 minutes to 960 hours of labelled speech, with the same schedule and masks.
#
#   studies/echo_splits.sh --corpus <corpus> --ngpu 2
#   studies/echo_splits.sh --corpus <corpus> --splits 10h --systems plain --seeds 0 --ngpu 2      plain data2vec on 10 hours
#   studies/echo_splits.sh --size tiny --seeds 0          random weights, four steps: only a check that it runs
set -euo pipefail
cd "$(dirname "$0")"
splits="10m 1h 10h 100h 960h"      # amounts of labelled speech
systems="plain echo"               # plain: data2vec with CTC; echo: Echotune
# shellcheck source=egs/librispeech/studies/common.sh
. ./common.sh

declare -A sets_of=([10m]=train_10min [1h]=train_1h [10h]=train_10h [100h]=train_100 [960h]=train)
for split in $splits; do
  [[ -n ${sets_of[$split]:-} ]] || usage_error "--splits must be among 10m, 1h, 10h, 100h and 960h, not '$split'"
done
for system in $systems; do
  [[ $system == plain || $system == echo ]] || usage_error "--systems must be among plain and echo, not '$system'"
done

# The miniature does not use published weights: it only checks that the study runs.
small=
if [[ -z $corpus ]]; then
  small="model.encoder.size=tiny model.encoder.weights=null trainer.steps=4 trainer.validate_every=4 trainer.precision=float32"
  small+=" data.batch.seconds=60 data.batch.max_seconds_per_device=60"
fi
# Turns Echotune into plain data2vec. Below 100 hours train_echotune_1h_plain.yaml does, without groups for new modules.
plain="model.encoder.attention=null losses.ctc.weight=1.0 losses.ctc.class_weights=none losses.focal.weight=0.0"
declare -A plain_of=([10m]=1h_plain [1h]=1h_plain [10h]=1h_plain [100h]=100h [960h]=960h)
declare -A changes=(
  [10h]="model.encoder.channel_mask=0.5 model.encoder.layer_drop=0.05 trainer.steps=20000" [100h]=$plain [960h]=$plain
)

run_split() {           # <split> <system>
  local config=$1 more=
  if [[ $2 == plain ]]; then config=${plain_of[$1]} more=${changes[$1]:-}; fi
  # shellcheck disable=SC2086    # changes are words
  run_system "$2_$1" "conf/echotune/train_echotune_$config.yaml" $more $small
}

if [[ -n $corpus ]]; then what="LibriSpeech"; fi
begin "Echotune by hours of labelled speech"
for split in $splits; do
  if [[ -n $corpus ]]; then base=(--corpus "$corpus" --train-set "${sets_of[$split]}" --unit char --vocab-size 0 --ngpu "$ngpu"); fi
  rows=()
  for system in $systems; do
    run_split "$split" "$system"
    rows+=("$system={${system}_$split}")
  done
  table "$split" --against "${systems%% *}" "${rows[@]}"
done
