# The recipe engine. A recipe sets its variables and then sources this file; "$@" is the recipe's.
#
# Stages: -1 download, 0 data, 1 features, 2 vocabulary, 3 train, 4 decode, 5 score. Each is a command (or one per set), which is printed
# when it starts. The commands check whether their results are up to date: if inputs and options are unchanged, they say so and return. A
# recipe replaces a stage by defining stage_<name> before it sources this file, and may call default_<name> inside. If it defines
# `settings`, that function is called as soon as the options are known.
# shellcheck shell=bash disable=SC2154    # recipe, root, corpus, train_set ... come from the recipe

stage=0                # first stage: -1 download, 0 data, 1 features, 2 vocabulary, 3 train, 4 decode, 5 score
stop_stage=5           # last stage
data_dirs=             # folder of existing Kaldi data directories <set>/{wav.scp,text,...}; stage 0 uses them instead of a corpus
nj=                    # CPU processes of stages 0 to 2; default: one per core
ngpu=                  # GPUs of stages 3 and 4; 0: the CPU; default: 1 if there is one, else 0
ranks=                 # CPU processes of stages 3 and 4 when ngpu is 0; default: one per core, at most 4
num_nodes=1            # machines of stages 3 and 4; each runs ngpu or ranks processes
master=                # <host>:<port> of the first of several machines; not needed with utils/slurm.sh
tag=                   # name of the experiment's folder; default: the name of the training config
train_args=            # changes to the training config, as in "optim.lr=1e-4 trainer.epochs=3"
tokenizer=             # hub name or folder of a language model, whose tokens are the vocabulary of --unit hf
text_case=lower        # case of the training text for --unit hf: keep or lower
init_from=             # folder of a trained model of any recipe, or hf:user/model: stage 3 starts from its weights
init_vocab=keep        # its vocabulary: keep, extend (by the characters that it lacks) or replace (by a new one)
tune=true              # false, with --init-from: skip stages 2 and 3; stage 4 decodes that model without training
lm_config=             # config of a language model that stage 3 trains first and stage 4 decodes with
lm=                    # ngram:<order>: an n-gram model that stage 2 estimates and stage 4 decodes with
lm_text=               # file with one sentence per line: added to the transcripts for lm_config, used instead of them for ngram
decode_tag=            # name of the decoding's folder; default: the name of the decoding config
decode_args=           # changes to the decoding config, as in "searcher.beam=20"
extra_sets=            # further data directories that a config names, such as "musan" in data.augment.noise.set
imports=               # your own modules that the training config names in import:, as in "my_package.my_encoder"
import_from=           # folder that contains them, if they are not installed
missing=error          # utterances without a hypothesis: error, or deletions to count all their words as deleted
mini=false             # use a synthesised miniature of the corpus and small configs
mini_size=default      # size of the miniature: tiny, small, default, study or hours of training speech
force=false            # start again if the experiment's folder contains a different training
dry_run=false          # print the commands without running them

# The user's folder; the recipe has changed to its own.
called_from=$OLDPWD
# shellcheck disable=SC2034    # read by parse_options.sh
option_files=("$PWD/${0##*/}" "$root/utils/stages.sh")
# shellcheck source=utils/parse_options.sh
. "$root/utils/parse_options.sh"

# -- settings --------------------------------------------------------------

is_given() { [[ $given == *" $1 "* ]]; }

check_number() {    # <option> <minimum>
  if [[ ! ${!1} =~ ^-?[0-9]+$ ]] || (( ${!1} < $2 )); then
    usage_error "option --${1//_/-} must be a whole number of at least $2, not '${!1}'"
  fi
}

