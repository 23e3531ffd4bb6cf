#!/usr/bin/env bash
# tools/download_noise.sh <folder> [musan|rirs_noises ...]: noises (https://www.openslr.org/17, 11 GB) as <folder>/musan, rooms and noises
# (https://www.openslr.org/28, 1.3 GB, Apache License 2.0) as <folder>/RIRS_NOISES; default: both. Existing files are kept, an interrupted
# download is resumed. egs/librispeech/local/prepare_noise.py makes data directories from them. OPENSLR=<address> selects a mirror.
set -euo pipefail
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../utils/path.sh"

folder=${1:?usage: tools/download_noise.sh <folder> [musan|rirs_noises ...]}; shift
from=${OPENSLR:-https://www.openslr.org/resources}

# sizes as reported by the server, MD5 as published on openslr.org
if (( $# == 0 )); then set -- musan rirs_noises; fi
for name in "$@"; do
  case $name in
    musan) file=17/musan.tar.gz into=musan bytes=11086114085 md5=0c472d4fc0c5141eca47ad1ffeb2a7df ;;
    rirs_noises) file=28/rirs_noises.zip into=RIRS_NOISES bytes=1311166223 md5=e6f48e257286e05de56413b4779d8ffb ;;
    *) echo "$0: '$name' is neither musan nor rirs_noises" >&2; exit 2 ;;
  esac
  python -m asrtool.bin.download "$from/$file" --bytes $bytes --md5 $md5 --into "$folder/$into"
done
