#!/usr/bin/env bash
# LibriSpeech: 960 hours of English read speech, https://www.openslr.org/12
#
#   ./run.sh --mini true                             minutes on a laptop, with synthesised speech
#   ./run.sh --corpus <corpus> --ngpu 8             Conformer baseline, every stage
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=librispeech

corpus=downloads/LibriSpeech              # folder that holds train-clean-100/, dev-clean/, test-clean/ ...
train_parts="train-clean-100 train-clean-360 train-other-500"    # parts of the corpus to train on
train_set=train
valid_set=dev
test_sets="test_clean test_other"         # sets to decode and score

unit=bpe                                  # what the model writes: char or bpe
vocab_size=5000                           # units of the vocabulary; 0 for every character of the training text
metric=wer                                # error rate: wer or cer
normalize=en                              # text normaliser before scoring: none, en or zh
group_by=none                             # label of utterances to break the score down by

train_config=conf/train_conformer.yaml    # training config
decode_config=conf/decode_joint.yaml      # decoding config

# the same with --mini true
mini_train_config=conf/train_mini.yaml
mini_decode_config=conf/decode_mini.yaml
mini_unit=char
mini_vocab_size=0

stage_download() {                        # every part that is missing, even where the folder is there
  if [[ $mini == true ]]; then
    default_download
  else
    # shellcheck disable=SC2086    # parts are words
    run bash local/download_data.sh "$corpus" $train_parts dev-clean dev-other test-clean test-other
  fi
}
stage_data() { prepare_args=(--train-parts "$train_parts"); default_data; }

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
