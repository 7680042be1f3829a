#!/bin/bash
#SBATCH --job-name=crossval --cpus-per-task=2 --time=2:00:00 --output=%x-%j.log
# Merges the folds and writes a page, or says what is missing. It needs no GPU; submit it with --dependency=afterany:TRAINING.
set -eu
# shellcheck disable=SC2086  # FOLDS are several words
set -- -d "$DATASET" -c "$CONFIGURATION" -tr "$TRAINER" -p "${PLANS:-nnUNetPlans}" -f ${FOLDS:-0 1 2 3 4}
nnunet_calib crossval "$@"
nnunet_calib report "$@"
