#!/bin/bash
#SBATCH --job-name=validate --array=0-7 --requeue --output=%x-%A_%a.log
#SBATCH --gpus=1 --cpus-per-task=12 --time=12:00:00
# A share of the cases in each task; PARTS is the number of tasks. The task that ends last writes the results.
set -eu
# shellcheck disable=SC2086  # FOLDS are several words
nnunet_calib validate -d "$DATASET" -c "$CONFIGURATION" -tr "$TRAINER" -p "${PLANS:-nnUNetPlans}" \
    -f ${FOLDS:-0 1 2 3 4} -num_parts "${PARTS:-8}" -part_id "$SLURM_ARRAY_TASK_ID" -device "${DEVICE:-cuda}"
