#!/usr/bin/env bash
# LibriSpeech with a pre-trained speech encoder and a large language model (arXiv 2406.17272).
#
#   ./run_llm.sh --mini true                         minutes on a laptop: small parts are trained first
#   ./run_llm.sh --corpus <corpus> --noise <musan> --rooms <RIRS_NOISES> --ngpu 8
set -euo pipefail
cd "$(dirname "$0")"
root=../..
recipe=librispeech

corpus=downloads/LibriSpeech              # folder with train-clean-100/, dev-clean/, test-clean/ ...
noise=                                    # folder of MUSAN, or of data directories train and eval; default: synthesised noises
rooms=                                    # folder of RIRS_NOISES: 30 % of the training utterances get the reverberation of a room
noise_levels=                             # SNRs in dB, as in "20 10 0": adds test_noisy, the first test set with noise_eval at each SNR
train_set=train                           # training set, as for run.sh
valid_set=dev                             # validation set
test_sets="test_clean test_other"         # sets to decode and score

llm=                                      # hub name or folder of the language model, with its tokenizer; default: those of the config
unit=hf                                   # unit of the vocabulary: that of the language model
tokenizer=lmsys/vicuna-7b-v1.5            # hub name or folder of the language model, for unit hf
text_case=lower                           # case of the training text: keep or lower
vocab_size=0                              # not used: the vocabulary is that of the language model
metric=wer                                # error rate: wer or cer
normalize=en                              # text normaliser before scoring: none, en, zh, whisper ...
group_by=none                             # utterance label to break the score down by

train_config=conf/speech_llm/train_speech_llm.yaml   # training config
decode_config=conf/speech_llm/decode_llm.yaml        # decoding config

# settings of --mini true
mini_train_config=conf/speech_llm/train_speech_llm_mini.yaml
mini_decode_config=conf/speech_llm/decode_llm_mini.yaml
mini_unit=hf
mini_vocab_size=0
mini_pieces=500                           # word pieces of the small language model

settings() {
  locate noise; locate rooms; locate llm
  if [[ -n $llm ]]; then
    [[ $mini == false ]] || usage_error "--llm needs a corpus: the miniature trains its own language model"
    tokenizer=$llm train_args="model.llm.weights=$llm model.llm.shape=null${train_args:+ $train_args}"
  fi
  prepare_args=(--train-set "$train_set")
  more="noise_eval${noise_levels:+ test_noisy}"     # decoded together with the test sets; their insertions are counted
  extra_sets="${extra_sets:-noise_train${rooms:+ room_train}} $more"
  if [[ -n $rooms ]]; then train_args="'data.augment.room={set: room_train}'${train_args:+ $train_args}"; fi
  asked=$train_args                       # overrides of the training config on the command line
}

stage_download() {
  if [[ $mini == true ]]; then default_download; else run bash local/download_data.sh "$corpus" "$train_set"; fi
}

stage_data() {
  run python local/prepare_noise.py --out "$data" ${noise:+--corpus "$noise"} ${rooms:+--rooms "$rooms"}
  local all=$extra_sets
  extra_sets=${extra_sets% test_noisy} default_data
  extra_sets=$all
  if [[ -n $noise_levels ]]; then
    # shellcheck disable=SC2086    # levels are words
    run python local/noisy_set.py --data "$data/${test_sets%% *}" --noise "$data/noise_eval" --snr-db $noise_levels --out "$data/test_noisy"
  fi
}

stage_vocabulary() {
  if [[ $mini == true ]]; then
    take_parts
    train_language_model
  fi
  tool make_vocab --text "$data/$train_set/text" --unit hf --tokenizer "$tokenizer" --case "$text_case" --out "$vocab"
}

stage_train() {
  if [[ $mini == true ]]; then
    take_parts
    train_encoder
  fi
  default_train
}

stage_decode() {                          # also the noises: every word in their hypotheses is a hallucination
  test_sets="$test_sets $more" default_decode
}

stage_score() {
  default_score
  local split
  for split in $test_sets $more; do
    local by=none; if [[ $split == test_noisy ]]; then by=snr; fi
    tool insertions "$data/$split" "$exp/$decode_tag/$split" --normalize "$normalize" --group-by $by
  done
}

# The miniature trains its own language model and encoder once, and uses them like downloaded ones.
take_parts() {
  tokenizer=${exp%/*}/llm text_case=keep
  parts=${exp%/*}/llm_encoder
  train_args="model.llm.weights=$tokenizer model.encoder_weights=$parts/train/average-1.safetensors${asked:+ $asked}"
}

train_language_model() {
  tool make_vocab --text "$data/$train_set/text" --unit bpe --size "$mini_pieces" --out "$data/vocab_llm"
  launch train --config conf/speech_llm/train_llm_mini.yaml --train "$data/$train_set" --valid "$data/$valid_set" \
    --vocab "$data/vocab_llm" --exp "${exp%/*}/llm_train" ${own_config[@]+"${own_config[@]}"}
  tool export_llm "${exp%/*}/llm_train" --out "$tokenizer" ${own_model[@]+"${own_model[@]}"}
}

train_encoder() {          # on stored features; the speech LLM computes features in every epoch, because of its noise augmentation
  local config=conf/speech_llm/train_speech_llm_mini_encoder.yaml stored=${dump%/*}/llm_encoder
  train_config=$config train_args='' dump=$stored test_sets='' extra_sets='' default_features
  tool make_vocab --text "$data/$train_set/text" --unit char --out "$data/vocab_char"
  launch train --config $config --train "$stored/$train_set" --valid "$stored/$valid_set" --vocab "$data/vocab_char" --exp "$parts" \
    ${own_config[@]+"${own_config[@]}"}
  tool export_ctc_head "$parts" --out "$parts/ctc_head.safetensors" ${own_model[@]+"${own_model[@]}"}     # for decode_llm_draft_mini.yaml
}

# shellcheck source=utils/stages.sh
. $root/utils/stages.sh
