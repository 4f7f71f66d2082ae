"""The command that starts a server: its flags over its file, and what Ray is told; no Ray starts."""

import subprocess
import sys
import warnings
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import PydanticDeprecatedSince20

from bintally.errors import BinTallyError, ConfigError, RunError
from serve.front import FrontConfig
from serve.ray_plan import RayPlan, deploy_config
from serve.settings import Settings
from serve.start import parse_args, reload_ray

with warnings.catch_warnings():  # Ray 2.60's own models use a pydantic spelling that ends with version 3
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    from ray.serve.schema import DeploymentSchema, ServeDeploySchema

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "serve/config.yaml"


@pytest.fixture(autouse=True)
def _no_checkpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BINTALLY_CHECKPOINT", raising=False)


# --- The file -------------------------------------------------------------------------------------------------------


def check_schema(config: dict[str, Any]) -> DeploymentSchema:
    """The one deployment of a config that Serve accepts; unknown names, which Serve ignores, are errors here."""
    deploy = ServeDeploySchema.model_validate(config)
    assert not set(config) - set(ServeDeploySchema.model_fields)
    (application,) = deploy.applications
    assert not set(config["applications"][0]) - set(type(application).model_fields)
    (deployment,) = application.deployments
    assert not set(config["applications"][0]["deployments"][0]) - set(DeploymentSchema.model_fields)
    return deployment


def test_the_config_file_has_every_setting_with_its_default() -> None:
    user_config = check_schema(yaml.safe_load(CONFIG.read_text())).user_config
    assert isinstance(user_config, dict)
    defaults = asdict(Settings(checkpoint=user_config["checkpoint"]))
    assert user_config == defaults | {"cors_origins": []}


def test_the_autoscaling_of_its_comment_is_accepted() -> None:
    lines = CONFIG.read_text().splitlines()
    begin = next(place for place, line in enumerate(lines) if line.strip() == "# autoscaling_config:")
    end = next(place for place in range(begin, len(lines)) if not lines[place].strip())
    lines[begin:end] = [line.replace("# ", "", 1) for line in lines[begin:end]]
    text = "\n".join(line for line in lines if not line.strip().startswith("num_replicas:"))
    scaling = check_schema(yaml.safe_load(text)).autoscaling_config
    assert isinstance(scaling, dict)
    assert scaling["max_replicas"] == 8


def test_the_file_names_what_the_code_has() -> None:
    from serve import app

    application = yaml.safe_load(CONFIG.read_text())["applications"][0]
    module, _, name = application["import_path"].partition(":")
    assert module == app.__name__
    assert application["deployments"][0]["name"] == app.deployment.name
    assert hasattr(app, name)


# --- What Ray is told -----------------------------------------------------------------------------------------------


def test_a_plan_is_a_config_that_serve_accepts() -> None:
    plan = RayPlan(
        settings=Settings(checkpoint="/x"), num_replicas=3, gpus_per_replica=0.5, replica_ports=range(30_000, 30_008)
    )
    deployment = check_schema(deploy_config(plan))
    assert deployment.num_replicas == 3
    assert deployment.ray_actor_options.num_gpus == 0.5  # type: ignore[union-attr]
    assert deployment.user_config == asdict(plan.settings)
    assert deployment.max_surge_percent == 0  # a new replica would wait for ever for the GPU of an old one


