#!/usr/bin/env bash
# Chromium for the browser tests: the one that is installed, or Debian's where apt-get may install it.
# Ends well either way: without a browser those tests are skipped and say so.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tools/chromium.sh: no Chromium, and only root can install it with apt-get; the browser tests will be skipped." >&2
    exit 0
fi
log=$(mktemp)
if ! { timeout 120 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends chromium; } >"$log" 2>&1; then
    echo "tools/chromium.sh: apt-get could not install Chromium ($(tail -n 1 "$log")); the browser tests will be skipped." >&2
fi
rm -f "$log"
