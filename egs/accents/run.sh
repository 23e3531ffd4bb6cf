#!/usr/bin/env bash
# English with real accents: LibriSpeech, speechocean762 (native speakers of Mandarin) and Common Voice (declared accents).
#
#   ./run.sh --corpus <corpora>                      Conformer baseline on the listed hours, every stage
#   ./run.sh --corpus <corpora> --train-config conf/qifusion/train_qifusion.yaml --decode-config conf/decode_rescoring.yaml
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=accents

corpus=downloads/accents                      # folder with LibriSpeech/, speechocean762/ and cv_corpus_v1/ or cv-corpus-<release>/
parts="librispeech speechocean762 commonvoice"      # corpora to use
train_set=train                               # training set, from all corpora
valid_set=dev                                 # validation set, from all corpora
test_sets="test_librispeech test_librispeech_other test_speechocean762 test_commonvoice"      # sets to decode and score, one corpus each

unit=char                                     # unit of the vocabulary: char or bpe
vocab_size=0                                  # size of the vocabulary; 0: every character of the training text
metric=wer                                    # error rate: wer or cer
normalize=en                                  # text normaliser before scoring: none, en, zh, whisper ...
group_by=accent                               # utterance labels to break the score down by, in the sets that have them

train_config=conf/train_conformer.yaml        # training config
decode_config=conf/decode_greedy.yaml         # decoding config

settings() {
  prepare_args=(--parts "$parts")
  # a folder with the data directories of each corpus: stage 0 takes the sets of the lists from them
  if [[ -n $data_dirs && ! -e $data_dirs/$train_set/wav.scp ]] && compgen -G "$data_dirs/*/*/wav.scp" > /dev/null; then
    corpus=$data_dirs data_dirs=
  fi
}

has_label() {                                 # <set> <label>
  local folder=$data/$1
  [[ -e $folder/spk2$2 ]] || { [[ -e $folder/utt2$2 ]] && [[ $(wc -l < "$folder/utt2$2") == $(wc -l < "$folder/text") ]]; }
}

stage_score() {                               # only by the labels that all of a set has: LibriSpeech has no accents
  local asked=$group_by sets=$test_sets split label
  for split in $sets; do
    group_by=
    for label in ${asked//,/ }; do
      if [[ $dry_run == true ]] || has_label "$split" "$label"; then group_by+=${group_by:+,}$label; fi
    done
    group_by=${group_by:-none} test_sets=$split
    default_score
  done
  group_by=$asked test_sets=$sets
}

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
