#!/usr/bin/env bash
# Are the modules, README.md and the notebooks what nbdev makes of the notebooks? Works in a copy and changes nothing here.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
unset IN_TEST  # nbdev_export does nothing where it is set
export PATH="$root/.venv/bin:$PATH"

mkdir "$copy/xraycap"
cp -R nbs tools "$copy"
cp settings.ini setup.py pyproject.toml _quarto.yml "$copy"
cp xraycap/__init__.py "$copy/xraycap"
(cd "$copy" && nbdev_clean && nbdev_export)
tools/readme.sh "$copy"

failed=0
same() {  # WHAT REMEDY: is WHAT here what was made in the copy?
    diff -r -q -x __pycache__ -x assets -x .ipynb_checkpoints -x .last_checked "$1" "$copy/$1" && return
    echo "$1 is not what the notebooks make of it: $2, then look at git diff." >&2
    failed=1
}
same nbs "clean them with 'make export'"
same xraycap "change the notebooks, not the modules, and run 'make export'"
same README.md "change nbs/index.ipynb and run 'make export'"
[ ! -d index_files ] && [ ! -d "$copy/index_files" ] || same index_files "run 'make export'"
exit $failed
