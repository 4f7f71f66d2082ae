"""Serve a packed model the way SageMaker asks for it: GET /ping and POST /invocations.

    mkdir model && tar -xzf model.tar.gz -C model
    python -m serve.container --model-dir model
    curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8080/invocations

In the image, whose entry point this is, the code comes from the tarball, too: PYTHONPATH names its code/.
"""

import argparse  # the image has no tyro
import os
from pathlib import Path

from bintally.cli import readable_errors


def main() -> None:
    """Parse, then serve."""
    parser = argparse.ArgumentParser(
        "python -m serve.container", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("serve",), help="SageMaker says it; it changes nothing")
    parser.add_argument("--model-dir", type=Path, default=Path("/opt/ml/model"), help="where the tarball was unpacked")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))
    args = parser.parse_args()
    with readable_errors():
        from serve.container.app import serve_model  # heavy

        serve_model(args.model_dir, args.host, args.port)


if __name__ == "__main__":
    main()
