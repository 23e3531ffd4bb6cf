# Shared by the studies: options, and training, decoding and tables over seeds. A study sources it from its own folder.
# Finished parts are skipped, so a study that was stopped resumes.
# shellcheck shell=bash disable=SC2034    # option_files is read by parse_options.sh
size=study              # size of the miniature
corpus=                 # LibriSpeech itself instead of the miniature
train_set=train_100     # with --corpus: train, train_100, train_10h, train_1h or train_10min
ngpu=1                  # GPUs
train_config=           # config with attention: {type: echo}, which the systems vary; default: a Conformer, with --corpus data2vec
attention=model.encoder.attention       # key of the attention in that config
seeds="0 1 2"           # one training per seed
train_args=             # further overrides of every training, as in "trainer.epochs=4"
out=                    # file for the tables; default: exp/.../<study>.md

called_from=$OLDPWD
option_files=("$PWD/${0##*/}" "$PWD/common.sh")
# shellcheck source=utils/parse_options.sh
. ../../../utils/parse_options.sh
study=$(basename "$0" .sh)
for name in corpus train_config; do     # a path is relative to the user's folder, or to the recipe's
  if [[ -n ${!name} && ${!name} != /* && -e $called_from/${!name} ]]; then printf -v "$name" '%s' "$called_from/${!name}"; fi
done
cd ..
# shellcheck source=utils/path.sh
. ../../utils/path.sh

sets="dev test_clean test_other"
if [[ -n $corpus ]]; then
  variant=
  what="LibriSpeech, $train_set"
  base=(--corpus "$corpus" --train-set "$train_set" --unit char --vocab-size 0 --ngpu "$ngpu")
else
  variant=/mini; if [[ $size != default ]]; then variant=/mini_$size; fi
  what="Miniature $size. The voices are synthetic: the numbers compare methods, and say nothing about real speech"
  base=(--mini true --mini-size "$size" --ngpu "$ngpu")
fi
# The default of the miniature is a Conformer trained from scratch, so a baseline without echo can have as many parameters. The defaults of
# the corpus have the schedule of the training set.
from_scratch=false
if [[ -z $train_config && -z $corpus ]]; then
  from_scratch=true
  train_config=conf/echotune/train_echo_mini.yaml
elif [[ -z $train_config ]]; then
  case $train_set in
    train_10min) split=10m ;; train_1h) split=1h ;; train_10h) split=10h ;; train_100) split=100h ;; *) split=960h ;;
  esac
  train_config=conf/echotune/train_echotune_$split.yaml
fi
what+=", \`$train_config\`"
# systems without echo, or with a fixed gate, lack parameters that the groups of the config may name
echo_groups="'optim.groups={\"*.echo.*\": {required: false}, \"*.gate.*\": {required: false}}'"
exp=exp$variant
out=${out:-$exp/$study.md}

recipe() { ./run.sh "${base[@]}" --test-sets "$sets" "$@"; }

run_system() {          # <tag> <config> [changes]: stages 0 to 5, for every seed
  local seed
  for seed in $seeds; do
    recipe --tag "$1-s$seed" --train-config "$2" --decode-config conf/decode_greedy.yaml --decode-tag greedy \
      --train-args "seed=$seed ${*:3} $train_args"
  done
}

table() {               # <title> <options of table.py>: a table at the end of the study's file
  { printf '\n## %s\n\n' "$1"; python studies/table.py --exp "$exp" --seeds "$seeds" --sets "$sets" "${@:2}"; } | tee -a "$out"
}

begin() {               # <title>: a new file of tables
  mkdir -p "$(dirname "$out")"
  printf '# %s\n\n%s. Seeds %s, changes "%s", commit %s.\n' "$1" "$what" "$seeds" "$train_args" \
    "$(git rev-parse --short HEAD 2> /dev/null || echo unknown)" > "$out"
}
