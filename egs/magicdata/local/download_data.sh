#!/usr/bin/env bash
# local/download_data.sh <folder> [ramc|read]: MagicData-RAMC (https://www.openslr.org/123, 16 GB, CC BY-NC-ND 4.0) or MagicData read speech
# (https://www.openslr.org/68, 55 GB, the same licence) as <folder>; not for commercial use. Existing files are kept, an interrupted
# download is resumed. No checksums are published: the size of the archive or the number of files is checked. OPENSLR=<address> selects a
# mirror.
set -euo pipefail
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/path.sh"

folder=${1:?usage: local/download_data.sh <folder> [ramc|read]}
from=${OPENSLR:-https://www.openslr.org/resources}

case ${2:-ramc} in
  ramc)
    python -m asrtool.bin.download "$from/123/MagicData-RAMC.tar.gz" --bytes 15470673657 \
      --into "$folder" --expect 'WAV/*.wav' 351
    ;;
  read)
    for part in dev test train; do
      python -m asrtool.bin.download "$from/68/${part}_set.tar.gz" --into "$folder/$part" --expect TRANS.txt 1
    done
    ;;
  *)
    echo "$0: '$2' is neither ramc nor read" >&2
    exit 2
    ;;
esac
