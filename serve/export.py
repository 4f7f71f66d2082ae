"""Pack a checkpoint for SageMaker, and everything that follows there.

    python serve/export.py --checkpoint runs/x/checkpoint --out model.tar.gz
    python serve/export.py deploy|invoke|transform|delete|policies|state-machine --help

The tarball runs in AWS's Ray Serve image, in our own container (serve/container), and as serve.container here.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

import tyro

from bintally.cli import readable_errors

COMMANDS: Final = ("deploy", "invoke", "transform", "delete", "policies")
STATE_MACHINE: Final = "state-machine"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackArgs:
    """What to pack."""

    checkpoint: Path
    """Checkpoint folder: model.safetensors, config.json, metrics.json; with the graphs of train/accelerate.py."""
    out: Path
    """The file to write; its name ends with .tar.gz."""
    wheels: Path | None = None
    """Folder of wheels for AWS's image, so that it needs no package index when it starts; docs/sagemaker.md."""


def main() -> None:
    """Pack, or hand on to another command by the first word."""
    word, *rest = sys.argv[1:] or [""]
    if word in COMMANDS:  # by name: what deploys needs boto3, and packing does not
        import_module("serve.aws.commands").main([word, *rest])
    elif word == STATE_MACHINE:
        import_module("serve.aws.states").main(rest)
    else:
        with readable_errors():
            pack_checkpoint(tyro.cli(PackArgs, description=__doc__))


def pack_checkpoint(args: PackArgs) -> None:
    """Pack, and say what came of it.

    Raises:
        BinTallyError: as `serve.aws.bundle.pack`.
    """
    from serve.aws.bundle import pack  # heavy imports only after the flags are parsed

    bundle = pack(args.checkpoint, args.out, args.wheels)
    print(f"{bundle.path}: {bundle.num_bytes:,} bytes, model {bundle.version}, sha256 {bundle.sha256}")


if __name__ == "__main__":
    main()
