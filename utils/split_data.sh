#!/usr/bin/env bash
# utils/split_data.sh [--per-utt|--per-reco] <source> <number>: <source>/split<number>/1, 2 ...
# shellcheck source=utils/path.sh
. "$(dirname "$0")/path.sh" || exit 1
exec python -m asrtool.bin.data split "$@"
