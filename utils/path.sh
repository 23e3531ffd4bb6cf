# To be sourced: puts the project's environment (.venv, made by tools/setup.sh) first in PATH. Without it, the active environment must
# have torch. asrtool need not be installed. A recipe's local/path.sh is sourced last and can change everything.
# shellcheck shell=bash
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -x $project/.venv/bin/python ]]; then
  export PATH="$project/.venv/bin:$PATH"
fi
if locale -a 2> /dev/null | grep -qiE '^C\.utf-?8$'; then export LC_ALL=C.UTF-8; else export LC_ALL=C; fi
export PYTHONIOENCODING=UTF-8
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}      # stages use one process per core; more threads would compete for the cores

if [[ -f local/path.sh ]]; then
  # shellcheck source=/dev/null
  . local/path.sh
fi
if ! python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' 2> /dev/null; then
  echo "no Python with torch: run $project/tools/setup.sh, or activate an environment that has torch" >&2
  return 1
fi
