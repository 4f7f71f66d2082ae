"""Start a server: photos in, counts out.

    python serve/start.py --checkpoint runs/x/checkpoint
    python serve/start.py --checkpoint s3://bucket/model@0123abcd --max-replicas 8 --tls-cert server.pem --rate-limit 50
    python serve/start.py --config serve/config.yaml
    python serve/start.py --checkpoint runs/x/checkpoint --engine local

Engine ray is Ray Serve behind a front (serve/front.py): several replicas, none of which a slow or greedy client can
block. Engine local is this one process. Flags win over the file. SIGHUP reads the file and the models again without a
failed request; Ctrl-C or SIGTERM finishes what is under way.
"""

import argparse
import os
import signal
import sys
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import tyro

from bintally.cli import readable_errors
from bintally.errors import BinTallyError, ConfigError
from serve.front import FrontConfig
from serve.settings import Settings, settings_from_dict, with_absolute_paths

if TYPE_CHECKING:
    from serve.front_process import FrontProcess
    from serve.ray_engine import ServingRay
    from serve.ray_plan import RayPlan

_KINDS: Final[dict[str, tuple[type | tuple[type, ...], str]]] = {
    "host": (str, "a text"),
    "gpus_per_replica": ((int, float), "a number"),
    "settings": (dict, "a mapping"),
}
"""What a value of a config file must be; the others are whole numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingsFlags(Settings):
    """Settings that are checked once all flags are parsed; tyro would draw a box around what is wrong."""

    def __post_init__(self) -> None:
        """Leave the check to `resolve`."""

    def resolve(self) -> Self:
        """These settings, with absolute paths: replicas have another working folder.

        Raises:
            ConfigError: a value is wrong.
        """
        Settings(**{one.name: getattr(self, one.name) for one in fields(self)})
        return with_absolute_paths(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class StartArgs:
    """What to start."""

    engine: Literal["ray", "local"] = "ray"
    """ray: Ray Serve, several replicas. local: one process, seconds to start."""
    config: Path | None = None
    """A Serve config as serve/config.yaml; its user_config has the settings below."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine."""
    port: int = 8000
    replicas: int = 1
    """Replicas, a CPU thread each; with --max-replicas, the least."""
    max_replicas: int | None = None
    """Start more replicas under load, so many at most."""
    target_in_flight: int = 8
    """Load above which there will be more replicas: requests under way in each."""
    gpus_per_replica: float = 0.0
    """GPUs of each replica; a fraction shares one."""
    front: bool = True
    """HAProxy before the replicas. Default: for engine ray alone."""
    tls_cert: Path | None = None
    """PEM file with certificate chain and key: the front speaks HTTPS."""
    rate_limit: int | None = None
    """Requests per second of one client address, above which the front tells it to wait (429)."""
    settings: tyro.conf.OmitArgPrefixes[SettingsFlags]

    def front_config(self, ports: range) -> FrontConfig:
        """The front of replicas that listen at some of these ports."""
        from serve.count_routes import BATCH_LIMIT, JSON_OVERHEAD

        max_body_bytes = int(self.settings.max_body_bytes * JSON_OVERHEAD)
        return FrontConfig(
            host=self.host,
            port=self.port,
            engine=self.engine,
            first_replica_port=ports.start,
            num_replica_ports=len(ports),
            tls_cert=self.tls_cert,
            rate_limit=self.rate_limit,
            max_body_bytes=max_body_bytes,
            max_batch_bytes=max_body_bytes * BATCH_LIMIT,
            arrive_s=max(1, round(self.settings.body_timeout_s)),
            answer_s=round(self.settings.body_timeout_s + self.settings.request_timeout_s) + 5,
        )


