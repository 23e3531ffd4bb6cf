#!/usr/bin/env bash
# AISHELL-2: 1,000 hours of Mandarin read speech, tested over three channels, https://www.aishelltech.com/aishell_2
#
#   ./run.sh --mini true                             minutes on a laptop, with synthesised speech
#   ./run.sh --corpus <corpus> --ngpu 8             Conformer baseline, every stage
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=aishell2
ask_at=https://www.aishelltech.com/aishell_2

corpus=downloads/AISHELL-2                # folder with iOS/, and AISHELL-DEV-TEST-SET/ next to it
train_set=train                           # training set: train, or train_100 (100 hours)
valid_set=dev                             # validation set
test_sets="test_ios test_android test_mic"    # sets to decode and score

unit=char                                 # unit of the vocabulary: char or bpe
vocab_size=0                              # size of the vocabulary; 0: every character of the training text
metric=cer                                # error rate: wer, cer or mer
normalize=zh-aishell2                     # text normaliser before scoring: none, en, zh, zh-aishell2 ...
group_by=none                             # utterance label to break the score down by

train_config=conf/train_conformer.yaml    # training config
decode_config=conf/decode_joint.yaml      # decoding config

# settings of --mini true
mini_train_config=conf/train_mini.yaml
mini_decode_config=conf/decode_mini.yaml
mini_unit=char
mini_vocab_size=0

settings() { prepare_args=(--train-set "$train_set"); }

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
