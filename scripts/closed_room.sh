#!/usr/bin/env bash
# The whole way of a bundle, as an operator would type it; make test-airgap BUNDLE=DIR runs it where only loopback exists.
#   scripts/closed_room.sh BUNDLE PREFIX [install] [demo] [journey]      without a step: all three
set -euo pipefail
bundle=$(realpath "$1") prefix=$(realpath -m "$2")
shift 2
[ $# -gt 0 ] || set -- install demo journey
unset LOAM_DATA_DIR LOAM_SET

for step in "$@"; do
  SECONDS=0
  case $step in
    install)
      python3.11 -S -E "$bundle/bundle.py" verify  # -S -E: the standard library and nothing beside it
      python3.11 -S -E "$bundle/bundle.py" install to="$prefix"
      (cd "$prefix/current" && .venv/bin/python scripts/doctor.py)
      ;;
    demo) make -C "$prefix/current" demo ;;
    journey) (cd "$prefix/current" && .venv/bin/python scripts/journey.py) ;;
    *) echo "closed_room: wanted install, demo or journey; found $step" >&2 && exit 2 ;;
  esac
  echo "closed_room: $step after $SECONDS s" >&2
done