def parse_args(argv: list[str]) -> StartArgs:
    """The flags, over the values of the config file that they name.

    Raises:
        ConfigError: a value is wrong, or the file is.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--checkpoint", default=os.environ.get("BINTALLY_CHECKPOINT"))
    first.add_argument("--engine", default="ray")
    known, _ = first.parse_known_args(argv)
    values = read_config(known.config) if known.config else {}
    settings = values.pop("settings", {})
    if known.checkpoint:
        settings.setdefault("checkpoint", known.checkpoint)
    if "checkpoint" not in settings:
        return tyro.cli(StartArgs, args=argv, description=__doc__)  # which tells that --checkpoint is missing
    flags = SettingsFlags(**asdict(settings_from_dict(settings)))
    default = StartArgs(settings=flags, front=known.engine == "ray", **values)
    args = tyro.cli(StartArgs, args=argv, default=default, description=__doc__)
    if not args.front and (args.tls_cert or args.rate_limit):
        raise ConfigError("tls_cert and rate_limit are the front's; add --front")
    return replace(args, settings=args.settings.resolve())


def read_config(path: Path) -> dict[str, Any]:
    """What a Serve config says of the one application, by the names of StartArgs.

    Raises:
        ConfigError: the file cannot be read, or has another form.
    """
    import yaml

    try:
        config = yaml.safe_load(path.read_text())
        (deployment,) = config["applications"][0]["deployments"]
        scaling = deployment.get("autoscaling_config") or {}
        options = deployment.get("ray_actor_options") or {}
        read = {
            "host": (config.get("http_options") or {}).get("host"),
            "port": (config.get("http_options") or {}).get("port"),
            "replicas": scaling.get("min_replicas", deployment.get("num_replicas")),
            "max_replicas": scaling.get("max_replicas"),
            "target_in_flight": scaling.get("target_ongoing_requests"),
            "gpus_per_replica": options.get("num_gpus"),
            "settings": deployment.get("user_config"),
        }
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config: {path} cannot be read: {' '.join(str(error).split())}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"config: {path} needs applications: with one deployment, as serve/config.yaml") from None
    given = {name: value for name, value in read.items() if value is not None}
    for name, value in given.items():
        kind, words = _KINDS.get(name, (int, "a whole number"))
        if not isinstance(value, kind):
            raise ConfigError(f"config: {name} of {path} must be {words}, not {value!r}")
    return given


def run_local(args: StartArgs, argv: list[str]) -> None:
    """Serve in this process."""
    from bintally.ports import free_port
    from serve.front_process import running_front
    from serve.local import serve_local

    if not args.front:
        print(f"loading the model, to serve at http://{args.host}:{args.port}", flush=True)
        serve_local(args.settings, args.host, args.port, lambda: reread(argv).settings)
        return
    port = free_port()
    ports = range(port, port + 1)
    with running_front(args.front_config(ports)) as front:
        new = args

        def reread_settings() -> Settings:
            nonlocal new
            new = reread(argv)
            return new.settings

        print(f"loading the model, to serve at {front.config.url}", flush=True)
        serve_local(args.settings, "127.0.0.1", port, reread_settings, lambda: front.reload(new.front_config(ports)))


def run_ray(args: StartArgs, argv: list[str]) -> None:
    """Serve by Ray until a signal ends this process."""
    from bintally.ports import free_ports
    from serve.front_process import running_front
    from serve.ray_engine import serving_ray

    num_ports = max(16, 4 * (args.max_replicas or args.replicas))  # some for replicas that are ending or have died
    ports = range(first := free_ports(num_ports), first + num_ports) if args.front else None
    asked = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: asked.set())
    with ExitStack() as stack:
        # Entered in this order, so that at the end the front lets requests under way come back before Ray ends.
        serving = stack.enter_context(serving_ray(ray_plan(args, ports)))
        front = stack.enter_context(running_front(args.front_config(ports))) if ports else None
        serving.deploy(ray_plan(args, ports))
        serving.wait_until_ready()
        print(f"serving at {front.config.url if front else f'http://{args.host}:{args.port}'}", flush=True)
        for generation in count(args.settings.generation + 1):
            while not asked.wait(1):
                pass
            asked.clear()
            told = reload_ray(argv, generation, ports, serving, front)
            print(told, file=sys.stderr if told.startswith("error") else sys.stdout, flush=True)


def reload_ray(
    argv: list[str], generation: int, ports: range | None, serving: "ServingRay", front: "FrontProcess | None"
) -> str:
    """Read all again, and serve it; what came of that."""
    try:
        args = reread(argv)
        settings = replace(args.settings, generation=generation)  # else Ray would not see that contents have changed
        serving.deploy(ray_plan(replace(args, settings=settings), ports))
    except BinTallyError as error:
        return f"error: nothing was reloaded: {error}"
    try:
        serving.wait_until_ready()
        if front and ports:
            front.reload(args.front_config(ports))
    except BinTallyError as error:
        return f"error: the models were reloaded, but not all else: {error}"
    return "reloaded"


def reread(argv: list[str]) -> StartArgs:
    """The flags, over the config file as it is now.

    Raises:
        ConfigError: a value is wrong, or the file is.
    """
    try:
        return parse_args(argv)
    except SystemExit:
        raise ConfigError("flags and config file do not go together any more; the lines above tell why") from None


def ray_plan(args: StartArgs, ports: range | None) -> "RayPlan":
    """What Ray is to run; replicas listen at some of these ports, or leave clients to Ray's own proxy."""
    from serve.ray_plan import RayPlan

    return RayPlan(
        settings=args.settings,
        num_replicas=args.replicas,
        max_replicas=args.max_replicas,
        target_in_flight=args.target_in_flight,
        gpus_per_replica=args.gpus_per_replica,
        host=args.host,
        port=args.port,
        replica_ports=ports,
    )


def main() -> None:
    """Parse, then serve."""
    with readable_errors():
        args = parse_args(sys.argv[1:])
        (run_local if args.engine == "local" else run_ray)(args, sys.argv[1:])


if __name__ == "__main__":
    main()
