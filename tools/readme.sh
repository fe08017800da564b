#!/usr/bin/env bash
# tools/readme.sh FOLDER: nbdev writes README.md and index_files/ of nbs/index.ipynb into FOLDER.
# It runs in a copy that holds only that notebook, since nbdev would otherwise process all of them first.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dest=$(cd "$1" && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/nbs"
cp "$root"/{settings.ini,_quarto.yml} "$copy"
cp "$root"/nbs/index.ipynb "$copy/nbs"
cp "$root"/_quarto.yml "$copy/nbs"
cd "$copy"
PATH="$root/tools:$root/.venv/bin:$PATH" nbdev_readme
rm -rf "$dest/index_files"
cp -R README.md $(ls -d index_files 2>/dev/null || true) "$dest"
