#!/usr/bin/env bash
# A SLURM of two nodes on this one machine, for the tests that are marked `slurm`. Needs root and Debian's slurm-wlm, slurmd, slurmctld, munge.
#   tests/system/start_slurm.sh FOLDER && export SLURM_CONF=FOLDER/slurm.conf
#   tests/system/start_slurm.sh --stop FOLDER
# It listens at the ports $SLURM_PORT (17000) and the two after it. Partition `urgent` preempts jobs of the partition `normal`, as clusters do
# it: TERM, some seconds of grace, and back into the queue.
set -euo pipefail

stop() {
  local pid name
  for name in slurmd.n1 slurmd.n2 slurmctld munged; do
    pid=$(cat "$1/$name.pid" 2>/dev/null) || continue
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "${name%.n?}" ]]; then kill "$pid"; fi
  done
}

if [[ ${1:-} == --stop ]]; then
  stop "$2"
  exit 0
fi
[[ -n ${1:-} ]] || { echo "usage: start_slurm.sh FOLDER | --stop FOLDER" >&2; exit 2; }
[[ $(id -u) == 0 ]] || { echo "start_slurm.sh: SLURM's daemons are started as root; run this as root" >&2; exit 2; }
for program in munged slurmctld slurmd; do
  command -v "$program" >/dev/null || { echo "start_slurm.sh: there is no $program; apt-get install slurm-wlm slurmd slurmctld munge" >&2; exit 2; }
done

folder=$(mkdir -p "$1" && cd "$1" && pwd)
port=${SLURM_PORT:-17000}
chmod 755 "$folder"
mkdir -p "$folder/state" "$folder/log"
grep -q '\bn1 n2\b' /etc/hosts || echo '127.0.0.1 n1 n2' >>/etc/hosts # each other's address, as a cluster's name service would give it

# munge proves to the daemons who is asking; one that runs already will do.
if ! munge -n >/dev/null 2>&1; then
  install -d -o munge -g munge -m 700 "$folder/munge"
  install -d -o munge -g munge -m 755 /run/munge
  key=$folder/munge/key
  [[ -s $key ]] || { head -c 1024 /dev/urandom >"$key"; chown munge: "$key"; chmod 400 "$key"; }
  # it wants folders that nobody else can write to all the way up, hence --force
  runuser -u munge -- munged --force --key-file="$key" --log-file="$folder/munge/log" --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed"
  cp "$folder/munge/pid" "$folder/munged.pid"
fi

cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$(hostname)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=3,sched_interval=5,batch_sched_delay=1,requeue_setup_env_fail
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=30
MinJobAge=1200
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/finished_jobs.txt
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd.%n
NodeName=n1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=2000
PartitionName=normal Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120 MaxTime=INFINITE OverSubscribe=NO
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE OverSubscribe=NO
CONF

export SLURM_CONF=$folder/slurm.conf
slurmctld -c # forgets the jobs of before
slurmd -N n1
slurmd -N n2
for _ in $(seq 60); do
  if [[ $(sinfo --noheader --partition normal --states idle --format %D 2>/dev/null) == 2 ]]; then
    echo "SLURM with two nodes: SLURM_CONF=$SLURM_CONF"
    exit 0
  fi
  sleep 1
done
echo "start_slurm.sh: the nodes did not become idle in a minute; look into $folder/log" >&2
sinfo >&2 || true
exit 1
