# What the studies share: their options, and training, decoding and tables over seeds. A study sources it from its own folder.
# Everything runs on the miniature; what is done already is skipped, so a study that was stopped goes on.
# shellcheck shell=bash disable=SC2034    # option_files is read by parse_options.sh
size=study              # of the miniature
seeds="0 1 2"           # a training for each
accents=9               # of the miniature
skew=1                  # how uneven the training set's accents are; 0: even
train_args=             # further changes of every training, as in "trainer.epochs=4"
out=                    # file for the tables; default: exp/.../<study>.md

option_files=("$PWD/${0##*/}" "$PWD/common.sh")
# shellcheck source=utils/parse_options.sh
. ../../../utils/parse_options.sh
study=$(basename "$0" .sh)
cd ..
# shellcheck source=utils/path.sh
. ../../utils/path.sh

locate_exp() {          # where run.sh puts the experiments of the chosen miniature
  local variant=
  if [[ "$accents $skew" != "9 0" ]]; then variant=/accents${accents}_skew$skew; fi
  if [[ $size == default ]]; then variant+=/mini; else variant+=/mini_$size; fi
  data=data$variant dump=dump$variant/fbank80 exp=exp$variant
}
locate_exp
out=${out:-$exp/$study.md}

recipe() { ./run.sh --mini true --mini-size "$size" --accents "$accents" --skew "$skew" "$@"; }

train() {               # <tag> <config, below conf/> [changes]: stages 0 to 3, for every seed
  local seed
  for seed in $seeds; do
    recipe --stop-stage 3 --tag "$1-s$seed" --train-config "conf/$2.yaml" --train-args "seed=$seed ${*:3} $train_args"
  done
}

decode() {              # <tag> <folder> [changes of the decoding config]: stages 4 and 5, for every seed
  local seed
  for seed in $seeds; do
    recipe --stage 4 --tag "$1-s$seed" --train-config "$exp/$1-s$seed/config.yaml" \
      --decode-config conf/u2pp/decode_mini_rescoring.yaml --decode-tag "$2" --decode-args "${*:3}" ${test_sets:+--test-sets "$test_sets"}
  done
}

table() {               # <title> <options of table.py>: a table at the end of the study's file
  mkdir -p "$(dirname "$out")"
  { printf '\n## %s\n\n' "$1"; python studies/table.py --exp "$exp" --seeds "$seeds" "${@:2}"; } | tee -a "$out"
}

begin() {               # <title>: a new file of tables
  mkdir -p "$(dirname "$out")"
  { printf '# %s\n\n' "$1"
    printf 'Miniature %s, %s accents, skew %s, seeds %s, changes "%s", commit %s.\n' \
      "$size" "$accents" "$skew" "$seeds" "$train_args" "$(git rev-parse --short HEAD 2> /dev/null || echo unknown)"
    printf 'Synthetic voices: the numbers compare methods with each other, and say nothing about people.\n'; } > "$out"
}
