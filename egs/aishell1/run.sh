#!/usr/bin/env bash
# AISHELL-1: 178 hours of Mandarin read speech, https://www.openslr.org/33
#
#   ./run.sh --mini true                             minutes on a laptop, with synthesised speech
#   ./run.sh --corpus <corpus> --ngpu 4             Conformer baseline, every stage
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=aishell1

corpus=downloads/data_aishell             # folder with wav/ and transcript/
train_set=train                           # training set
valid_set=dev                             # validation set
test_sets="test"                          # sets to decode and score

unit=char                                 # unit of the vocabulary: char or bpe
vocab_size=0                              # size of the vocabulary; 0: every character of the training text
metric=cer                                # error rate: wer, cer or mer
normalize=zh                              # text normaliser before scoring: none, en, zh, zh-aishell2 ...
group_by=none                             # utterance label to break the score down by

train_config=conf/train_conformer.yaml    # training config
decode_config=conf/decode_joint.yaml      # decoding config

# settings of --mini true
mini_train_config=conf/train_mini.yaml
mini_decode_config=conf/decode_mini.yaml
mini_unit=char
mini_vocab_size=0

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