locate() {          # <option>: its path is relative to the user's folder, or to the recipe's
  if is_given "$1" && [[ ${!1} != /* && $called_from != "$PWD" && -e $called_from/${!1} ]]; then
    printf -v "$1" '%s' "$called_from/${!1}"
  fi
}

take_mini() {       # small configs, unless the command line names others
  [[ -n ${mini_train_config:-} ]] || usage_error "$recipe has no miniature; give the corpus with --corpus <folder>"
  ! is_given corpus || usage_error "--corpus and --mini true cannot be combined: the miniature is itself a corpus"
  is_given train_config || train_config=$mini_train_config
  is_given decode_config || decode_config=$mini_decode_config
  is_given unit || unit=$mini_unit
  is_given vocab_size || vocab_size=$mini_vocab_size
  corpus=downloads/mini_$mini_size${mini_tag:-}
  variant+=/mini
  if [[ $mini_size != default ]]; then variant+=_$mini_size; fi
}

check_name() {      # <what> <name>: the name must be valid for a folder
  case $2 in
    "" | .* | -* | */* | *[[:space:]]*) usage_error "$1 '$2' is not a valid folder name: expected letters, digits, _, - and full stops" ;;
  esac
}

for name in corpus data_dirs init_from tokenizer train_config decode_config lm_config lm_text import_from; do locate "$name"; done
# Subfolder of data, dump and exp for this kind of run.
variant=
if declare -F settings > /dev/null; then settings; fi
if [[ $mini == true ]]; then take_mini; fi
if [[ -n $data_dirs ]]; then
  ! is_given corpus || usage_error "--data-dirs and --corpus cannot be combined: data directories replace the corpus"
  [[ $mini == false ]] || usage_error "--data-dirs and --mini true cannot be combined: the miniature is itself a corpus"
fi

cores=$(env -u OMP_NUM_THREADS nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
nj=${nj:-$cores}
ranks=${ranks:-$(( cores < 4 ? cores : 4 ))}
if [[ -z $ngpu ]]; then ngpu=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true); ngpu=$(( ngpu > 0 )); fi
check_number stage -1; check_number stop_stage -1; check_number nj 1; check_number ngpu 0; check_number ranks 1; check_number num_nodes 1
if (( stop_stage > 5 )); then stop_stage=5; fi
(( stage <= stop_stage )) || usage_error "nothing to run from --stage $stage to --stop-stage $stop_stage; stages are -1 to 5"

if (( num_nodes > 1 )) && [[ -z ${SLURM_JOB_NODELIST:-} ]]; then      # without Slurm: the user starts the same command on each machine
  [[ $master == *:* ]] || usage_error "--num-nodes $num_nodes needs --master <host>:<port> of the first machine, or utils/slurm.sh"
  (( stage >= 3 && stop_stage <= 4 )) || usage_error "several machines share stages 3 and 4 only: give --stage 3 --stop-stage 4"
fi

if [[ $tune == false ]]; then
  [[ -n $init_from ]] || usage_error "--tune false needs --init-from <folder>: the model to decode"
  [[ $init_vocab == keep ]] || usage_error "--tune false decodes the model as it is: leave --init-vocab out"
fi
[[ " keep extend replace " == *" $init_vocab "* ]] || usage_error "--init-vocab must be keep, extend or replace, not '$init_vocab'"
[[ $init_vocab == keep || -n $init_from ]] || usage_error "--init-vocab needs --init-from <folder>: the model whose vocabulary it is"
[[ $unit != hf || -n $tokenizer$init_from ]] || usage_error "--unit hf needs --tokenizer <hub name or folder>: the language model whose tokens are the vocabulary"
init_name=; vocab_from=text
if [[ -n $init_from ]]; then
  vocab_from=$init_vocab
  init_name=$(basename "$init_from")
  # a model on the hub is downloaded first, also in a dry run: later commands need the folder of its vocabulary
  if [[ $init_from == hf:* ]]; then
    init_name=$(basename "${init_from%%@*}")
    # shellcheck source=utils/path.sh
    init_from=$(. "$root/utils/path.sh"; python -m asrtool.bin.fetch "$init_from")
  fi
fi

data=data$variant
vocab=$data/vocab_$unit
if [[ $unit != hf ]] && (( vocab_size > 0 )); then vocab+=_$vocab_size; fi
if [[ $vocab_from == keep ]]; then vocab=$init_from/vocab; elif [[ $vocab_from == extend ]]; then vocab=$data/vocab_$init_name; fi
if [[ $tune == false ]]; then tag=${tag:-from_$init_name}; fi
tag=${tag:-$(basename "${train_config%.yaml}")}
exp=exp$variant/$tag
ngram=; ngram_options=()
if [[ -n $lm ]]; then
  [[ $lm =~ ^ngram:([1-9])$ ]] || usage_error "--lm must be ngram:<order> with an order from 1 to 9, not '$lm'; --lm-config trains a neural model"
  # texts that are scored in words have spaces, so the n-gram model is over words; otherwise it is over tokens
  lm_unit=token; if [[ $metric == wer ]]; then lm_unit=word; fi
  ngram=$data/lm_$(basename "$vocab")/${BASH_REMATCH[1]}gram_$lm_unit.arpa.gz
  ngram_options=(--ngram "$ngram" --ngram-unit "$lm_unit")
fi
decode_tag=${decode_tag:-$(basename "${decode_config%.yaml}")}
check_name --tag "$tag"; check_name --decode-tag "$decode_tag"
# shellcheck disable=SC2086    # sets are words
for name in $train_set $valid_set $test_sets $extra_sets; do check_name "the set" "$name"; done
lm_exp=exp$variant/$(basename "${lm_config%.yaml}")
# Options for commands that read a training config, and for those that read a trained model, which needs --import for each module.
own_config=(); if [[ -n $import_from ]]; then own_config=(--import-from "$import_from"); fi
own_model=(${own_config[@]+"${own_config[@]}"})
for name in $imports; do own_model+=(--import "$name"); done

# An option of the training config, for the weights of another model.
vocab_set=(); if [[ $init_vocab != keep ]]; then vocab_set=(--set "init.vocab=$init_vocab"); fi

# -- running ---------------------------------------------------------------

log() { echo "$([[ $dry_run == false ]] || echo '# ')$(date '+%F %T') [$recipe] $*"; }

show() {            # a command as it can be pasted into a terminal
  local line
  printf -v line ' %q' "$@"
  if [[ $dry_run == true ]]; then echo "${line# }"; else echo "+$line" >&2; fi
}

# Each command runs in its own process group. A signal to this shell is passed to the whole group, so the ranks of torchrun and the workers
# of stages end with the recipe. A second signal kills the group. If this shell is killed itself, its commands end because they follow the
# process ASRTOOL_PARENT.
child=
run() {
  show "$@"
  if [[ $dry_run == true ]]; then return; fi
  set -m; ASRTOOL_PARENT=$$ "$@" < /dev/null & child=$!; set +m
  local status=0
  wait "$child" 2> /dev/null || status=$?      # without bash's own message "Killed"
  child=
  return $status
}

stop() {            # <signal> <exit status>
  trap 'kill -KILL -- "-$child" 2> /dev/null || true' INT TERM HUP USR1
  if [[ -n $child ]]; then
    kill -s "$1" -- "-$child" 2> /dev/null || true
    wait "$child" || true
    kill -KILL -- "-$child" 2> /dev/null || true     # processes of the group that ignored the signal
  fi
  exit "$2"
}
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
trap 'stop HUP 129' HUP
trap 'stop USR1 138' USR1      # Slurm's warning

running=
finish() {
  local status=$? outcome=failed
  if [[ $status == 0 || -z $running ]]; then return; fi
  if (( status == 130 || status == 143 || status == 129 || status == 138 )); then outcome=interrupted; fi
  if (( status == 137 )); then outcome="was killed, perhaps for lack of memory"; fi
  local advice="the same command continues from here"
  if [[ $outcome == failed ]]; then advice="after fixing the cause, $advice"; fi
  log "stage $running $outcome; $advice" >&2
}
trap finish EXIT

tool() { run python -m "asrtool.bin.$1" "${@:2}"; }

launch() {          # a command of stages 3 and 4: one process, one per GPU, or one per CPU rank, on one machine or several
  local processes=1
  if (( ngpu > 1 )); then processes=$ngpu; elif (( ngpu == 0 )); then processes=$ranks; fi
  if (( num_nodes > 1 )); then
    launch_on_nodes "$processes" -m "asrtool.bin.$1" "${@:2}"
  elif (( processes > 1 )); then
    tool torchrun --standalone --nproc-per-node "$processes" -m "asrtool.bin.$1" "${@:2}"
  else
    tool "$@"
  fi
}

launch_on_nodes() { # <processes per machine> ...: srun starts torchrun on each machine; without Slurm the user does
  local start=(python -m asrtool.bin.torchrun) address=$master id=$recipe/$tag
  if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
    address=${master:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$(( 20000 + SLURM_JOB_ID % 20000 ))}
    id=$SLURM_JOB_ID
    # ASRTOOL_PARENT is a process of this machine
    start=(env -u ASRTOOL_PARENT srun --nodes "$num_nodes" --ntasks "$num_nodes" --ntasks-per-node 1 --kill-on-bad-exit=1 "${start[@]}")
  fi
  run "${start[@]}" --nnodes "$num_nodes" --nproc-per-node "$1" --rdzv-backend c10d --rdzv-endpoint "$address" --rdzv-id "$id" "${@:2}"
}

find_test_sets() {  # the test sets that stage 0 listed for this corpus, unless the command line names others
  if ! is_given test_sets && [[ -f $data/test_sets ]]; then test_sets=$(< "$data/test_sets"); fi
}
# shellcheck disable=SC2086    # sets are words
splits() { printf '%s\n' $train_set $valid_set $test_sets $extra_sets | awk '!seen[$0]++'; }

need_corpus() {
  if [[ $dry_run == true ]]; then return; fi
  if [[ -n $data_dirs ]]; then
    if [[ -d $data_dirs ]]; then return; fi
    echo "$0: no folder with data directories at '$data_dirs' (looked in $called_from and $PWD)" >&2
    exit 1
  fi
  if [[ -d $corpus ]]; then return; fi
  local ways="give its folder with --corpus <folder>"
  if [[ -n ${ask_at:-} ]]; then ways+=", apply for it at $ask_at (--stage -1 explains how)"
  elif can_download; then ways+=", download it with --stage -1"; fi
  ways+=", use existing data directories with --data-dirs <folder>"
  if [[ -n ${mini_train_config:-} ]]; then ways+=", or try a synthesised corpus with --mini true"; fi
  echo "$0: no corpus at '$corpus' (looked in $PWD): $ways" >&2
  exit 1
}

# -- stages ----------------------------------------------------------------

can_download() { [[ -f local/download_data.sh ]] || declare -F stage_download > /dev/null; }

default_download() {
  if [[ $mini == true ]]; then
    log "nothing to download: stage 0 makes the miniature"
  elif [[ -n $data_dirs ]]; then
    log "nothing to download: stage 0 uses the data directories in $data_dirs"
  elif [[ -d $corpus ]]; then
    log "the corpus is in $corpus"
  elif [[ -f local/download_data.sh ]]; then
    run bash local/download_data.sh "$corpus"
  else
    need_corpus
  fi
}

default_data() {
  if [[ $mini == true ]]; then
    run python "$root/tools/make_mini_corpus.py" --layout "${mini_layout:-$recipe}" --out "$corpus" --size "$mini_size" --nj "$nj" \
      ${mini_args[@]+"${mini_args[@]}"}
  fi
  need_corpus
  if [[ -n $data_dirs ]]; then
    local tests=; if is_given test_sets; then tests=$test_sets; fi
    tool data import --train-set "$train_set" --valid-set "$valid_set" ${tests:+--test-sets "$tests"} \
      ${extra_sets:+--extra-sets "$extra_sets"} "$data_dirs" "$data"
  else
    run python local/prepare_data.py --corpus "$corpus" --out "$data" ${prepare_args[@]+"${prepare_args[@]}"}
  fi
  find_test_sets
  local split folders=()
  for split in $(splits); do folders+=("$data/$split"); done
  tool check_data "${folders[@]}"
}

default_features() {
  local split training
  for split in $(splits); do
    training=; if [[ $split == "$train_set" ]]; then training=true; fi
    tool extract_features --config "$train_config" ${train_args:+--set "$train_args"} --nj "$nj" \
      --data "$data/$split" --out "$dump/$split" ${training:+--training} ${own_config[@]+"${own_config[@]}"}
  done
}

default_vocabulary() {
  if [[ $vocab_from == keep ]]; then log "using the vocabulary of $init_from"; return; fi
  local kind=(--unit "$unit" --size "$vocab_size")
  if [[ $unit == hf ]]; then kind=(--unit hf --tokenizer "$tokenizer" --case "$text_case"); fi
  if [[ $vocab_from == extend ]]; then kind=(--extend "$init_from/vocab"); fi
  tool make_vocab --text "$data/$train_set/text" "${kind[@]}" --out "$vocab"
}

make_ngram() {      # from --lm-text, or from the transcripts
  local from=(--transcripts "$data/$train_set/text")
  if [[ -n $lm_text ]]; then from=(--text "$lm_text"); fi
  tool ngram "${from[@]}" --order "${lm#ngram:}" --unit "$lm_unit" --vocab "$vocab" --discount-fallback 0.5 1 1.5 --out "$ngram"
}

default_train() {
  if [[ $tune == false ]]; then log "nothing to train: stage 4 decodes $init_from"; return; fi
  local restart=; if [[ $force == true ]]; then restart=true; fi
  if [[ -n $lm_config ]]; then
    launch train --config "$lm_config" --train "$data/$train_set" --valid "$data/$valid_set" --vocab "$vocab" \
      --exp "$lm_exp" ${lm_text:+--text "$lm_text"} ${restart:+--force true} ${own_config[@]+"${own_config[@]}"}
  fi
  launch train --config "$train_config" --train "$dump/$train_set" --valid "$dump/$valid_set" --vocab "$vocab" \
    --exp "$exp" ${init_from:+--init "$init_from"} ${vocab_set[@]+"${vocab_set[@]}"} ${train_args:+--set "$train_args"} ${restart:+--force true} \
    ${own_config[@]+"${own_config[@]}"}
}

default_decode() {
  local split model=$exp
  if [[ $tune == false ]]; then model=$init_from; fi
  for split in $test_sets; do
    launch decode --exp "$model" --config "$decode_config" ${decode_args:+--set "$decode_args"} ${lm_config:+--lm "$lm_exp"} \
      ${ngram_options[@]+"${ngram_options[@]}"} \
      --data "$dump/$split" --out "$exp/$decode_tag/$split" ${own_model[@]+"${own_model[@]}"}
  done
}

default_score() {
  local split
  for split in $test_sets; do
    run "$root/utils/score.sh" --metric "$metric" --normalize "$normalize" --group-by "$group_by" --missing "$missing" \
      "$data/$split" "$exp/$decode_tag/$split"
  done
  tool results "${exp%/*}" --out "${exp%/*}/RESULTS.md"
}

show_results() {    # the table at the end, from each test set's score.json
  # shellcheck disable=SC2086    # sets are words
  python - "$metric" "$exp/$decode_tag" $test_sets << 'END'
import json, sys
from pathlib import Path

metric, folder, *sets = sys.argv[1:]
width = max(map(len, sets))
tokens = {"wer": "words", "cer": "characters"}.get(metric, "tokens")
print(f"\n  {'set':{width}}  {metric.upper() + ' %':>7}  {tokens:>10}  {'sub':>6}  {'del':>6}  {'ins':>6}   details")
for name in sets:
    total = json.loads((Path(folder) / name / "score.json").read_text())["total"]
    counts = "".join(f"  {total[key]:6}" for key in ("substitutions", "deletions", "insertions"))
    print(f"  {name:{width}}  {100 * total['rate']:7.2f}  {total['reference']:10}{counts}   {folder}/{name}/result.txt")
END
  echo
  echo "The results are in $PWD: $exp contains the model, its log and its configuration."
  if [[ $mini == true ]]; then
    echo "This model knows only synthetic voices. What to try next:"
    echo "  less $exp/$decode_tag/${test_sets%% *}/result.txt      which words it confuses (in $PWD)"
    echo "  $0 --mini true --tag longer --train-args 'trainer.epochs=20'      another training, next to this one"
    echo "  $0 --corpus <folder>                                              the real corpus"
  fi
}

# -- the recipe ------------------------------------------------------------

if [[ $stage == 0 && $mini == false ]]; then need_corpus; fi      # before the import of torch, which takes seconds
# shellcheck source=utils/path.sh
. "$root/utils/path.sh"
if [[ $dry_run == true ]]; then show cd "$PWD"; show . "$root/utils/path.sh"; fi
if (( ngpu == 0 )); then export CUDA_VISIBLE_DEVICES=; fi
if [[ $dry_run == true && $ngpu == 0 ]]; then show export CUDA_VISIBLE_DEVICES=; fi

dump=dump$variant
if (( (stage <= 1 && stop_stage >= 1) || (stage <= 4 && stop_stage >= 3) )); then     # each type of features has its own folder
  dump+=/$(python -m asrtool.bin.check_config --train-config "$train_config" ${train_args:+--train-args "$train_args"} \
    --decode-config "$decode_config" ${decode_args:+--decode-args "$decode_args"} ${ngram_options[@]+"${ngram_options[@]}"} \
    --sets "$(splits | tr '\n' ' ')" --dump "$dump" ${own_config[@]+"${own_config[@]}"})
fi
find_test_sets

names=(download data features vocabulary train decode score)
for (( i = stage; i <= stop_stage; i++ )); do
  name=${names[i + 1]}
  running="$i ($name)"
  log "stage $i: $name"
  if declare -F "stage_$name" > /dev/null; then "stage_$name"; else "default_$name"; fi
  if [[ $name == vocabulary && -n $lm ]]; then make_ngram; fi
done
if [[ $stop_stage == 5 && $dry_run == false ]]; then show_results; fi
