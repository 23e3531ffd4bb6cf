#!/usr/bin/env bash
# LibriSpeech: 960 hours of English read speech, https://www.openslr.org/12
#
#   ./run.sh --mini true                             minutes on a laptop, with synthesised speech
#   ./run.sh --corpus <corpus> --ngpu 8             Conformer baseline, every stage
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=librispeech

corpus=downloads/LibriSpeech              # folder with train-clean-100/, dev-clean/, test-clean/ ...
train_set=train                           # training set: train (960 h), train_460, train_100, train_10h, train_1h, train_10min
valid_set=dev                             # validation set
test_sets="test_clean test_other"         # sets to decode and score

unit=bpe                                  # unit of the vocabulary: char or bpe
vocab_size=5000                           # size of the vocabulary; 0: every character of the training text
metric=wer                                # error rate: wer or cer
normalize=en                              # text normaliser before scoring: none, en, zh, whisper ...
group_by=none                             # utterance label to break the score down by

train_config=conf/train_conformer.yaml    # training config
decode_config=conf/decode_joint.yaml      # decoding config

# settings of --mini true
mini_train_config=conf/train_mini.yaml
mini_decode_config=conf/decode_mini.yaml
mini_unit=char
mini_vocab_size=0

settings() { prepare_args=(--train-set "$train_set"); }
stage_download() {                        # only the missing parts of the training set; the folder may exist
  if [[ $mini == true ]]; then default_download; else run bash local/download_data.sh "$corpus" "$train_set"; fi
}

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
