#!/usr/bin/env bash
# local/download_data.sh <folder> [training set or part ...]: LibriSpeech (https://www.openslr.org/12, CC BY 4.0) into <folder>/<part>/. An
# existing part is kept, an interrupted download is resumed. A training set (train, train_460, ..., train_10min) stands for its parts and
# all held-out parts; default: train, 60 GB. OPENSLR=<address> selects a mirror, LIBRI_LIGHT=<address> one of Libri-Light's training sets.
set -euo pipefail
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/path.sh"

# SHA-256 as in torchaudio.datasets
declare -A sha256=(
  [train-clean-100]=d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2
  [train-clean-360]=146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf
  [train-other-500]=ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2
  [dev-clean]=76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3
  [dev-other]=12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365
  [test-clean]=39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23
  [test-other]=d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29
  [librispeech_finetuning]=5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af
)

folder=${1:?usage: local/download_data.sh <folder> [training set or part ...]}; shift
if [[ -d $folder/LibriSpeech ]]; then folder=$folder/LibriSpeech; fi
held_out=(dev-clean dev-other test-clean test-other)
parts=()
for name in "${@:-train}"; do
  case $name in
    train) parts+=("${held_out[@]}" train-clean-100 train-clean-360 train-other-500) ;;
    train_460) parts+=("${held_out[@]}" train-clean-100 train-clean-360) ;;
    train_100) parts+=("${held_out[@]}" train-clean-100) ;;
    train_10h | train_1h | train_10min) parts+=("${held_out[@]}" librispeech_finetuning) ;;
    *) parts+=("$name") ;;
  esac
done

for part in "${parts[@]}"; do
  if [[ -z ${sha256[$part]:-} ]]; then
    echo "$0: LibriSpeech has no part '$part'; its parts are: ${!sha256[*]}" >&2
    exit 2
  fi
done
for part in "${parts[@]}"; do
  if [[ $part == librispeech_finetuning ]]; then
    python -m asrtool.bin.download "${LIBRI_LIGHT:-https://dl.fbaipublicfiles.com/librilight/data}/$part.tgz" \
      --sha256 "${sha256[$part]}" --into "$folder/$part"
  else
    python -m asrtool.bin.download "${OPENSLR:-https://www.openslr.org/resources}/12/$part.tar.gz" \
      --sha256 "${sha256[$part]}" --into "$folder" --makes "$part"
  fi
done
