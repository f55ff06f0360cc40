# shellcheck shell=bash
# Sourced by the scripts beside it: where the repository is, and a failure that says which step it was.
set -euo pipefail
export LC_ALL=C.UTF-8
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
current_step="starting"
step() {
  current_step="$*"
  printf '== %s\n' "$*"
}
stop() {  # one clear sentence, and the end
  trap - ERR
  printf '%s: stopped: %s\n' "${0##*/}" "$*" >&2
  exit 1
}
trap 'stop "\"$current_step\" failed; its output is above"' ERR
jobs_that_fit() {  # as many compilers as there are cores, and 3 GB of memory for each
  local cores memory_mb fit
  cores=$(nproc)
  memory_mb=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
  fit=$((memory_mb / 3000))
  if ((fit < 1)); then fit=1; fi
  if ((fit < cores)); then echo "$fit"; else echo "$cores"; fi
}
