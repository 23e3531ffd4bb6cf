#!/usr/bin/env bash
# Score hypotheses against references:
#
#   utils/score.sh [--metric wer|cer|mer] [--normalize none|en|zh|zh-...|whisper|whisper-basic] [--group-by <label>] [--missing error|deletions]
#                  [--alignment levenshtein|sclite] [--out <folder>] <ref> <hyp>
#
# <ref> and <hyp>: a Kaldi text file, a folder that holds one, a .trn file, or hyps.jsonl. Of a data directory, utt2spk gives the
# speaker table and utt2<label> the groups. Writes result.txt and score.json beside the hypotheses; see docs/scoring.md.
set -euo pipefail

# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/path.sh"
exec python -m asrtool.bin.score "$@"
