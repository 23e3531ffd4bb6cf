#!/usr/bin/env bash
# utils/validate_data_dir.sh [options] <data directory>: lists every problem of a Kaldi data directory; 1 if there is one.
# shellcheck source=utils/path.sh
. "$(dirname "$0")/path.sh" || exit 1
exec python -m asrtool.bin.check_data "$@"
