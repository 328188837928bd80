#!/usr/bin/env bash
# End the cluster that start_local_slurm.sh started in STATE_DIR, its jobs first.
#
#   stop_local_slurm.sh STATE_DIR
set -uo pipefail

[ $# -eq 1 ] && [ -f "$1/etc/slurm.conf" ] || { echo "usage: $0 STATE_DIR" >&2; exit 1; }
STATE=$(cd "$1" && pwd -P)
export SLURM_CONF=$STATE/etc/slurm.conf

# A zombie counts as gone.
running() {
  [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] &&
    ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null
}

timeout 10 scancel --quiet -u "$(id -un)" 2>/dev/null
for _ in $(seq 40); do
  [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
  sleep 0.5
done
for file in "$STATE"/run/slurmd-*.pid "$STATE"/run/slurmctld.pid "$STATE"/run/munged.pid; do
  [ -s "$file" ] || continue
  pid=$(cat "$file") name=$(basename "$file" .pid)
  name=${name%%-*}
  running "$pid" "$name" || continue
  kill -TERM "$pid"
  for _ in $(seq 50); do running "$pid" "$name" || break; sleep 0.2; done
  if running "$pid" "$name"; then kill -KILL "$pid"; fi
done
if [ "$(readlink /run/slurm/conf 2>/dev/null)" = "$STATE/etc" ]; then rm -f /run/slurm/conf; fi
echo "stop_local_slurm: stopped" >&2
