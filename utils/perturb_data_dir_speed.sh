#!/usr/bin/env bash
# utils/perturb_data_dir_speed.sh <factor> <source> <target>: a copy at another speed, with a factor such as 0.9
# shellcheck source=utils/path.sh
. "$(dirname "$0")/path.sh" || exit 1
exec python -m asrtool.bin.data perturb-speed "$@"
