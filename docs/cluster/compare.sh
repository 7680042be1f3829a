#!/bin/bash
#SBATCH --job-name=compare --cpus-per-task=2 --time=2:00:00 --output=%x-%j.log
# Compares TRAINERS, two or more, with the first of them; submit it with --dependency=afterok:CROSSVAL:CROSSVAL.
set -eu
# shellcheck disable=SC2086  # FOLDS and TRAINERS are several words
nnunet_calib compare -d "$DATASET" -c "$CONFIGURATION" -tr $TRAINERS -p "${PLANS:-nnUNetPlans}" -f ${FOLDS:-0 1 2 3 4}
