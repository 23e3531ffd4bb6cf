#!/usr/bin/env bash
# local/download_data.sh <folder> [address of an archive]: the Free Spoken Digit Dataset (CC BY-SA 4.0), 3,000 recordings of 6 speakers,
# from its repository. No checksum of the archive is published; the commit is fixed and the recordings are counted.
set -euo pipefail
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/path.sh"

folder=${1:?usage: local/download_data.sh <folder> [address of an archive]}
commit=26eb9aaf76e81b692f806f9140c2d2777410d7a1
python -m asrtool.bin.download "${2:-https://github.com/Jakobovski/free-spoken-digit-dataset/archive/$commit.tar.gz}" \
  --into "$folder" --expect 'recordings/*.wav' 3000
