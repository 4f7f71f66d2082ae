"""What the state machine's jobs run, against the commands that it runs."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import tyro

from data.manifest import ManifestArgs
from serve.aws import states
from serve.aws.states_args import StateMachineArgs
from serve.export import PackArgs
from train.evaluate import EvaluateArgs
from train.fit import FitArgs

ROOT = Path(__file__).parents[3]
# Writes down how it was called; packing leaves a tarball.
PYTHON = """#!/usr/bin/env bash
printf '%s\\t' "$@" >>"$CALLS"; echo >>"$CALLS"
[[ $1 != serve/export.py ]] || cp "$TARBALL" "${@: -1}"
"""


@pytest.mark.parametrize(("instance_type", "has_gpu"), [("ml.g5.xlarge", True), ("ml.m5.xlarge", False)])
def test_the_training_job_calls_commands_that_there_are_with_flags_that_they_have(
    tmp_path: Path, instance_type: str, has_gpu: bool
) -> None:
    """The commands themselves take half a minute of CPU, and have tests of their own."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "config.yaml").write_text("applications: []\n")
    (tmp_path / "ml/checkpoints").mkdir(parents=True)
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "config.yaml", "config.yaml")
    flags = {"source_flags": "--signed --unpadded", "fit_flags": "--num-workers 4 --seed 7"}
    args = StateMachineArgs(source="s3://bins", recipe="smoke", training_instance_type=instance_type, **flags)
    job = states.definition(args)
    request = job["States"]["Train"]["Parameters"]
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "TARBALL": str(tmp_path / "packed.tar.gz"),
        "BINTALLY_ML_DIR": str(tmp_path / "ml"),
    }
    command = request["AlgorithmSpecification"]["ContainerEntrypoint"]
    subprocess.run(command, cwd=ROOT, env=variables | request["Environment"], check=True)
    calls = [line.split("\t")[:-1] for line in (tmp_path / "calls").read_text().splitlines()]
    (fit, *fit_flags), (evaluate, *evaluate_flags), (export, *export_flags) = calls
    assert (fit, evaluate, export) == ("train/fit.py", "train/evaluate.py", "serve/export.py")
    trained, scored = tyro.cli(FitArgs, args=fit_flags), tyro.cli(EvaluateArgs, args=evaluate_flags)
    packed = tyro.cli(PackArgs, args=export_flags)
    assert (trained.recipe, trained.bucket.source) == ("smoke", "s3://bins")
    assert trained.bucket == scored.bucket
    assert (trained.resources.use_gpu, scored.use_gpu) == (has_gpu, has_gpu)
    assert (trained.resources.num_workers, trained.seed) == (4, 7)
    assert trained.bucket.signed
    assert trained.bucket.unpadded
    assert trained.bucket.ids == f"file:{tmp_path}/ml/input/data/manifest/manifest.parquet"
    assert scored.checkpoint == str(packed.checkpoint) == f"{trained.run_dir}/checkpoint"
    assert scored.calibrate
    assert [path.name for path in (tmp_path / "ml/model").iterdir()] == ["config.yaml"]


def test_the_manifest_job_calls_a_command_with_flags_that_it_has() -> None:
    given = StateMachineArgs(source="s3://bins", source_flags="--signed", fit_flags="--num-workers 4")
    states_made = states.definition(given)["States"]
    request = states_made["Manifest"]["Parameters"]
    assert (ROOT / request["AppSpecification"]["ContainerEntrypoint"][1]).is_file()
    args = tyro.cli(ManifestArgs, args=request["AppSpecification"]["ContainerArguments"])
    (output,) = request["ProcessingOutputConfig"]["Outputs"]
    assert (args.source, args.signed, str(args.out.parent)) == ("s3://bins", True, output["S3Output"]["LocalPath"])


def test_the_image_has_what_the_jobs_run() -> None:
    dockerfile = ROOT / "serve/aws/training/Dockerfile"
    lines = dockerfile.read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert copied >= {"requirements.lock", "bintally", "data", "train", "tune", "serve"}
    assert all((ROOT / word).exists() for word in copied)
    ignore = dockerfile.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == copied
