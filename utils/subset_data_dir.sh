#!/usr/bin/env bash
# utils/subset_data_dir.sh [--first|--last|--shortest|--per-spk|--speakers] <source> <number> <target>, or
# --utt-list <file> or --spk-list <file> and <source> <target>
# shellcheck source=utils/path.sh
. "$(dirname "$0")/path.sh" || exit 1
exec python -m asrtool.bin.data subset "$@"
