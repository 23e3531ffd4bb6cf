#!/usr/bin/env bash
# Scores hypotheses:
#
#   utils/score.sh [--metric wer|cer|mer] [--normalize none|en|zh|zh-...|whisper|whisper-basic] [--group-by <label>]
#                  [--missing error|deletions] [--alignment levenshtein|sclite] [--out <folder>] <ref> <hyp>
#
# <ref> and <hyp>: a Kaldi text file, a .trn file, a .jsonl file, or a folder with text or hyps.jsonl. If <ref> is a data directory, its
# utt2spk gives the speakers and utt2<label> the groups. Writes result.txt and score.json next to the hypotheses; see docs/scoring.md.
set -euo pipefail

# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/path.sh"
exec python -m asrtool.bin.score "$@"
