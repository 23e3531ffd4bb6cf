#!/usr/bin/env bash
# tools/check_style.sh: ruff check and ruff format on Python files, shellcheck on shell scripts, and the tests of the repository's rules.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=utils/path.sh
. utils/path.sh
python -m ruff check --config tools/ruff.toml asrtool egs tests tools utils setup.py
python -m ruff format --check --quiet --config tools/ruff.toml asrtool egs tests tools utils setup.py
grep -rlE --exclude-dir={data,dump,exp,downloads,__pycache__} -e '^#!.*\bbash' -e '^# shellcheck shell=bash' .ci run.sh egs tests tools utils \
  | grep -v '\.py$' | xargs shellcheck -x -P SCRIPTDIR:.
python -m pytest -c tests/pytest.ini --rootdir . -q tests/test_repository.py tests/recipes/test_shell.py
