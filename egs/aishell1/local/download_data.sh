#!/usr/bin/env bash
# local/download_data.sh <folder>: AISHELL-1 (https://www.openslr.org/33, Apache License 2.0) as <folder>, with resource_aishell next to it;
# 15.6 GB, 19 GB more while unpacking. Existing files are kept; archives of speakers among them are unpacked. An interrupted download is
# resumed. OPENSLR=<address> selects a mirror.
set -euo pipefail
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/path.sh"

folder=${1:?usage: local/download_data.sh <folder>}
if [[ -d $folder/data_aishell ]]; then folder=$folder/data_aishell; fi
from=${OPENSLR:-https://www.openslr.org/resources}/33

# sizes and MD5 as published on openslr.org
python -m asrtool.bin.download "$from/data_aishell.tgz" --bytes 15582913665 --md5 2f494334227864a8a8fec932999db9d8 \
  --into "$folder" --nested 'wav/*.tar.gz'
python -m asrtool.bin.download "$from/resource_aishell.tgz" --bytes 1246920 --md5 957d480a0fcac85fc18e550756f624e5 \
  --into "$(dirname "$folder")/resource_aishell"
