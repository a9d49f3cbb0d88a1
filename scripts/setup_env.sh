#!/usr/bin/env bash
# Makes .venv exactly as a lock file says: the CUDA set where nvidia-smi works, else the CPU set. Called by `make setup`.
#
# Reads:  PYTHON (default python3.11), LOAM_SET=cpu|cuda (instead of asking nvidia-smi; where a bundle was
#         installed, the set that it brought) or cuda-image (without what development needs), LOAM_MIN_FREE_GB,
#         pip's own PIP_FIND_LINKS, PIP_NO_INDEX, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_CERT, which uv does not
#         read by itself, and UV_TORCH_BACKEND=cpu, which takes torch's CPU build from PyTorch's own index.
# Quick when nothing changed: .venv/loam-setup holds the sha256 of what the environment was made from, and a change of
# pyproject.toml alone installs only Loam itself anew.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."  # the environment holds its path: the same one through a link

readonly venv=.venv
readonly stamp=$venv/loam-setup  # line 1: set, sha256 of the lock, folder; line 2: sha256 of pyproject.toml

say() { printf 'setup: %s\n' "$*" >&2; }

# Ends with the three parts of every error here: what was wanted, what was found, what to do.
fail() {
  printf 'setup: wanted %s\n       found  %s\n       do     %s\n' "$1" "$2" "$3" >&2
  exit 1
}

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

choose_set() {
  case "${LOAM_SET:-}" in
    cpu | cuda | cuda-image) echo "$LOAM_SET" ;;
    "")
      if [ -f installed.json ]; then  # what a bundle brought: another set cannot be had there, whatever the driver says
        sed -n 's/.*"profile": *"\([a-z]*\)".*/\1/p' installed.json
      elif nvidia-smi >/dev/null 2>&1; then echo cuda; else echo cpu; fi ;;
    *) fail "LOAM_SET to be cpu or cuda (or cuda-image, for an image)" "LOAM_SET=$LOAM_SET" "unset LOAM_SET to let nvidia-smi decide" ;;
  esac
}

check_python() {
  local found
  found=$(python_version "$python")
  [ "$found" = 3.11 ] && return
  if [ -z "$found" ]; then found="no such program, or one that does not run"; fi
  fail "Python 3.11 as '$python'" "$found" \
    "install Python 3.11 with its venv module, or name it: PYTHON=/path/to/python3.11 make setup"
}

check_disk() {
  local wanted_gb=$1 free_gb
  free_gb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
  [ "$free_gb" -ge "$wanted_gb" ] ||
    fail "$wanted_gb GB of free disk for the environment" "$free_gb GB free in $PWD" "free some space, or clone Loam onto a larger disk"
}

# Made anew as well when the checkout was moved: the programs in .venv/bin hold its path.
make_venv() {
  [ "$(python_version $venv/bin/python)" = 3.11 ] && [[ "${old_packages:-$PWD}" == *"$PWD" ]] && return
  say "making $venv with $("$python" --version)"
  "$python" -m venv --clear $venv || fail "a virtual environment in $venv" "python -m venv failed (above)" \
    "install Python's venv module (Debian, Ubuntu: apt install python3.11-venv), then make setup again"
}

# pip's settings, in uv's words.
pass_pip_settings() {
  if [ -n "${PIP_FIND_LINKS:-}" ] && [ -z "${UV_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${PIP_FIND_LINKS// /,}"; fi
  if [ -n "${PIP_INDEX_URL:-}" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then export UV_DEFAULT_INDEX="$PIP_INDEX_URL"; fi
  if [ -n "${PIP_EXTRA_INDEX_URL:-}" ] && [ -z "${UV_INDEX:-}" ]; then export UV_INDEX="$PIP_EXTRA_INDEX_URL"; fi
  if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE="$PIP_CERT"; fi
  case "${PIP_NO_INDEX:-}" in "" | 0 | false | no | off) ;; *) uv_flags+=(--no-index) ;; esac
}

# uv comes from the lock like everything else; only its first copy has to be brought by pip.
install_uv() {
  local wanted
  wanted=$(awk -F== '$1 == "uv" {print $2}' "$lock")
  [ "$($venv/bin/uv --version 2>/dev/null | awk '{print $2}')" = "$wanted" ] && return
  $venv/bin/python -m pip --version >/dev/null 2>&1 || $venv/bin/python -m ensurepip >/dev/null
  say "installing uv $wanted"
  $venv/bin/python -m pip install --quiet --no-deps "uv==$wanted" || fail "uv $wanted, the installer" \
    "pip could not install it (above)" "check the network, or point PIP_FIND_LINKS and PIP_NO_INDEX=1 at a folder with every wheel of $lock"
}

# torch's CPU build is not on the usual index. With UV_TORCH_BACKEND it is fetched alone and first: for the rest of the
# lock the variable must be off, because uv would then look for triton in PyTorch's index only.
install_torch_backend() {
  [ -n "${UV_TORCH_BACKEND:-}" ] || return 0
  say "installing $torch with UV_TORCH_BACKEND=$UV_TORCH_BACKEND"
  $venv/bin/uv pip install --python $venv/bin/python --no-deps "${uv_flags[@]}" "$torch"
  unset UV_TORCH_BACKEND
}

sync_lock() {
  local log=$venv/loam-setup.log
  say "installing $(grep -c '^[a-z0-9]' "$lock") packages from $lock"
  $venv/bin/uv pip sync --python $venv/bin/python --compile-bytecode "${uv_flags[@]}" "$lock" && return
  if [[ $torch == *+cpu ]] && ! $venv/bin/uv pip install --quiet --python $venv/bin/python --dry-run --no-deps \
    "${uv_flags[@]}" "$torch" >"$log" 2>&1; then
    fail "$torch (torch's CPU build)" "no such package in the sources that are set up here" \
      "UV_TORCH_BACKEND=cpu make setup    (or put its wheel into a folder and set PIP_FIND_LINKS to it)"
  fi
  fail "every package of $lock" "uv could not install them (above)" "mend what uv says, then make setup again"
}

uv_flags=()
python=${PYTHON:-python3.11}
set_name=$(choose_set)
lock=locks/$set_name.txt
torch=$(grep '^torch==' "$lock")
packages="$set_name $(cat "$lock" scripts/setup_env.sh | sha256sum | cut -d' ' -f1) $PWD"
project=$(sha256sum <pyproject.toml | cut -d' ' -f1)
old_packages=$(sed -n 1p $stamp 2>/dev/null || true)
old_project=$(sed -n 2p $stamp 2>/dev/null || true)
if [ "$old_packages" = "$packages" ] && [ "$old_project" = "$project" ] && [ -x $venv/bin/python ]; then
  exit 0
fi

pass_pip_settings
if [ "$old_packages" != "$packages" ] || [ ! -x $venv/bin/python ]; then
  check_python
  # What is installed already needs no second helping of disk.
  [ -n "$old_packages" ] || check_disk "${LOAM_MIN_FREE_GB:-$([ "$set_name" = cpu ] && echo 8 || echo 16)}"
  rm -f $stamp
  make_venv
  install_uv
  install_torch_backend
  sync_lock
fi
$venv/bin/uv pip install --quiet --python $venv/bin/python --no-deps --no-build-isolation "${uv_flags[@]}" --editable .
printf '%s\n' "$packages" "$project" >$stamp
say "ready: the $set_name set in $venv"
