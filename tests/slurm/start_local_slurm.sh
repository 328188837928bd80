#!/usr/bin/env bash
# A throw-away Slurm cluster on the loopback interface: real daemons, no systemd, no GPU.
#
#   start_local_slurm.sh STATE_DIR      then:  . STATE_DIR/env.sh
#   stop_local_slurm.sh STATE_DIR
#
# Partitions `cpu` (default) and `gpu` over the nodes n1, n2, ... of this one machine. A job that uses more than its
# mem_mb is killed, as the kernel does on a real cluster. The GPUs are character devices that only Slurm believes
# in: it hands them out and sets CUDA_VISIBLE_DEVICES. Not modelled: cgroups, accounting, quality of service.
#
# Needs root. Installs Debian's packages if they are not there. A second call starts what is not running.
# Writes nothing outside STATE_DIR but the link /run/slurm/conf, through which jobs find slurm.conf.
#
#   LOCAL_SLURM_NODES    nodes                      (default 2)
#   LOCAL_SLURM_CPUS     CPUs that each declares    (default 8)
#   LOCAL_SLURM_MEM_MB   memory that each declares  (default 128000)
#   LOCAL_SLURM_GPUS     GPUs that each declares    (default 2)
#   LOCAL_SLURM_PORT     first TCP port, loopback   (default 16817)
set -euo pipefail

die() { echo "start_local_slurm: $*" >&2; exit 1; }

[ $# -eq 1 ] || die "usage: $0 STATE_DIR"
[ "$(id -u)" -eq 0 ] || die "must run as root"
NODES=${LOCAL_SLURM_NODES:-2}
CPUS=${LOCAL_SLURM_CPUS:-8}
MEM_MB=${LOCAL_SLURM_MEM_MB:-128000}
GPUS=${LOCAL_SLURM_GPUS:-2}
PORT=${LOCAL_SLURM_PORT:-16817}
PATH=$PATH:/usr/sbin:/sbin   # where Debian keeps daemons

mkdir -p "$1"
STATE=$(cd "$1" && pwd -P)
[ ${#STATE} -le 80 ] || die "STATE_DIR is too long for a socket path: $STATE"
HOST=$(hostname -s)

# ---- packages
if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
  command -v apt-get >/dev/null || die "Slurm is not installed and there is no apt-get"
  # Debian's packages try to start services, which must not happen here.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  get=(apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge)
  "${get[@]}" >"$STATE/apt.log" 2>&1 ||
    { apt-get update >>"$STATE/apt.log" 2>&1 && "${get[@]}" >>"$STATE/apt.log" 2>&1; } ||
    { tail -20 "$STATE/apt.log" >&2; die "apt-get failed"; }
fi

# ---- configuration
mkdir -p "$STATE"/{etc,log,run,spool,dev,munge}
chmod 0755 "$STATE" "$STATE/run"; chmod 0700 "$STATE/munge"
for ((i = 0; i < NODES * GPUS; i++)); do
  device=$STATE/dev/gpu$i
  [ -e "$device" ] || mknod "$device" c 1 3 2>/dev/null || : >"$device"
done
gres=""
[ "$GPUS" -eq 0 ] || gres="Gres=gpu:fake:$GPUS"

{
cat <<CONF
ClusterName=local
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$PORT
AuthType=auth/munge
AuthInfo=socket=$STATE/run/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$STATE/spool/ctld
SlurmdSpoolDir=$STATE/spool/%n
SlurmctldPidFile=$STATE/run/slurmctld.pid
SlurmdPidFile=$STATE/run/slurmd-%n.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=5,batch_sched_delay=0
KillWait=10
SlurmdTimeout=20
SlurmctldTimeout=20
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
PartitionName=cpu Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=00:10:00 State=UP
PartitionName=gpu Nodes=ALL MaxTime=1-00:00:00 DefaultTime=00:10:00 State=UP
CONF
for ((n = 1; n <= NODES; n++)); do
  echo "NodeName=n$n NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + n)) Sockets=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM_MB $gres State=UNKNOWN"
done
} >"$STATE/etc/slurm.conf"

{
  echo "AutoDetect=off"
  for ((n = 1; n <= NODES && GPUS > 0; n++)); do
    echo "NodeName=n$n Name=gpu Type=fake File=$STATE/dev/gpu[$(((n - 1) * GPUS))-$((n * GPUS - 1))]"
  done
} >"$STATE/etc/gres.conf"

# Jobs find the configuration without SLURM_CONF: Snakemake's jobstep drops SLURM_* before it calls srun.
[ ! -e /etc/slurm/slurm.conf ] || die "/etc/slurm/slurm.conf exists: this machine belongs to a cluster"
link=/run/slurm/conf
if [ -e "$link" ] && [ ! -L "$link" ]; then die "$link exists and is not a link of ours"; fi
mkdir -p "${link%/*}"
ln -sfn "$STATE/etc" "$link"
echo "export SLURM_CONF='$STATE/etc/slurm.conf'" >"$STATE/env.sh"
export SLURM_CONF=$STATE/etc/slurm.conf

# ---- daemons
# A pid file left from before must not be taken for a running daemon, nor a zombie.
alive() {
  local pid
  [ -s "$1" ] || return 1
  pid=$(cat "$1")
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] &&
    ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status" 2>/dev/null
}
wait_for() {
  local what=$1 deadline=$((SECONDS + 30)); shift
  until "$@" >/dev/null 2>&1; do
    if [ $SECONDS -ge $deadline ]; then
      for log in "$STATE"/log/*.log; do echo "--- $log"; tail -15 "$log"; done >&2
      die "$what did not come up in 30 s"
    fi
    sleep 0.2
  done
}
if ! alive "$STATE/run/munged.pid" munged; then
  [ -s "$STATE/munge/key" ] || head -c 1024 /dev/urandom >"$STATE/munge/key"
  chmod 400 "$STATE/munge/key"
  rm -f "$STATE/run/munge.socket"*
  munged --force --num-threads=2 --key-file="$STATE/munge/key" --socket="$STATE/run/munge.socket" \
    --pid-file="$STATE/run/munged.pid" --log-file="$STATE/log/munged.log" --seed-file="$STATE/munge/seed"
fi
wait_for munged timeout 5 munge --socket="$STATE/run/munge.socket" -n
mkdir -p "$STATE/spool/ctld"
alive "$STATE/run/slurmctld.pid" slurmctld || slurmctld
wait_for slurmctld timeout 5 scontrol ping
for ((n = 1; n <= NODES; n++)); do
  mkdir -p "$STATE/spool/n$n"
  alive "$STATE/run/slurmd-n$n.pid" slurmd || slurmd -N "n$n"
done
nodes_ready() {
  [ "$(timeout 5 sinfo -h -N -p cpu -t idle,mixed,allocated | wc -l)" -eq "$NODES" ] && return 0
  timeout 5 scontrol update nodename=ALL state=resume >/dev/null 2>&1   # after a crash they may be DOWN
  return 1
}
wait_for "the nodes" nodes_ready
echo "start_local_slurm: $(sinfo -h -p cpu -o '%D nodes of %c CPUs, %m MB, %G')" >&2
