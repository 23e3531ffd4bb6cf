#!/usr/bin/env bash
# Makes the project's environment: .venv with torch, the packages of tools/constraints.txt and asrtool itself, then checks it with
# `asrtool doctor`. If nothing has changed since the last time, only the check runs.
set -euo pipefail
cd "$(dirname "$0")/.."

torch=auto             # build of torch: auto, cpu, cuda, or keep: use the torch of the Python that makes .venv
python=                # Python that makes .venv; default: the first suitable one of python3.11, 3.12, 3.13 and python3
extras=ssl,hub,mini,plot,onnx,serve,whisper-normalizer,dev      # extras of setup.py to install
if_needed=false        # do nothing if .venv is up to date, or if asrtool is installed in the active environment

cpu_index=https://download.pytorch.org/whl/cpu

option_files=(tools/setup.sh)
# shellcheck source=utils/parse_options.sh
. utils/parse_options.sh
[[ " auto cpu cuda keep " == *" $torch "* ]] || usage_error "--torch must be auto, cpu, cuda or keep, not '$torch'"

venv=.venv/bin/python
stamp=.venv/.asrtool-setup
say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }
quiet=(--disable-pip-version-check)
[[ -t 1 ]] || quiet+=(-qq)      # in a log: errors only
install() { "$venv" -m pip install "${quiet[@]}" "$@"; }

# -- is there anything to do? ----------------------------------------------

state() {              # a hash of everything that determines the environment
  "$venv" - "$extras" setup.py asrtool/versions.py tools/constraints.txt tools/setup.sh 2> /dev/null << 'END'
import hashlib, sys
digest = hashlib.sha256(f"{sys.version}{sys.argv[1]}".encode())
for name in sys.argv[2:]:
    digest.update(open(name, "rb").read())
print(digest.hexdigest())
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

fits() {               # <python>: whether it is a supported version that can make environments
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null
}

has_torch() {          # <python> <auto | keep | cpu | cuda>: whether its torch is new enough and has this build
  "$1" - "$2" 2> /dev/null << 'END'
import runpy, sys
import torch
versions = runpy.run_path("asrtool/versions.py")
fits = versions["release"](torch.__version__) >= versions["OLDEST"]
build = "cuda" if torch.version.cuda else "cpu"
sys.exit(not (fits and sys.argv[1] in ("auto", "keep", build)))
END
}

version() {            # <TORCH | TORCHAUDIO>: the version to install
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
  if [[ $torch == keep ]]; then fail "--torch keep: found no torch that is new enough (asrtool/versions.py)${python:+ in $python}"; fi
  fail "found no Python 3.11 to 3.13 with the venv module${python:+ at $python}; install one (Debian: apt install" \
    "python3-venv) or select it with --python <path>"
}

make_environment() {
  if [[ -x $venv ]] && fits "$venv" && { "$venv" -m pip --version || "$venv" -m ensurepip; } &> /dev/null; then return; fi
  choose_python
  local options=()
  if [[ -e .venv ]]; then say ".venv is broken; making it again"; options+=(--clear); fi
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
  offers_cpu_torch || { say "PyTorch's CPU index cannot be reached or is not needed here"; return 1; }
  say "installing torch $torch_version from PyTorch's CPU index"
  install --no-deps --index-url "$cpu_index" --timeout 15 --retries 0 "torch==$torch_version"
}

install_torch() {
  if has_torch "$venv" "$torch"; then say "keeping torch $(describe_torch)"; return; fi
  [[ $torch != keep ]] || fail "--torch keep: the torch of .venv is too old or missing (asrtool/versions.py); remove .venv or omit --torch"
  local wanted=$torch
  torch_version=$(version TORCH)
  if [[ $wanted == auto ]]; then
    if nvidia-smi -L &> /dev/null; then wanted=cuda; else wanted=cpu; fi
    say "found $([[ $wanted == cuda ]] && echo an || echo no) NVIDIA GPU"
  fi
  "$venv" -m pip uninstall --quiet --yes torch torchaudio 2> /dev/null
  if [[ $wanted == cuda ]] || ! install_cpu_torch; then say "installing torch $torch_version from the default index"; fi
  install "torch==$torch_version"      # torch, or only the dependencies of the build from the CPU index
  say "installed torch $(describe_torch)"
  [[ $torch != cuda ]] || has_torch "$venv" cuda || fail "--torch cuda: the default index has no CUDA build for this machine"
}

fix_torchaudio() {     # if its extension was compiled for another torch, `import torchaudio` works only without the extension
  local extension
  extension=$("$venv" -W ignore -c 'from asrtool import torchaudio_adapter as t; print(t.unloadable() or "")')
  if [[ $extension == "$PWD/.venv/"* ]]; then
    say "removing torchaudio's extension, which does not load with this torch and is not needed"
    rm "$extension"
  fi
}

# -- main ------------------------------------------------------------------

if ! up_to_date; then
  trap 'say "stopped; the same command continues from here" >&2' ERR
  make_environment
  rm -f "$stamp"
  install_torch
  say "installing asrtool and the versions of tools/constraints.txt"
  install --no-deps "torchaudio==$(version TORCHAUDIO)"
  install --constraint tools/constraints.txt --editable ".[$extras]"
  fix_torchaudio
  trap - ERR
  echo "$(state) $torch" > "$stamp"
else
  say "nothing has changed since .venv was made"
fi
"$venv" -m asrtool doctor
