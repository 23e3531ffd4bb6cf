#!/usr/bin/env bash
# What does streaming cost, compared with offline recognition? Operations, time and memory at full size, with random weights.
#
#   studies/overhead.sh                                   minutes on one core
#   studies/overhead.sh --seconds 4 --config conf/qifusion/train_qifusion_mini.yaml
set -euo pipefail
cd "$(dirname "$0")"
seconds=30                               # seconds of input (noise)
config=conf/qifusion/train_qifusion.yaml # training config of the model
option_files=("$PWD/${0##*/}")
# shellcheck source=utils/parse_options.sh
. ../../../utils/parse_options.sh
cd ..
# shellcheck source=utils/path.sh
. ../../utils/path.sh
OMP_NUM_THREADS=1 python studies/overhead.py --seconds "$seconds" --config "$config"
