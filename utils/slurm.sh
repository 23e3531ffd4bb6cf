#!/usr/bin/env bash
# Runs a recipe as a Slurm job, on one machine or several:
#
#   utils/slurm.sh [options] <recipe> [the recipe's options]
#   utils/slurm.sh --num-nodes 2 --ngpu 8 --time 2-00:00:00 librispeech --corpus <corpus>
#
# Stages 3 and 4 run on all machines (srun and torchrun), the others on the first. Before the time limit, training saves and stops,
# and the job is requeued to continue. The job's script and log are in egs/<recipe>/exp/slurm.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

num_nodes=1            # machines
ngpu=1                 # GPUs per machine; 0: none
cpus=8                 # cores per machine
mem=                   # memory per machine, as in 64G; default: that of the cluster
time=                  # time limit, as in 2-00:00:00; default: that of the partition
partition=             # partition
account=               # account
job_name=              # default: the recipe's name
sbatch_args=           # further options of sbatch: --sbatch-args="--constraint=a100 --exclusive"
warn=180               # seconds before the limit at which training saves and stops
requeue=true           # requeue the job after that
dry_run=false          # print the job's script without submitting it

own_options=() recipe=
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help | --requeue | --dry-run | --*=*) own_options+=("$1"); shift ;;
    --*) own_options+=("${@:1:2}"); shift; [[ $# -eq 0 ]] || shift ;;
    *) recipe=$1; shift; break ;;
  esac
  if [[ ${1:-} == true || ${1:-} == false ]]; then own_options+=("$1"); shift; fi
done
options=("$@")
option_files=("$0")
set -- "${own_options[@]+"${own_options[@]}"}"
# shellcheck source=utils/parse_options.sh
. "$root/utils/parse_options.sh"
[[ -n $recipe ]] || usage_error "give a recipe, as in: $0 --ngpu 4 librispeech --corpus <corpus> (--help lists the options)"
[[ -f $root/egs/$recipe/run.sh ]] || usage_error "no recipe '$recipe' (./run.sh --help lists them)"
for name in num_nodes ngpu cpus warn; do
  [[ ${!name} =~ ^[0-9]+$ ]] || usage_error "option --${name//_/-} must be a whole number, not '${!name}'"
done
job_name=${job_name:-$recipe}
folder=$root/egs/$recipe/exp/slurm

script() {
  echo '#!/usr/bin/env bash'
  printf '#SBATCH %s\n' "--job-name=$job_name" "--nodes=$num_nodes" --ntasks-per-node=1 "--cpus-per-task=$cpus" \
    "--signal=B:USR1@$warn" --open-mode=append "--output=$folder/%x-%j.log"
  if (( ngpu > 0 )); then echo "#SBATCH --gpus-per-node=$ngpu"; fi
  local option
  for option in ${mem:+--mem="$mem"} ${time:+--time="$time"} ${partition:+--partition="$partition"} ${account:+--account="$account"} \
    $sbatch_args; do
    echo "#SBATCH $option"
  done
  if [[ $requeue == true ]]; then echo '#SBATCH --requeue'; fi
  printf 'cd %q\n' "$PWD"      # relative paths in the recipe's options are relative to it
  printf '%q ' "$root/run.sh" "$recipe" "${options[@]+"${options[@]}"}" --num-nodes "$num_nodes" --ngpu "$ngpu"
  cat << 'END'
&
recipe=$! warned=false status=0
trap 'warned=true; kill -USR1 "$recipe"' USR1        # training saves and stops
trap 'kill -TERM "$recipe"' TERM                     # scancel
while kill -0 "$recipe" 2> /dev/null; do wait "$recipe" || true; done     # a signal ends `wait` early
wait "$recipe" || status=$?
END
  if [[ $requeue == true ]]; then
    # shellcheck disable=SC2016    # expanded by the job's shell
    echo 'if [[ $warned == true && $status != 0 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi'
  fi
  # shellcheck disable=SC2016
  echo 'exit $status'
}

if [[ $dry_run == true ]]; then script; exit; fi
command -v sbatch > /dev/null || { echo "$0: sbatch is not installed: submit from a machine of a Slurm cluster" >&2; exit 1; }
mkdir -p "$folder"
script > "$folder/$job_name.sh"
sbatch "$folder/$job_name.sh"
echo "log: $folder/$job_name-<job>.log"
