#!/usr/bin/env bash
# utils/fix_data_dir.sh [options] <data directory>: sorts its files, removes incomplete utterances, and prints which ones and why.
# shellcheck source=utils/path.sh
. "$(dirname "$0")/path.sh" || exit 1
exec python -m asrtool.bin.check_data --fix "$@"
