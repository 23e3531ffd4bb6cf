#!/usr/bin/env bash
# Compares key frames with the baseline: error rates, frames, time, noise, information in dropped frames. Runs unattended, resumes
# where it was stopped, and writes a table.
#
#   studies/keyframe.sh                                                the miniature, three seeds: hours on a laptop
#   studies/keyframe.sh --mini-size tiny --seeds 0 --epochs 1          minutes: only a check that it runs
#   studies/keyframe.sh --recipe librispeech --unit bpe --vocab-size 300        with word pieces
#   studies/keyframe.sh --corpus <corpus> --config conf/keyframe/train_keyframe.yaml --layer 6 --ngpu 4
set -euo pipefail
cd "$(dirname "$0")"

recipe=aishell1                         # recipe whose data and configs are used
corpus=                                 # the corpus; default: the miniature
mini_size=study                         # size of the miniature
config=conf/keyframe/train_keyframe_mini.yaml       # training config with key frames, from which the variants are made
layer=2                                 # layer before which key frames are selected, as in the config
seeds="0 1 2"                           # one training per seed
variants="baseline axe til nofusion"    # also radius2 concat skip2 skip5 causal keep5 unsupervised early
epochs=                                 # epochs of every phase, for a quick trial; default: those of the configs
unit=char                               # unit of the vocabulary: char or bpe
vocab_size=0                            # size of the vocabulary, for bpe
test_set="test"                         # set to decode
noise=true                              # also decode with noise and reverberation
ngpu=                                   # as for run.sh
ranks=                                  # as for run.sh

root=../../..
option_files=("$PWD/${0##*/}")
# shellcheck source=utils/parse_options.sh
. $root/utils/parse_options.sh
if [[ -n $corpus && $corpus != /* && -e $OLDPWD/$corpus ]]; then corpus=$OLDPWD/$corpus; fi      # relative to the user's folder
# shellcheck source=utils/path.sh
. $root/utils/path.sh
studies=$PWD
cd "../../$recipe"

run=(./run.sh --unit "$unit" --vocab-size "$vocab_size" --train-config "$config")
variant=
if [[ -n $corpus ]]; then
  run+=(--corpus "$corpus")
else
  run+=(--mini true --mini-size "$mini_size")
  variant=/mini
  if [[ $mini_size != default ]]; then variant+=_$mini_size; fi
fi
if [[ -n $ngpu ]]; then run+=(--ngpu "$ngpu"); fi
if [[ -n $ranks ]]; then run+=(--ranks "$ranks"); fi
table=(python "$studies/keyframe_table.py" --exp "exp$variant" --seeds "$seeds" --variants "$variants")

settings() {        # <variant>: its config and overrides
  local frames=model.encoder.downsamplers.$layer
  train_config=$config; overrides=
  case $1 in
    axe)          ;;
    baseline | til | early) train_config=exp$variant/keyframe_configs/$(basename "$config" .yaml)_$1.yaml ;;
    nofusion)     overrides="$frames.fusion=none" ;;
    radius2)      overrides="$frames.radius=2" ;;
    concat)       overrides="phases.fusion.$frames.fusion=concat phases.keyframe.$frames.fusion=concat" ;;
    keep5)        overrides="phases.fusion.$frames.drop=true phases.fusion.$frames.keep=5" ;;
    skip2)        overrides="losses.aligned.skip_penalty=2" ;;
    skip5)        overrides="losses.aligned.skip_penalty=5" ;;
    causal)       overrides="$frames.causal=true" ;;
    unsupervised) overrides="phases.keyframe.losses.aligned.weight=0 phases.keyframe.trainer.best=valid/attention" ;;
    *)            usage_error "no variant '$1'; the variants are listed at the top of ${0##*/}" ;;
  esac
}

lengthen() {        # <variant> <seed>: overrides of the epochs; the baseline trains as long as axe did
  if [[ -n $epochs ]]; then
    case $1 in
      baseline | early) echo "trainer.epochs=$epochs" ;;
      *) echo "phases.base.trainer.epochs=$epochs phases.fusion.trainer.epochs=$epochs phases.keyframe.trainer.epochs=$epochs" ;;
    esac
  elif [[ $1 == baseline && " $variants " == *" axe "* ]]; then
    echo "trainer.epochs=$("${table[@]}" --match "$2")"
  fi
}

share() {           # <variant> <seed>: takes the phases that are equal to those of axe from its experiment
  local from=exp$variant/study_axe_$2 to=exp$variant/study_$1_$2 phases=base
  case $1 in
    axe | baseline | early) return ;;
    til | skip2 | skip5 | unsupervised) phases="base fusion" ;;
  esac
  if [[ -e $to || ! -f $from/keyframe/finished.json ]]; then return; fi
  # shellcheck disable=SC2086    # a list
  python -c "import sys, pathlib as p; from asrtool.trainer.folder import take_phases as take
take(p.Path(sys.argv[1]), p.Path(sys.argv[2]), sys.argv[3:])" "$from" "$to" $phases
}

decodings() {       # <variant>: its decoding configs
  local frames=keyframe/decode_keyframe
  case $1 in
    baseline)     echo "decode_greedy decode_attention decode_rescoring decode_joint" ;;
    unsupervised) echo "$frames ${frames}_rescoring ${frames}_joint" ;;
    *)            echo "${frames}_aligned $frames ${frames}_rescoring ${frames}_joint" ;;
  esac
}

sets=$test_set
python "$studies/keyframe_variants.py" --config "$config" --out "exp$variant/keyframe_configs"
"${run[@]}" --stage 0 --stop-stage 2
if [[ $noise == true ]]; then
  python "$studies/noisy_sets.py" --data "data$variant/$test_set"
  noisy="${test_set}_snr20 ${test_set}_snr10 ${test_set}_snr0 ${test_set}_room"
  sets+=" $noisy"
  "${run[@]}" --stage 1 --stop-stage 1 --test-sets "$noisy"
fi

order=${variants/baseline/}             # the baseline last, since it trains as long as axe did
if [[ " $variants " == *" baseline "* ]]; then order+=" baseline"; fi
for seed in $seeds; do
  for name in $order; do
    settings "$name"
    tag=study_${name}_$seed
    if [[ -f exp$variant/$tag/overrides.txt ]]; then
      overrides=$(< "exp$variant/$tag/overrides.txt")         # a stopped training continues with the same overrides
    else
      overrides="seed=$seed $overrides $(lengthen "$name" "$seed")"
      share "$name" "$seed"
    fi
    "${run[@]}" --stage 3 --stop-stage 3 --train-config "$train_config" --tag "$tag" --train-args "$overrides"
    echo "$overrides" > "exp$variant/$tag/overrides.txt"
    for decoding in $(decodings "$name"); do
      decoded=$test_set                 # noisy sets are decoded by attention only
      if [[ $decoding == decode_attention || $decoding == keyframe/decode_keyframe ]]; then decoded=$sets; fi
      "${run[@]}" --stage 4 --test-sets "$decoded" --train-config "$train_config" --tag "$tag" --train-args "$overrides" \
        --decode-config "conf/$decoding.yaml"
    done
  done
  if [[ " $variants " == *" axe "* ]]; then
    python "$studies/dropped_frames.py" --exp "exp$variant/study_axe_$seed" --data "data$variant/$test_set" --layer "$layer"
  fi
done
"${table[@]}" --set "$test_set" --out "exp$variant/keyframe_study.md"
