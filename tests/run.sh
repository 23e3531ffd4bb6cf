#!/usr/bin/env bash
# tests/run.sh [pytest options]: sets up if needed, then runs the tests in two processes. Others: tests/run.sh -m slow, tests/run.sh -m interop
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh --if-needed true
# shellcheck source=utils/path.sh
. utils/path.sh
export OMP_NUM_THREADS=1
exec python -m pytest -c tests/pytest.ini --rootdir . -n 2 --dist loadfile "$@"
