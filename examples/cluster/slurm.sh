#!/bin/bash
# Several machines under Slurm, one process a GPU. Submit from the repository, which all machines
# see:
#
#     sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 examples/cluster/slurm.sh pretrain \
#         --preset 250m --data corpus/ --out runs/big
#
# Slurm warns two minutes before it takes the machines away. Cygnet then writes a checkpoint and
# leaves with code 75, "try again later", upon which this script puts itself back into the queue;
# the same command goes on from the checkpoint.
#SBATCH --job-name=cygnet
#SBATCH --ntasks-per-node=2
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -u
export MASTER_ADDR
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
export WORLD_SIZE=$SLURM_NTASKS

# One process for each task, without a launcher between, so that signal and exit code are ours.
srun --kill-on-bad-exit=0 \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec .venv/bin/python -m cygnet "$@"' _ "$@"
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
