#!/usr/bin/env bash
# A check of training and search: trains on 50 utterances of real speech and recognises the same 50. The word error rate must be near 0.
#
#   tools/benchmarks/overfit.sh <corpus> [working folder]      <corpus>: LibriSpeech with at least a training, development and test part
set -euo pipefail
corpus=$(realpath "${1:?usage: tools/benchmarks/overfit.sh <corpus> [working folder]}")
work=${2:-$(mktemp -d)}
mkdir -p "$work"
work=$(realpath "$work")
cd "$(dirname "$0")/../../egs/librispeech"
# shellcheck source=utils/path.sh
. ../../utils/path.sh

python local/prepare_data.py --corpus "$corpus" --out "$work/all"
mkdir -p "$work/data/train"
for name in wav.scp text utt2spk utt2dur; do head -n 50 "$work/all/train/$name" > "$work/data/train/$name"; done
python -m asrtool.bin.check_data --fix "$work/data/train"
python -m asrtool.bin.extract_features --config conf/train_overfit.yaml --nj 2 --training --data "$work/data/train" --out "$work/dump/train"
python -m asrtool.bin.make_vocab --text "$work/data/train/text" --unit char --size 0 --out "$work/vocab"
start=$SECONDS
python -m asrtool.bin.torchrun --standalone --nproc-per-node 2 -m asrtool.bin.train --config conf/train_overfit.yaml \
  --train "$work/dump/train" --valid "$work/dump/train" --vocab "$work/vocab" --exp "$work/exp"
echo "trained in $((SECONDS - start)) s"
for search in greedy attention joint; do
  python -m asrtool.bin.decode --exp "$work/exp" --config "conf/decode_$search.yaml" --set average=1 --data "$work/dump/train" \
    --out "$work/exp/$search"
  ../../utils/score.sh --metric wer --normalize en "$work/data/train" "$work/exp/$search"
done
