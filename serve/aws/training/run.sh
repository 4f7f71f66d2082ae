#!/usr/bin/env bash
# What the training job of the state machine runs: train and calibrate, then leave in model/ what model.tar.gz holds;
# SageMaker packs that folder under the same name. Checkpoints lie where SageMaker copies them to S3 and brings them
# back after a spot interruption, so that the same command goes on.
# BINTALLY_FLAGS go to every command that reads bins, BINTALLY_DEVICE_FLAGS to those that compute, BINTALLY_FIT_FLAGS to
# the training.
set -euo pipefail

root=${BINTALLY_ML_DIR:-/opt/ml}
read -r -a flags <<<"${BINTALLY_FLAGS:-}"
read -r -a device <<<"${BINTALLY_DEVICE_FLAGS:-}"
read -r -a fit <<<"${BINTALLY_FIT_FLAGS:-}"
bins=(--source "$BINTALLY_SOURCE" --ids "file:$root/input/data/manifest/manifest.parquet" "${flags[@]}" "${device[@]}")
checkpoint=$root/checkpoints/fit/checkpoint

python train/fit.py --recipe "$BINTALLY_RECIPE" "${bins[@]}" "${fit[@]}" --run-dir "$root/checkpoints/fit"
python train/evaluate.py --checkpoint "$checkpoint" "${bins[@]}" --calibrate --run-dir "$root/checkpoints/evaluate"
python serve/export.py --checkpoint "$checkpoint" --out "$root/checkpoints/model.tar.gz"
mkdir -p "$root/model"
tar -xzf "$root/checkpoints/model.tar.gz" -C "$root/model"
