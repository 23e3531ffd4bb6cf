#!/usr/bin/env bash
# Makes the project's environment: .venv with torch, the versions of tools/constraints.txt and asrtool itself, then asks
# `asrtool doctor` whether it works. Where nothing changed since the last time, only the doctor runs.
set -euo pipefail
cd "$(dirname "$0")/.."

torch=auto             # which torch: auto, cpu, cuda, or keep the one of the Python that makes .venv
python=                # the Python that makes .venv; default: the first that fits of python3.11, 3.12, 3.13 and python3
if_needed=false        # say and do nothing where .venv is up to date, or where the active environment has asrtool installed

cpu_index=https://download.pytorch.org/whl/cpu

option_files=(tools/setup.sh)
# shellcheck source=utils/parse_options.sh
. utils/parse_options.sh
[[ " auto cpu cuda keep " == *" $torch "* ]] || usage_error "--torch is auto, cpu, cuda or keep, not '$torch'"

venv=.venv/bin/python
stamp=.venv/.asrtool-setup
say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }
quiet=(--disable-pip-version-check)
[[ -t 1 ]] || quiet+=(-qq)      # in a log: errors only
install() { "$venv" -m pip install "${quiet[@]}" "$@"; }

# -- is there anything to do? ----------------------------------------------

state() {              # what the environment is made from
  "$venv" - setup.py asrtool/versions.py tools/constraints.txt tools/setup.sh 2> /dev/null << 'END'
import hashlib, sys
made_from = hashlib.sha256(sys.version.encode())
for name in sys.argv[1:]:
    made_from.update(open(name, "rb").read())
print(made_from.hexdigest())
END
}

up_to_date() {
  local made_from='' made_for=''
  [[ -f $stamp ]] && read -r made_from made_for < "$stamp"
  [[ -n $made_from && $made_from == "$(state)" && ($torch == auto || $torch == "$made_for") ]]
}

active_has_asrtool() { python -P -c 'import importlib.metadata as m; m.version("asrtool"); m.version("torch")' 2> /dev/null; }

if [[ $if_needed == true ]]; then
  if up_to_date || { [[ ! -e .venv ]] && active_has_asrtool; }; then exit 0; fi
fi

# -- the environment -------------------------------------------------------

fits() {               # a supported version that can make environments
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null
}

has_torch() {          # <python> <auto | keep | cpu | cuda>: not too old, of that build
  "$1" - "$2" 2> /dev/null << 'END'
import runpy, sys
import torch
versions = runpy.run_path("asrtool/versions.py")
fits = versions["release"](torch.__version__) >= versions["OLDEST"]
build = "cuda" if torch.version.cuda else "cpu"
sys.exit(not (fits and sys.argv[1] in ("auto", "keep", build)))
END
}

version() {            # <TORCH | TORCHAUDIO>: what is installed
  "$venv" -c 'import runpy, sys; print(runpy.run_path("asrtool/versions.py")[sys.argv[1]])' "$1"
}

choose_python() {
  local candidate candidates="python3.11 python3.12 python3.13 python3 python"
  if [[ $torch == keep ]]; then candidates="python python3 $candidates"; fi
  for candidate in ${python:-$candidates}; do
    if fits "$candidate" && { [[ $torch != keep ]] || has_torch "$candidate" keep; }; then
      python=$(command -v "$candidate")
      return
    fi
  done
  if [[ $torch == keep ]]; then fail "--torch keep: found no torch to keep that is new enough (asrtool/versions.py)${python:+ in $python}"; fi
  fail "found no Python 3.11 to 3.13 with its venv module${python:+, not at $python}; install one (Debian: apt install" \
    "python3-venv) or name it by --python <path>"
}

make_environment() {
  if [[ -x $venv ]] && fits "$venv" && { "$venv" -m pip --version || "$venv" -m ensurepip; } &> /dev/null; then return; fi
  choose_python
  local options=()
  if [[ -e .venv ]]; then say ".venv is broken and made anew"; options+=(--clear); fi
  if [[ $torch == keep ]]; then options+=(--system-site-packages); fi
  say "making .venv with $("$python" --version) at $python"
  "$python" -m venv ${options[@]+"${options[@]}"} .venv
}

# -- torch -----------------------------------------------------------------

describe_torch() {
  "$venv" -W ignore -c 'import torch; cuda = torch.version.cuda; print(torch.__version__, f"(CUDA {cuda})" if cuda else "(CPU build)")'
}

offers_cpu_torch() {
  [[ $(uname -s) == Linux ]] || return 1         # elsewhere the default index has a CPU build
  local versions
  versions=$("$venv" -m pip index versions torch --index-url "$cpu_index" --timeout 5 --retries 0 2> /dev/null) || return 1
  [[ $versions == *"$torch_version"* ]]
}

install_cpu_torch() {
  offers_cpu_torch || { say "PyTorch's CPU index is out of reach or not needed here"; return 1; }
  say "installing torch $torch_version from PyTorch's CPU index"
  install --no-deps --index-url "$cpu_index" --timeout 15 --retries 0 "torch==$torch_version"
}

install_torch() {
  if has_torch "$venv" "$torch"; then say "torch stays as it is: $(describe_torch)"; return; fi
  [[ $torch != keep ]] || fail "--torch keep: .venv has no torch to keep that is new enough (asrtool/versions.py); remove .venv or leave --torch keep out"
  local wanted=$torch
  torch_version=$(version TORCH)
  if [[ $wanted == auto ]]; then
    if nvidia-smi -L &> /dev/null; then wanted=cuda; else wanted=cpu; fi
    say "$([[ $wanted == cuda ]] && echo an || echo no) NVIDIA GPU was found"
  fi
  "$venv" -m pip uninstall --quiet --yes torch torchaudio 2> /dev/null
  if [[ $wanted == cuda ]] || ! install_cpu_torch; then say "installing torch $torch_version from the default index"; fi
  install "torch==$torch_version"      # all of it, or what the build from the CPU index needs beside it
  say "took torch $(describe_torch)"
  [[ $torch != cuda ]] || has_torch "$venv" cuda || fail "--torch cuda: the default index has no CUDA build for this machine"
}

mend_torchaudio() {    # whose extension was compiled for another torch: `import torchaudio` fails with it, and works without
  local extension
  extension=$("$venv" -W ignore -c 'from asrtool import torchaudio_adapter as t; print(t.unloadable() or "")')
  if [[ $extension == "$PWD/.venv/"* ]]; then
    say "removing torchaudio's extension, which does not load beside this torch and which nothing here needs"
    rm "$extension"
  fi
}

# -- all of it -------------------------------------------------------------

if ! up_to_date; then
  trap 'say "stopped; the same command continues from here" >&2' ERR
  make_environment
  rm -f "$stamp"
  install_torch
  say "installing asrtool and the versions of tools/constraints.txt"
  install --no-deps "torchaudio==$(version TORCHAUDIO)"
  install --constraint tools/constraints.txt --editable ".[ssl,mini,plot,onnx,serve,whisper-normalizer,dev]"
  mend_torchaudio
  trap - ERR
  echo "$(state) $torch" > "$stamp"
else
  say "nothing changed since .venv was made"
fi
"$venv" -m asrtool doctor
