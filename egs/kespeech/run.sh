#!/usr/bin/env bash
# KeSpeech: 1,542 hours of Mandarin and eight of its subdialects, https://github.com/KeSpeech/KeSpeech
#
#   ./run.sh --mini true                             minutes on a laptop, with synthesised speech
#   ./run.sh --corpus <corpus> --ngpu 8             Conformer baseline, every stage
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=kespeech
ask_at=https://github.com/KeSpeech/KeSpeech

corpus=downloads/KeSpeech                 # folder with Audio/, Metadata/ and Tasks/
train_set=train                           # training set: train, train_phase1 or train_phase2
valid_set=dev                             # validation set
test_sets="test"                          # sets to decode and score

unit=char                                 # unit of the vocabulary: char or bpe
vocab_size=0                              # size of the vocabulary; 0: every character of the training text
metric=cer                                # error rate: wer, cer or mer
normalize=zh-kespeech                     # text normaliser before scoring: none, en, zh, zh-kespeech ...
group_by=subdialect                       # utterance label to break the score down by: subdialect, phase, style ...

train_config=conf/train_conformer.yaml    # training config
decode_config=conf/decode_joint.yaml      # decoding config

# settings of --mini true
mini_train_config=conf/train_mini.yaml
mini_decode_config=conf/decode_mini.yaml
mini_unit=char
mini_vocab_size=0

accents=9                                 # accents of the miniature, 1 to 20
skew=0                                    # imbalance of its training set: the share of the n-th accent is proportional to n^-skew

settings() {
  prepare_args=(--train-set "$train_set")
  if [[ "$accents $skew" != "9 0" ]]; then      # another miniature, in separate folders
    [[ $mini == true ]] || usage_error "--accents and --skew need --mini true: the accents of the corpus are fixed"
    mini_args=(--accents "$accents" --skew "$skew") mini_tag=_accents${accents}_skew$skew variant=/accents${accents}_skew$skew
  fi
}

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
