# Shared by the studies: options, and training, decoding and tables over seeds. A study sources it from its own folder.
# Studies run on the miniature, or with --corpus on the corpus. Finished parts are skipped, so a study that was stopped resumes.
# shellcheck shell=bash disable=SC2034    # option_files is read by parse_options.sh
corpus=                 # the corpus; default: the miniature
ngpu=                   # as for run.sh
size=study              # size of the miniature
seeds="0 1 2"           # one training per seed; default with --corpus: 0
accents=9               # accents of the miniature
skew=1                  # imbalance of the training set's accents; 0: balanced
train_args=             # further overrides of every training, as in "trainer.epochs=4"
out=                    # file for the tables; default: exp/.../<study>.md

option_files=("$PWD/${0##*/}" "$PWD/common.sh")
# shellcheck source=utils/parse_options.sh
. ../../../utils/parse_options.sh
if [[ -n $corpus && $corpus != /* && -e $OLDPWD/$corpus ]]; then corpus=$OLDPWD/$corpus; fi      # relative to the user's folder
study=$(basename "$0" .sh)
cd ..
# shellcheck source=utils/path.sh
. ../../utils/path.sh

if [[ -n $corpus ]]; then
  if [[ $given == *" accents "* || $given == *" skew "* || $given == *" size "* ]]; then
    usage_error "--size, --accents and --skew need the miniature: the accents of --corpus are fixed"
  fi
  if [[ $given != *" seeds "* ]]; then seeds=0; fi
fi

# Configs for the miniature and for the corpus: Qifusion-Net, and a Conformer with the same heads, kernel and frame rate. width and wider
# are two feed-forward widths of the Conformer: that of Qifusion-Net, and the one with which it has as many parameters.
qifusion=qifusion/train_qifusion_mini baseline=u2pp/train_u2pp_mini width=288 wider=362
decode_config=conf/u2pp/decode_mini_rescoring.yaml
if [[ -n $corpus ]]; then
  qifusion=qifusion/train_qifusion baseline=qifusion/train_qifusion_baseline width=2048 wider=2156
  decode_config=conf/u2pp/decode_rescoring.yaml
fi

locate_exp() {          # where run.sh puts the experiments of the corpus or the chosen miniature
  local variant=
  if [[ -n $corpus ]]; then data=data dump=dump/fbank80 exp=exp; return; fi
  if [[ "$accents $skew" != "9 0" ]]; then variant=/accents${accents}_skew$skew; fi
  if [[ $size == default ]]; then variant+=/mini; else variant+=/mini_$size; fi
  data=data$variant dump=dump$variant/fbank80 exp=exp$variant
}
locate_exp
out=${out:-$exp/$study.md}

recipe() {
  local from=(--mini true --mini-size "$size" --accents "$accents" --skew "$skew")
  if [[ -n $corpus ]]; then from=(--corpus "$corpus"); fi
  ./run.sh "${from[@]}" ${ngpu:+--ngpu "$ngpu"} "$@"
}

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
      --decode-config "$decode_config" --decode-tag "$2" --decode-args "${*:3}" ${test_sets:+--test-sets "$test_sets"}
  done
}

table() {               # <title> <options of table.py>: a table at the end of the study's file
  mkdir -p "$(dirname "$out")"
  { printf '\n## %s\n\n' "$1"; python studies/table.py --exp "$exp" --seeds "$seeds" "${@:2}"; } | tee -a "$out"
}

begin() {               # <title>: a new file of tables
  mkdir -p "$(dirname "$out")"
  { printf '# %s\n\n' "$1"
    local what="Miniature $size, $accents accents, skew $skew"
    if [[ -n $corpus ]]; then what="KeSpeech"; fi
    printf '%s, seeds %s, changes "%s", commit %s.\n' \
      "$what" "$seeds" "$train_args" "$(git rev-parse --short HEAD 2> /dev/null || echo unknown)"
    if [[ -z $corpus ]]; then
      printf 'The voices are synthetic: the numbers compare methods, and say nothing about real speech.\n'
    fi; } > "$out"
}
