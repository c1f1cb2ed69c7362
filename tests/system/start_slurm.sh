#!/usr/bin/env bash
# A SLURM of two nodes on this one machine, for the tests that are marked `slurm`. Needs root and Debian's slurm-wlm, slurmd, slurmctld, munge.
#   tests/system/start_slurm.sh FOLDER && export SLURM_CONF=FOLDER/slurm.conf
#   tests/system/start_slurm.sh --stop FOLDER
# Everything of it is in FOLDER, so that several do not disturb each other. Partition `urgent` preempts jobs of the partition `normal`, as
# clusters do it: TERM, some time of grace, and back into the queue.
set -euo pipefail

stop() {
  local pid name
  for name in slurmd.n1 slurmd.n2 slurmctld munged; do
    pid=$(cat "$1/$name.pid" 2>/dev/null) || continue
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "${name%.n?}" ]] || continue
    kill "$pid"
    for _ in $(seq 100); do
      [[ -d /proc/$pid ]] || break
      sleep 0.1
    done
  done
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

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
stop "$folder"
chmod 755 "$folder"
mkdir -p "$folder/state" "$folder/log"
port=17000
until is_free "$port" && is_free $((port + 1)) && is_free $((port + 2)); do port=$((port + 10)); done
grep -q '\bn1 n2\b' /etc/hosts || echo '127.0.0.1 n1 n2' >>/etc/hosts # each other's address, as a cluster's name service would give it

# munge proves to the daemons who is asking. It wants folders that nobody else can write to all the way up, hence --force.
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --log-file="$folder/log/munged" \
  --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" 2>"$folder/log/munged.warnings"

# More processors than there may be: nothing is bound to them, and jobs need not wait for each other.
cat >"$folder/slurm.conf" <<CONF
ClusterName=genlab-tests
SlurmctldHost=$(hostname)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=3,sched_interval=5,batch_sched_delay=1,requeue_setup_env_fail
SlurmdParameters=config_overrides
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
NodeName=n1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=4 RealMemory=2000
NodeName=n2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 RealMemory=2000
PartitionName=normal Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120 MaxTime=INFINITE OverSubscribe=NO DefMemPerCPU=100
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE OverSubscribe=NO DefMemPerCPU=100
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
