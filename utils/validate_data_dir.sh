#!/usr/bin/env bash
# utils/validate_data_dir.sh [options] <data directory>: lists all problems of a Kaldi data directory; exit status 1 if there are any.
# shellcheck source=utils/path.sh
. "$(dirname "$0")/path.sh" || exit 1
exec python -m asrtool.bin.check_data "$@"
