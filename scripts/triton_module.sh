#!/usr/bin/env bash
# Triton's C module, compiled when an image is built and handed out at run time, where there is no compiler (decision 0077).
#
#   triton_module.sh build PYTHON LIB     compile Triton's driver.c into LIB/cuda_utils.so, with the Python's own headers
#   CC=triton_module.sh                   as Triton calls a compiler: triton_module.sh SOURCE … -o OUT
#
# Triton 3.7 (locks/cuda.txt, which compiles a copy of driver.c under another name) and 3.9 compile nothing else: their launcher is
# the same for every kernel. Any other source is refused.
set -euo pipefail

if [ "${1:-}" = build ]; then
  [ $# -eq 3 ] || { echo "triton_module: wanted build PYTHON LIB, found $*" >&2; exit 2; }
  source=$("$2" -c 'import triton.backends.nvidia as n; print(n.__path__[0])')
  headers=$("$2" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  mkdir -p "$3"
  stub=$(mktemp -d)
  trap 'rm -rf "$stub"' EXIT
  # The driver's library comes with the card: an empty one of its name is enough to link against.
  gcc -shared -o "$stub/libcuda.so.1" -Wl,-soname,libcuda.so.1 -x c /dev/null
  cp "$source/driver.c" "$3/cuda_utils.c"  # what the module was made of: only that source is answered with it
  gcc "$source/driver.c" -O3 -shared -fPIC -Wno-psabi -Wl,--no-as-needed -o "$3/cuda_utils.so" \
    -L"$stub" -l:libcuda.so.1 -I"$source/include" -I"$headers"
  exit 0
fi

lib=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../lib
source='' output=''
while [ $# -gt 0 ]; do
  case "$1" in
    *.c | *.cpp | *.cc) source=$1 ;;
    -o) output=$2; shift ;;
  esac
  shift
done
if [ -z "$source" ] || [ -z "$output" ] || ! cmp -s "$source" "$lib/cuda_utils.c"; then
  echo "triton_module: wanted the driver.c of the Triton that this image was built with, found '$source'. There is no compiler in this image: set CC to one." >&2
  exit 1
fi
cp "$lib/cuda_utils.so" "$output"
