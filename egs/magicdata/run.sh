#!/usr/bin/env bash
# MagicData-RAMC: 180 hours of Mandarin dialogues, https://www.openslr.org/123; or MagicData: 755 hours of read speech
#
#   ./run.sh --mini true                             minutes on a laptop, with synthesised speech
#   ./run.sh --corpus <corpus> --ngpu 4             Conformer baseline, every stage
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=magicdata

kind=ramc                                 # corpus: ramc (dialogues) or read (read speech)
corpus=downloads/MagicData-RAMC           # folder with MDT2021S003/, or for read speech with train/, dev/ and test/
train_set=train                           # training set
valid_set=dev                             # validation set
test_sets="test"                          # sets to decode and score

unit=char                                 # unit of the vocabulary: char or bpe
vocab_size=0                              # size of the vocabulary; 0: every character of the training text
metric=cer                                # error rate: wer, cer or mer
normalize=zh-magicdata                    # text normaliser before scoring: none, en, zh, zh-magicdata ...
group_by=none                             # utterance label to break the score down by: region, accent, gender ...

train_config=conf/train_conformer.yaml    # training config
decode_config=conf/decode_joint.yaml      # decoding config

# settings of --mini true
mini_train_config=conf/train_mini.yaml
mini_decode_config=conf/decode_mini.yaml
mini_unit=char
mini_vocab_size=0

settings() {                              # read speech has its own corpus folder, data, dump and exp
  prepare_args=(--kind "$kind")
  if [[ $kind == read ]]; then variant=/read mini_layout=magicdata_read; is_given corpus || corpus=downloads/MAGICDATA; fi
}
stage_download() { if [[ $mini == true ]]; then default_download; else run bash local/download_data.sh "$corpus" "$kind"; fi; }

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
