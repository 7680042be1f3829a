#!/bin/bash
#SBATCH --job-name=train --array=0-4 --requeue --output=%x-%A_%a.log
#SBATCH --gpus=1 --cpus-per-task=12 --time=2-00:00:00
# One fold in each task. --c continues a training that was stopped, and starts one that was not yet begun.
set -eu
nnUNetv2_train "$DATASET" "$CONFIGURATION" "$SLURM_ARRAY_TASK_ID" -tr "$TRAINER" -p "${PLANS:-nnUNetPlans}" \
    -device "${DEVICE:-cuda}" --c
