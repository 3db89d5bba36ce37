#!/usr/bin/env bash
# One part of what .ci/run does, so that several machines share it: `lessons`, or `k/n` of the test files.
# Every n-th file from the k-th belongs to a part, so that the parts together are all files, each once.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CI=true
part=${1:?name a part: lessons, or k/n as in 1/4}
if [ "$part" = lessons ]; then
  make env
  exec make lint notebooks
fi
k=${part%/*} n=${part#*/}
[[ "$part" =~ ^[0-9]+/[0-9]+$ ]] && [ "$k" -ge 1 ] && [ "$k" -le "$n" ] ||
  { echo "There is no part $part. Name lessons, or k/n with k from 1 to n." >&2; exit 2; }
mapfile -t files < <(find tests -name 'test_*.py' | LC_ALL=C sort | awk -v k="$k" -v n="$n" 'NR % n == k % n')
if [ "${2:-}" = --list ]; then printf '%s\n' "${files[@]}"; exit; fi
bash .ci/services & services=$!   # meanwhile
make env
wait $services
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=15 "${files[@]}"
