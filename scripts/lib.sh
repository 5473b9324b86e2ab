# Functions and paths for the scripts in this directory, which source it.
# shellcheck shell=bash

# Everything that is kept between runs: build results, images, tools.
# shellcheck disable=SC2034  # Used by the scripts that read this.
VARVE_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/varve

# Directories that are not in every user's PATH: mkfs and the like, cargo where rustup put it, and
# tools that .ci/run installs.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$HOME/.cargo/bin:$VARVE_CACHE/tools/bin

say() { printf '%s\n' "$*"; }
heading() { printf '\n== %s\n' "$*"; }
die() {
  printf '%s\n' "$*" >&2
  exit 1
}

found() { command -v "$1" >/dev/null 2>&1; }

# need COMMAND...: stops unless all of them are found.
need() {
  local command missing=()
  for command in "$@"; do
    found "$command" || missing+=("$command")
  done
  [[ ${#missing[@]} == 0 ]] ||
    die "$(basename "$0"): not found: ${missing[*]}. 'scripts/install-packages demo' installs what is needed."
}

# logged FILE COMMAND...: runs it quietly; if it fails, shows the end of its output.
logged() {
  local log=$1
  shift
  if ! "$@" >>"$log" 2>&1 </dev/null; then
    printf '\nThe command failed: %s\nThe end of what it said:\n' "$*" >&2
    tail -n 30 "$log" >&2
    exit 1
  fi
}
