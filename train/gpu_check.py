"""Look at a node's GPUs before Ray starts on it: are all there, without memory faults, with a driver new enough?

    python -m train.gpu_check     # cluster.yaml runs it on every worker; exit code 2 keeps the node out of the cluster

RAY_OVERRIDE_RESOURCES, which Ray's autoscaler sets, says how many there must be; with none, nothing is looked at.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Final

from bintally.cli import readable_errors
from bintally.errors import RunError

MIN_DRIVER: Final = 580  # of CUDA 13, for which the locked torch is built
_FIELDS: Final = ("index", "name", "driver_version", "ecc.errors.uncorrected.volatile.total")


def check_gpus(expected: int) -> str:
    """What the node's GPUs are, if they are as expected.

    Raises:
        RunError: some are missing, have lost memory contents since they were switched on, or have an old driver.
    """
    try:
        listed = subprocess.run(  # noqa: S603
            ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"],  # noqa: S607  # on the PATH
            capture_output=True,
            text=True,
            timeout=60,  # a GPU that fell off the bus can block for ever
            check=True,
        ).stdout
    except FileNotFoundError:
        raise RunError(
            f"{expected} GPUs are expected, but there is no nvidia-smi: take an image with a driver"
        ) from None
    except subprocess.TimeoutExpired:
        raise RunError("nvidia-smi does not answer within a minute: a GPU hangs") from None
    except subprocess.CalledProcessError as error:
        raise RunError(f"nvidia-smi failed: {(error.stdout + error.stderr).strip()}") from None
    gpus = [[field.strip() for field in line.split(",")] for line in listed.splitlines() if line.strip()]
    if len(gpus) != expected:
        raise RunError(f"{expected} GPUs are expected, but {len(gpus)} are there")
    for fields in gpus:
        if len(fields) != len(_FIELDS) or not fields[2].split(".")[0].isdigit():
            raise RunError(f"nvidia-smi does not know all of a GPU, which may be broken: {', '.join(fields)}")
        index, _, driver, num_faults = fields
        if int(driver.split(".")[0]) < MIN_DRIVER:
            raise RunError(f"the driver is {driver}, but torch needs {MIN_DRIVER} or newer: choose another ImageId")
        if num_faults not in ("0", "[N/A]"):  # N/A: a GPU without error correction
            raise RunError(f"GPU {index} has {num_faults} memory errors that could not be corrected")
    return f"{len(gpus)} x {gpus[0][1]}, driver {gpus[0][2]}"


def main() -> None:
    """Parse, check, and say what was found."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with readable_errors():
        expected = int(json.loads(os.environ.get("RAY_OVERRIDE_RESOURCES", "{}")).get("GPU", 0))
        sys.stdout.write(f"GPUs: {check_gpus(expected) if expected else 'none expected'}\n")


if __name__ == "__main__":
    main()
