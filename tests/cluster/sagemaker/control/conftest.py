"""What the tests of the commands share: bundles, and runs of a command about an endpoint of their own."""

import io
import json
import secrets
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from serve.aws.commands import main

ROLE = "arn:aws:iam::123456789012:role/bintally"
Run = Callable[..., tuple[int, str, str]]
FakeSageMaker = Any  # of fake_sagemaker.py


@pytest.fixture(scope="session")
def bundles(served_checkpoint: Path, packed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`good`; `other`, of other weights; `broken`, that does not load; `stale`, whose name is another model's."""
    import torch
    from safetensors.torch import load_file, save_file

    from serve.aws.bundle import pack

    folder = tmp_path_factory.mktemp("bundles")
    other = folder / "checkpoint"
    shutil.copytree(served_checkpoint, other)
    (other / "calibration.json").unlink()  # of the first one's weights
    weights = load_file(other / "model.safetensors")
    save_file({name: torch.roll(value, 1) for name, value in weights.items()}, other / "model.safetensors")
    paths = {name: folder / f"{name}.tar.gz" for name in ("other", "broken", "stale")}
    paths["good"] = packed_model.with_suffix(".tar.gz")
    pack(other, paths["other"])
    repack(paths["good"], paths["broken"], "checkpoint/model.safetensors", lambda weights: weights[:100])
    repack(paths["good"], paths["stale"], "model.json", lambda card: card.replace(version_of(card), b"0" * 12))
    return paths


def version_of(card: bytes) -> bytes:
    return str(json.loads(card)["version"]).encode()


def repack(source: Path, target: Path, member: str, change: Callable[[bytes], bytes]) -> None:
    """Copy a bundle with one file changed."""
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for entry in old:
            data = old.extractfile(entry)
            assert data is not None
            content = change(data.read()) if entry.name == member else data.read()
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))


@pytest.fixture
def name() -> str:
    """An endpoint's name that no other test has: they share moto."""
    return f"t-{secrets.token_hex(4)}"


@pytest.fixture
def bucket(sagemaker: FakeSageMaker, name: str) -> str:
    sagemaker.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], name: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(command, *flags)`: exit code, output and errors of a command about this test's endpoint."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which remembers the account of another test

    def run(command: str, *flags: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([command, *map(str, flags), "--name", name])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def deploy(run: Run, bucket: str) -> Run:
    """`deploy(bundle, *flags)`."""

    def deploy(bundle: Path, *flags: str) -> tuple[int, str, str]:
        return run("deploy", "--bundle", bundle, "--bucket", bucket, "--role", ROLE, "--smoke-s", "0", *flags)

    return deploy


@pytest.fixture
def there(sagemaker: FakeSageMaker, name: str) -> Callable[[], dict[str, list[str]]]:
    """`there()`: what there is of this test's endpoint."""

    def listed(operation: str, of: str, field: str) -> list[str]:
        pages = sagemaker.client("sagemaker").get_paginator(operation).paginate()
        found = [one[field] for page in pages for one in page[of]]
        return [one for one in found if one.startswith(name)]  # moto does not heed NameContains everywhere

    def look() -> dict[str, list[str]]:
        bundles = sagemaker.client("s3").list_objects_v2(Bucket=name).get("Contents", [])
        return {
            "endpoints": listed("list_endpoints", "Endpoints", "EndpointName"),
            "configs": listed("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
            "models": listed("list_models", "Models", "ModelName"),
            "bundles": [one["Key"] for one in bundles],
        }

    return look
