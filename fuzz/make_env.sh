#!/usr/bin/env bash
# Make .fuzzenv: atheris in an environment of its own, which sees what .venv holds. The tests never need it.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .fuzzenv/bin/python ] || .venv/bin/python -m venv .fuzzenv
python=.fuzzenv/bin/python
"$python" -c 'import atheris' 2>/dev/null || "$python" -m pip install --quiet --disable-pip-version-check atheris==3.0.0
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
packages .venv/bin/python >"$(packages "$python")/venv.pth"
