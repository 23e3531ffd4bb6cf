#!/usr/bin/env bash
# utils/copy_data_dir.sh [--utt-prefix <text>] [--utt-suffix <text>] [--spk-prefix <text>] [--spk-suffix <text>] <source> <target>
# shellcheck source=utils/path.sh
. "$(dirname "$0")/path.sh" || exit 1
exec python -m asrtool.bin.data copy "$@"
