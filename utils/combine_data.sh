#!/usr/bin/env bash
# utils/combine_data.sh [--extra-files '<name> ...'] <target> <source> <source> ...
# shellcheck source=utils/path.sh
. "$(dirname "$0")/path.sh" || exit 1
exec python -m asrtool.bin.data combine "$@"
