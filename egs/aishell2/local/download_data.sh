#!/usr/bin/env bash
# local/download_data.sh <folder>: prints how to apply for AISHELL-2, which needs a signed licence, and what <folder> must contain.
set -euo pipefail

folder=${1:?usage: local/download_data.sh <folder>}
cat >&2 << END
AISHELL-2 is free for research, but has to be applied for: fill in the form at https://www.aishelltech.com/aishell_2 with
the address of your institute, and unpack the archives that you receive:

  $folder/iOS/data/{wav.scp,trans.txt,wav/<speaker>/<utterance>.wav}
  $(dirname "$folder")/AISHELL-DEV-TEST-SET/{iOS,Android,Mic}/{dev,test}/{wav.scp,trans.txt,wav/<speaker>/<utterance>.wav}

Then run ./run.sh --corpus $folder. Without the corpus, run ./run.sh --mini true.
END
exit 1
