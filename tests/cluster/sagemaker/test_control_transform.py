"""A batch transform of a prefix and its score, against moto with a model that really answers."""

import io
import json
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from serve.aws.commands import main

FakeSageMaker = Any  # of fake_sagemaker.py
Run = Callable[..., tuple[int, str, str]]
NUM_GOOD = 14


def photo(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((120, 120)).save(file, "JPEG")
    return file.getvalue()


def record(quantity: int, *, in_items: int | None = None) -> bytes:
    items = {"B0": {"quantity": quantity if in_items is None else in_items}}
    return json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": quantity}).encode()


@pytest.fixture
def name(sagemaker: FakeSageMaker, served_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint, and a bucket of the same name with photos and records, good ones and all kinds of bad ones."""
    name = f"t-{secrets.token_hex(4)}"
    s3 = sagemaker.client("s3")
    s3.create_bucket(Bucket=name)
    good = {f"{number:05}": (photo(number), record(number % 6)) for number in range(NUM_GOOD)}
    bad = {
        "00100": (photo(100)[:-500], record(1)),
        "00101": (b"", record(1)),
        "00102": (photo(102), None),
        "00103": (photo(103), record(9)),
        "00104": (photo(104), record(2, in_items=3)),
    }
    for bin_id, (image, label) in (good | bad).items():
        s3.put_object(Bucket=name, Key=f"copy/bin-images/{bin_id}.jpg", Body=image)
        if label is not None:
            s3.put_object(Bucket=name, Key=f"copy/metadata/{bin_id}.json", Body=label)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which remembers the account of another test
    role = "arn:aws:iam::123456789012:role/bintally"
    with pytest.raises(SystemExit) as ended:
        main(["deploy", "--checkpoint", str(served_checkpoint), "--bucket", name, "--role", role, "--name", name])
    assert not ended.value.code
    return name


@pytest.fixture
def transform(name: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """`transform(*flags)`: exit code, output and errors."""

    def run(*flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        places = ["--input", f"s3://{name}/copy/bin-images/", "--output", f"s3://{name}/counts/"]
        with pytest.raises(SystemExit) as ended:
            main(["transform", "--name", name, *places, *flags])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def jobs_in(requests: list[str]) -> int:
    return requests.count("CreateTransformJob")


def test_figures_are_those_of_the_same_photos_counted_here(
    sagemaker: FakeSageMaker, name: str, transform: Run, served_checkpoint: Path
) -> None:
    from serve.predictor import Predictor

    code, out, err = transform()
    assert (code, err) == (0, "")
    figures = json.loads(Path("metrics.json").read_text())
    assert figures["left_out"] == {
        "count_above_max": 1,
        "empty_body": 1,
        "missing_label": 1,
        "quantity_mismatch": 1,
        "truncated_image": 1,
    }
    predictor = Predictor.load(served_checkpoint)
    counted = [predictor.count([predictor.decode(photo(number))[0]])[0] for number in range(NUM_GOOD)]
    expected = np.arange(NUM_GOOD) % 6
    errors = np.array([one.count for one in counted]) - expected
    assert figures["num_images"] == NUM_GOOD
    assert figures["num_photos"] == NUM_GOOD + 5
    assert figures["versions"] == [predictor.version]
    assert figures["accuracy"] == pytest.approx((errors == 0).mean())
    assert figures["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert figures["mae"] == pytest.approx(np.abs(errors).mean())
    true_ones = [one.probabilities[count] for one, count in zip(counted, expected, strict=True)]
    assert figures["nll"] == pytest.approx(-np.log(np.maximum(true_ones, 1e-12)).mean(), rel=1e-5)
    assert figures["per_count"]["3"]["accuracy"] == pytest.approx((errors[expected == 3] == 0).mean())
    assert re.search(rf"{NUM_GOOD} of {NUM_GOOD + 5} photos", out)
    assert f"accuracy        {figures['accuracy']:6.1%}" in out

    code, _, _ = transform()  # the same command again
    assert (code, jobs_in(sagemaker.requests)) == (0, 1)
    assert json.loads(Path("metrics.json").read_text()) == figures

    time.sleep(1.1)  # S3 tells whole seconds
    sagemaker.client("s3").put_object(Bucket=name, Key="copy/bin-images/00000.jpg", Body=photo(777))
    code, _, _ = transform()
    assert (code, jobs_in(sagemaker.requests)) == (0, 2)
    assert json.loads(Path("metrics.json").read_text())["nll"] != figures["nll"]
    assert transform()[0] == 0
    assert jobs_in(sagemaker.requests) == 2
    assert transform("--again")[0] == 0
    assert jobs_in(sagemaker.requests) == 3


def test_a_large_photo_is_counted_and_a_larger_one_named_before_a_job_fails_by_it(
    sagemaker: FakeSageMaker, name: str, transform: Run
) -> None:
    s3, places = sagemaker.client("s3"), ("--input", f"s3://{name}/large/bin-images/")
    s3.put_object(Bucket=name, Key="large/metadata/00001.json", Body=record(1))
    s3.put_object(Bucket=name, Key="large/bin-images/00001.jpg", Body=photo(1).ljust(12 * 2**20, b"\0"))
    assert transform(*places)[0] == 0
    assert json.loads(Path("metrics.json").read_text())["num_images"] == 1
    s3.put_object(Bucket=name, Key="large/bin-images/00002.jpg", Body=bytes(12 * 2**20 + 1))
    code, _, err = transform(*places)
    assert (code, err.count("\n"), jobs_in(sagemaker.requests)) == (2, 1, 1)
    assert "1 photos are larger than 12 MiB" in err
    assert "large/bin-images/00002.jpg" in err


def test_a_job_that_failed_is_told_started_anew_or_scored_in_part(sagemaker: FakeSageMaker, transform: Run) -> None:
    sagemaker.job_fails = "AlgorithmError: out of memory"
    code, _, err = transform()
    assert (code, err.count("\n")) == (2, 1)
    assert "AlgorithmError: out of memory" in err
    assert "/aws/sagemaker/TransformJobs" in err
    found = re.search(r"--job-name (\S+) --partial", err)
    assert found is not None
    assert not Path("metrics.json").exists()

    assert transform("--job-name", found[1], "--partial")[0] == 0
    assert json.loads(Path("metrics.json").read_text())["num_images"] == NUM_GOOD
    assert jobs_in(sagemaker.requests) == 1

    sagemaker.job_fails = None
    assert transform()[0] == 0
    assert jobs_in(sagemaker.requests) == 2


def test_a_job_of_this_name_that_does_something_else_is_not_taken_for_it(
    sagemaker: FakeSageMaker, name: str, transform: Run
) -> None:
    assert transform("--job-name", f"{name}-first")[0] == 0
    code, _, err = transform("--job-name", f"{name}-first", "--output", f"s3://{name}/elsewhere/")
    assert (code, err.count("\n"), "is taken by" in err) == (2, 1, True)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--input", "bin-images/"], "input"),
        (["--input", "s3://bucket/photos/"], "records"),
        (["--input", "s3://bucket/photos/", "--records", "metadata"], "records"),
        (["--output", "counts"], "output"),
        (["--instance-type", "large"], "instance_type"),
        (["--instance-type", "ml.g5.xlarge"], "count on CPUs"),
        (["--again", "--job-name", "a"], "job_name"),
        (["--partial"], "job_name"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(
    flags: list[str], says: str, aws: None, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--input", "s3://bucket/bin-images/", "--output", "s3://bucket/counts/", "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        main(["transform", *usual, *flags])
    err = capsys.readouterr().err
    assert (ended.value.code, err.count("\n")) == (2, 1)
    assert says in err


def test_a_prefix_without_photos_or_records_is_one_line(sagemaker: FakeSageMaker, name: str, transform: Run) -> None:
    code, _, err = transform("--input", f"s3://{name}/empty/bin-images/")
    assert (code, "there is nothing" in err, jobs_in(sagemaker.requests)) == (2, True, 0)
    code, _, err = transform("--records", f"s3://{name}/nowhere/")
    assert (code, err.count("\n")) == (2, 1)
    assert f"'missing_label': {NUM_GOOD + 5}" in err


def test_a_dry_run_prints_the_job_and_asks_nothing(aws: None, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--input", "s3://bucket/bin-images/", "--output", "s3://bucket/counts/"]
    with pytest.raises(SystemExit) as ended:
        main(["transform", *places, "--dry-run"])  # nobody would take the credentials
    assert not ended.value.code
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("sagemaker.create_transform_job(TransformJobName='bintally-")
    assert "MaxPayloadInMB=12" in out
