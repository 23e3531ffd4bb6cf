#!/usr/bin/env bash
# local/download_data.sh <folder>: prints how to apply for KeSpeech, whose licence must be accepted, and what <folder> must contain.
set -euo pipefail

folder=${1:?usage: local/download_data.sh <folder>}
cat >&2 << END
KeSpeech is free for research, but has to be applied for: read the licence at https://github.com/KeSpeech/KeSpeech, apply
there with the address of your institute, and unpack the archives that you receive:

  $folder/Audio/<speaker>/{phase1,phase2}/<utterance>.wav
  $folder/Metadata/{phase1.utt2style,phase2.utt2env,spk2gender,spk2age,spk2city}
  $folder/Tasks/ASR/{train_phase1,train_phase2,dev_phase1,dev_phase2,test}/{wav.scp,text,utt2spk,utt2subdialect}

Then run ./run.sh --corpus $folder. Without the corpus, run ./run.sh --mini true.
END
exit 1
