#!/usr/bin/env bash
# Free Spoken Digit Dataset as connected digits: a small recipe on real speech, minutes on a laptop.
# https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0)
#
#   ./run.sh --stage -1                      download the corpus, then every stage
#   ./run.sh --corpus <folder>               the same with an existing copy
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=fsdd

corpus=downloads/free-spoken-digit-dataset    # folder with recordings/
train_set=train                               # training set
valid_set=dev                                 # validation set
test_sets="test test_speaker"                 # sets to decode and score; test_speaker: an unseen speaker

unit=bpe                                      # unit of the vocabulary: char or bpe
vocab_size=30                                 # size of the vocabulary; with 30, every digit is one unit
metric=wer                                    # error rate: wer or cer
normalize=en                                  # text normaliser before scoring: none, en, zh, whisper ...
group_by=none                                 # utterance label to break the score down by

train_config=conf/train_conformer.yaml        # training config
decode_config=conf/decode_greedy.yaml         # decoding config

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
