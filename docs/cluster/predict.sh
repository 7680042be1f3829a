#!/bin/bash
#SBATCH --job-name=predict --array=0-7 --requeue --output=%x-%A_%a.log
#SBATCH --gpus=1 --cpus-per-task=12 --time=12:00:00
# A share of the images in each task; PARTS is the number of tasks. A task that was requeued keeps what is finished.
set -eu
# shellcheck disable=SC2086  # FOLDS are several words
nnunet_calib predict -i "$IMAGES" -o "$OUTPUT" -d "$DATASET" -c "$CONFIGURATION" -tr "$TRAINER" -p "${PLANS:-nnUNetPlans}" \
    -f ${FOLDS:-0 1 2 3 4} -num_parts "${PARTS:-8}" -part_id "$SLURM_ARRAY_TASK_ID" -device "${DEVICE:-cuda}" \
    --continue_prediction
