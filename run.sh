#!/usr/bin/env bash
# Trains and scores speech recognisers.
#
#   ./run.sh                       from nothing to a word error rate: set-up, then LibriSpeech's synthesised miniature
#   ./run.sh <recipe> [options]    a recipe; ./run.sh <recipe> --help lists its options
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=utils/nearest.sh
. "$here/utils/nearest.sh"

list_recipes() { for file in "$here"/egs/*/run.sh; do basename "$(dirname "$file")"; done; }

if [[ $# -eq 0 ]]; then
  "$here/tools/setup.sh" --if-needed true
  exec "$here/egs/librispeech/run.sh" --mini true
elif [[ $1 == -h || $1 == --help ]]; then
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
  printf '\nRecipes:\n'
  for recipe in $(list_recipes); do printf '  %-14s %s\n' "$recipe" "$(sed -n '2s/^# //p' "$here/egs/$recipe/run.sh")"; done
elif [[ $1 == -* ]]; then
  echo "$0: the recipe comes first, as in: ./run.sh librispeech $*" >&2
  exit 2
elif [[ ! -f $here/egs/$1/run.sh ]]; then
  # shellcheck disable=SC2046    # recipes are words
  near=$(nearest "$1" $(list_recipes))
  echo "$0: no recipe '$1'${near:+; did you mean $near?} (./run.sh --help lists them)" >&2
  exit 2
else
  exec "$here/egs/$1/run.sh" "${@:2}"
fi