def test_a_plan_with_bounds_scales() -> None:
    plan = RayPlan(settings=Settings(checkpoint="/x"), num_replicas=2, max_replicas=6, target_in_flight=4)
    deployment = check_schema(deploy_config(plan))
    assert deployment.max_surge_percent > 0
    assert deployment.autoscaling_config == {"min_replicas": 2, "max_replicas": 6, "target_ongoing_requests": 4}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"num_replicas": 0}, "replicas"),
        ({"num_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"target_in_flight": 0}, "target_in_flight"),
        ({"gpus_per_replica": -1.0}, "gpus_per_replica"),
        ({"num_replicas": 20, "replica_ports": range(30_000, 30_016)}, "replica_ports"),
    ],
)
def test_plans_that_make_no_sense(values: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        RayPlan(settings=Settings(checkpoint="/x"), **values)


# --- The flags ------------------------------------------------------------------------------------------------------


def test_each_setting_is_a_flag() -> None:
    args = parse_args(
        ["--checkpoint", "/x", "--max-in-flight", "7", "--models", "b", "s3://bucket/b@0123ab", "--replicas", "2"]
    )
    assert (args.settings.max_in_flight, args.settings.models, args.replicas) == (7, {"b": "s3://bucket/b@0123ab"}, 2)
    required = {one.name for one in fields(Settings) if one.default is MISSING and one.default_factory is MISSING}
    assert required == {"checkpoint"}


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = 8123
    deployment = config["applications"][0]["deployments"][0]
    del deployment["num_replicas"]
    deployment["autoscaling_config"] = {"min_replicas": 2, "max_replicas": 5}
    deployment["user_config"] = {"checkpoint": "/file", "max_in_flight": 3, "max_batch_size": 4}
    path.write_text(yaml.safe_dump(config))
    args = parse_args(["--config", str(path), "--max-batch-size", "9"])
    assert (args.port, args.replicas, args.max_replicas) == (8123, 2, 5)
    settings = args.settings
    assert (settings.checkpoint, settings.max_in_flight, settings.max_batch_size) == ("/file", 3, 9)
    assert parse_args(["--config", str(path), "--checkpoint", "/flag"]).settings.checkpoint == "/flag"


def test_the_environment_names_the_checkpoint_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINTALLY_CHECKPOINT", "/environment")
    assert parse_args([]).settings.checkpoint == "/environment"
    assert parse_args(["--checkpoint", "/flag"]).settings.checkpoint == "/flag"


def test_paths_are_absolute_for_replicas_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--checkpoint", "a@0123ab", "--models", "b", "c/d", "e", "s3://f/g", "--token-file", "tokens"]
    settings = parse_args(flags).settings
    assert settings.checkpoint == f"{tmp_path}/a@0123ab"
    assert settings.models == {"b": f"{tmp_path}/c/d", "e": "s3://f/g"}
    assert settings.token_file == f"{tmp_path}/tokens"


@pytest.mark.parametrize(
    ("flags", "has_front"),
    [([], True), (["--no-front"], False), (["--engine", "local"], False), (["--engine", "local", "--front"], True)],
)
def test_the_front_is_rays_unless_asked(flags: list[str], has_front: bool) -> None:
    assert parse_args(["--checkpoint", "/x", *flags]).front == has_front


def test_the_limits_of_the_front_are_those_of_the_server_and_a_little_more() -> None:
    args = parse_args(["--checkpoint", "/x", "--max-body-bytes", "1000", "--body-timeout-s", "4"])
    config = args.front_config(range(30_000, 30_008))
    assert (config.max_body_bytes, config.max_batch_bytes, config.arrive_s) == (1_400, 14_000, 4)
    assert config.answer_s > 4 + 10


def start(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "serve/start.py"), *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--config", "list.yaml"], "list.yaml"),
        (["--config", "unknown.yaml"], "max_in_flights"),
        (["--config", "auto.yaml"], "replicas"),
        (["--config", "text.yaml"], "settings of text.yaml must be a mapping"),
        (["--config", "host.yaml"], "host of host.yaml must be a text"),
        (["--checkpoint", "x", "--max-in-flight", "0"], "max_in_flight"),
        (["--checkpoint", "x", "--canary", "b"], "canary"),
        (["--checkpoint", "x", "--engine", "local", "--rate-limit", "3"], "--front"),
        (["--checkpoint", "x", "--replicas", "0"], "replicas"),
        (["--checkpoint", "x", "--engine", "local"], "no checkpoint at"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(flags: list[str], names: str, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    deployment = {"user_config": {"checkpoint": "x", "max_in_flights": 3}}
    (tmp_path / "unknown.yaml").write_text(yaml.safe_dump({"applications": [{"deployments": [deployment]}]}))
    deployment = {"user_config": {"checkpoint": "x"}, "num_replicas": "auto"}
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump({"applications": [{"deployments": [deployment]}]}))
    (tmp_path / "text.yaml").write_text(yaml.safe_dump({"applications": [{"deployments": [{"user_config": "x"}]}]}))
    (tmp_path / "host.yaml").write_text(
        yaml.safe_dump({"http_options": {"host": 1}, "applications": [{"deployments": [{}]}]})
    )
    done = start(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert names in done.stderr


# --- SIGHUP ---------------------------------------------------------------------------------------------------------


class Serving:
    """Stands for the Ray that serves: what it is told to deploy."""

    def __init__(self, fault: BinTallyError | None = None) -> None:
        self.told: list[Settings] = []
        self.fault = fault

    def deploy(self, plan: RayPlan) -> None:
        if self.fault:
            raise self.fault
        self.told.append(plan.settings)

    def wait_until_ready(self) -> None:
        """They are."""


class Front:
    """Stands for the front: what it is told, or that it refuses."""

    def __init__(self, fault: BinTallyError | None = None) -> None:
        self.told: list[FrontConfig] = []
        self.fault = fault

    def reload(self, config: FrontConfig) -> None:
        if self.fault:
            raise self.fault
        self.told.append(config)


def reload(path: Path, generation: int, serving: Serving, front: Front) -> str:
    return reload_ray(["--config", str(path)], generation, range(30_000, 30_016), serving, front)  # type: ignore[arg-type]


def test_a_reload_tells_replicas_to_read_again_though_only_contents_have_changed() -> None:
    serving, front = Serving(), Front()
    assert [reload(CONFIG, generation, serving, front) for generation in (1, 2)] == ["reloaded"] * 2
    assert [settings.generation for settings in serving.told] == [1, 2]
    assert len(front.told) == 2


def test_a_reload_that_fails_says_how_far_it_came(tmp_path: Path) -> None:
    serving, front, fault = Serving(), Front(), ConfigError("HAProxy refuses it")
    assert reload(CONFIG, 1, Serving(RunError("Ray failed")), front) == "error: nothing was reloaded: Ray failed"
    assert reload(tmp_path / "absent", 1, serving, front).startswith("error: nothing was reloaded: config: ")
    empty = tmp_path / "config.yaml"
    empty.write_text("applications: [{deployments: [{}]}]")  # names no checkpoint, at which the start ends
    assert reload(empty, 1, serving, front).startswith("error: nothing was reloaded: flags and config file")
    assert (serving.told, front.told) == ([], [])
    told = reload(CONFIG, 1, serving, Front(fault))
    assert told == "error: the models were reloaded, but not all else: HAProxy refuses it"
    assert len(serving.told) == 1


def test_no_checkpoint_is_told_of(tmp_path: Path) -> None:
    done = start(cwd=tmp_path)
    assert done.returncode == 2
    assert "--checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
