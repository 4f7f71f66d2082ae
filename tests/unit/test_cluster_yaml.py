"""cluster.yaml: against Ray's and EC2's own validators, against our rules, and its commands in a pretend home."""

import copy
import re
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema  # type: ignore[import-untyped]  # no stubs installed
import moto
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.autoscaler._private.aws.config import DEFAULT_AMI
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

Config = dict[str, Any]

ROOT = Path(__file__).parents[2]
WHEN = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
COMMAND_LISTS = tuple(f"{when}_commands" for when in WHEN)
PACKAGES = ("bintally", "data", "train", "tune", "serve")
BUILD_FILES = ("requirements.lock", "pyproject.toml", "README.md", "LICENSE")  # hatchling reads the last two
OUTPUTS = (".venv/bin/python", "runs/a/b.pt", "data/__pycache__/a.pyc", ".git/config", "my.pem", ".env")
GB_PER_TRIAL_ON_HEAD, GB_FOR_RAY_ON_HEAD = 2.7, 6


@pytest.fixture
def config() -> Config:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_ray_accepts_the_file(config: Config) -> None:
    validate_config(prepare_config(config))


@pytest.mark.parametrize("path", [(), ("auth",), ("available_node_types", "gpu_spot")])
def test_ray_refuses_an_unknown_key(config: Config, path: tuple[str, ...]) -> None:
    section = config
    for key in path:
        section = section[key]
    section["idle_timeout_minuets"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(config))


def test_no_part_comes_from_rays_defaults(config: Config) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    assert prepared.keys() - config.keys() == {"docker", "upscaling_speed"}  # none; 1.0
    assert all(isinstance(config[name], list) for name in COMMAND_LISTS)
    assert "ray-wheels" not in yaml.safe_dump(prepared)


def ec2_complaints(node_config: Config) -> str:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert shape
    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    return str(report.generate_report())


def test_node_configs_fit_run_instances(config: Config) -> None:
    complaints = {name: ec2_complaints(t["node_config"]) for name, t in config["available_node_types"].items()}
    assert not any(complaints.values()), complaints


def test_a_misspelt_node_config_key_is_refused(config: Config) -> None:
    node_config = config["available_node_types"]["gpu_spot"]["node_config"]
    node_config["InstanceMarketOption"] = node_config.pop("InstanceMarketOptions")
    node_config["BlockDeviceMappings"][0]["Ebs"]["Size"] = 1
    report = ec2_complaints(node_config)
    assert 'Unknown parameter in input: "InstanceMarketOption"' in report
    assert 'Unknown parameter in BlockDeviceMappings[0].Ebs: "Size"' in report


def aws(service: str) -> Any:  # noqa: ANN401  # boto3 makes its classes at run time
    return resource_cache(service, "us-east-1")


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """What `ray up` makes of the file, in a pretend us-east-1, with the GPU nodes' resources left to Ray."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for name in ("gpu_on_demand", "gpu_spot"):
        config["available_node_types"][name]["resources"] = {}
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # gets the ssh key
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        resource_cache.cache_clear()
        for profile in ("bintally-head", "bintally-worker"):
            aws("iam").create_instance_profile(InstanceProfileName=profile)
        yield _bootstrap_config(config, no_config_cache=True)
    resource_cache.cache_clear()


def test_ray_up_resolves_every_node_type(config: Config, resolved: Config) -> None:
    for name, node_type in resolved["available_node_types"].items():
        assert len(node_type["node_config"]["SubnetIds"]) == 5  # one for each zone in the file
        assert node_type["node_config"]["KeyName"]
        # the file says of the instance type what EC2's catalogue says
        assert node_type["resources"].items() >= config["available_node_types"][name]["resources"].items()


def test_only_ssh_comes_in_from_outside(config: Config, resolved: Config) -> None:
    assert "security_group" not in config["provider"]
    ids = {i for t in resolved["available_node_types"].values() for i in t["node_config"]["SecurityGroupIds"]}
    groups = aws("ec2").security_groups.filter(GroupIds=sorted(ids))
    from_outside = [r for g in groups for r in g.ip_permissions if r.get("IpRanges") or r.get("Ipv6Ranges")]
    assert [(r["FromPort"], r["ToPort"]) for r in from_outside] == [(22, 22)]


def test_every_node_type_launches(resolved: Config) -> None:
    provider = AWSNodeProvider(resolved["provider"], resolved["cluster_name"])  # type: ignore[no-untyped-call]
    image = next(iter(aws("ec2").images.all())).id  # moto cannot look up resolve:ssm: names
    launched = {}
    for name, node_type in resolved["available_node_types"].items():
        (node,) = provider.create_node({**node_type["node_config"], "ImageId": image}, {}, 1).values()
        launched[name] = (node.instance_lifecycle, node.iam_instance_profile["Arn"].split("/")[-1])
    workers = {"gpu_on_demand": (None, "bintally-worker"), "gpu_spot": ("spot", "bintally-worker")}
    assert launched == {"head": (None, "bintally-head"), **workers}


def launches(config: Config, *demand: Config, spot_refused: bool = False) -> dict[str, int]:
    settings = AutoscalingConfig(config, skip_content_hash=True)
    refused = {"gpu_spot": 0.0} if spot_refused else {}
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=settings.get_node_type_configs(),
        max_num_nodes=settings.get_max_num_worker_nodes(),  # the head, not in this request, would be one more
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(d) for d in demand]),
        cloud_resource_availabilities=refused,
        recoverable_resource_availabilities=refused,
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_autoscaler_prefers_spot_and_the_head_takes_no_work(config: Config) -> None:
    train_worker = {"GPU": 1, "CPU": 1}
    assert launches(config) == {}
    assert launches(config, *[train_worker] * 4) == {"gpu_spot": 1}
    assert launches(config, {"CPU": 1}) == {"gpu_spot": 1}
    assert launches(config, *[train_worker] * 4, spot_refused=True) == {"gpu_on_demand": 1}
    assert launches(config, *[train_worker] * 40) == {"gpu_spot": 4}


@pytest.mark.usefixtures("resolved")
def test_head_holds_the_drivers_of_the_largest_search(config: Config) -> None:
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    instance_type = types["head"]["node_config"]["InstanceType"]
    found = aws("ec2").meta.client.describe_instance_types(InstanceTypes=[instance_type])
    head_gb = found["InstanceTypes"][0]["MemoryInfo"]["SizeInMiB"] * 2**20 / 1e9
    num_trials = config["max_workers"] * types["gpu_spot"]["resources"]["GPU"]  # one GPU for each
    assert num_trials * GB_PER_TRIAL_ON_HEAD + GB_FOR_RAY_ON_HEAD < 0.9 * head_gb


def test_nodes_are_named_bounded_and_stateless(config: Config) -> None:
    provider = config["provider"]
    assert (provider["type"], provider["region"], provider["cache_stopped_nodes"]) == ("aws", "us-east-1", False)
    assert 0 < config["idle_timeout_minutes"] <= 15
    for name, node_type in config["available_node_types"].items():
        node_config = node_type["node_config"]
        assert (node_type["min_workers"], node_type["max_workers"] == 0) == (0, name == config["head_node_type"])
        assert node_config["ImageId"].startswith(("ami-", "resolve:ssm:/aws/service/"))
        assert node_config["ImageId"] not in DEFAULT_AMI.values()
        assert node_config["MetadataOptions"]["HttpTokens"] == "required"
        assert node_config["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100
        assert node_config["IamInstanceProfile"]["Name"]


def test_no_path_host_or_secret_of_ours(config: Config) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"https?://|index-url|/home/|/Users/|/work/|AKIA|BEGIN [A-Z ]*KEY", text)
    assert list(config["file_mounts"].items()) == [("~/bintally", "."), ("~/.ray/auth_token",) * 2]


def test_dashboard_is_on_loopback_only(config: Config) -> None:
    (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    assert re.findall(r"--dashboard-host[= ](\S+)", start) == ["127.0.0.1"]
    assert "--include-dashboard=true" in start  # without it the workers of stopped trials are never freed
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert "0.0.0.0" not in "".join(c for name in COMMAND_LISTS for c in config[name])


def test_versions_agree(config: Config) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setup = "\n".join(config["setup_commands"])
    assert f"--python {pyproject['tool']['mypy']['python_version']} " in setup
    (pin,) = [d for d in pyproject["project"]["dependencies"] if d.startswith("ray[")]
    assert pin.endswith(f"=={ray.__version__}")  # the Ray whose validators ran above is the Ray of the nodes
    assert re.search(r" uv==\d+\.\d+\.\d+;", setup)


def test_the_lock_can_set_up_a_node() -> None:
    entries = re.split(r"^(?=[a-z0-9])", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    pins = [re.match(r"([a-z0-9._-]+)\S*==([^\s;]+)", entry) for entry in entries]
    locked = {pin[1]: pin[2] for pin in pins if pin}
    assert locked["ray"] == ray.__version__
    # boto3 drives the autoscaler; hatchling and editables build the project without isolation
    assert {"boto3", "torch", "obstore", "hatchling", "editables"} <= locked.keys()
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def rsync_skips(pattern: str, path: str) -> bool:
    """Say whether rsync leaves out a file, for the plain patterns we use (no slash inside, no **)."""
    name = pattern.strip("/")
    assert not re.search(r"/|\*\*", name)
    parts = path.split("/")
    last = len(parts) - pattern.endswith("/")  # a trailing slash: folders only
    return any(fnmatch(part, name) for part in parts[: min(last, 1) if pattern.startswith("/") else last])


def must_ship() -> list[str]:
    sources = [str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    assert {path.split("/")[0] for path in sources} == set(PACKAGES)
    to_come = [f"{p}/{name}" for p in PACKAGES for name in ("runs.py", "dist.py", "checkpoint.py", "a.json")]
    return [*PACKAGES, *sources, *to_come, *BUILD_FILES, "baselines/a.json"]


def test_rsync_ships_the_code_and_nothing_else(config: Config) -> None:
    patterns = config["rsync_exclude"]
    assert [p for p in must_ship() if any(rsync_skips(x, p) for x in patterns)] == []
    assert [p for p in OUTPUTS if not any(rsync_skips(x, p) for x in patterns)] == []
    assert rsync_skips("data/", "data/bucket.py")


def test_working_dir_uploads_hide_no_package() -> None:
    hidden_by = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    assert len(hidden_by) == 2  # .gitignore and .rayignore
    assert [p for p in must_ship() if any(hides(ROOT / p) for hides in hidden_by)] == []
    unwanted = [*OUTPUTS, ".venv", ".git", "runs", "docs/img/a.png"]
    assert [p for p in unwanted if not hidden_by[1](ROOT / p)] == []


STUB = '#!/bin/bash\necho "$(basename "$0") $* [$RAY_AUTH_MODE]" >> ~/calls\n'
UV_STUB = STUB + '[ "$1" != venv ] || { mkdir -p ~/venv/bin && install -m 755 /dev/null ~/venv/bin/python; }\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("bin/sudo", "bin/cloud-init", "bin/ray", "uv/bin/uv"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(UV_STUB if name.endswith("/uv") else STUB)
        program.chmod(0o755)
    (tmp_path / "bintally").mkdir()
    (tmp_path / "bintally/requirements.lock").write_text("a==1\n")
    return tmp_path


def run_commands(home: Path, commands: list[str]) -> list[str]:
    """Run commands as Ray does, each in a shell of its own that reads ~/.bashrc, and return the programs called."""
    (home / "calls").write_text("")
    env = {"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    (home / ".bashrc").touch()
    for command in commands:
        subprocess.run(["/bin/bash", "-c", f"source ~/.bashrc; ({command})"], env=env, check=True)
    return (home / "calls").read_text().splitlines()


def test_token_authentication_is_on_before_ray_starts(config: Config, home: Path) -> None:
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        calls = run_commands(home, config["initialization_commands"] + config[start])
        assert [c.split()[:2] for c in calls] == [["ray", "stop"], ["ray", "start"]]
        assert all(c.endswith(" [token]") for c in calls)
    assert "--address=10.0.0.1:6379" in calls[-1]
    assert (home / ".bashrc").read_text().count("bintally_env") == 1  # set up twice, added once
    exported = (home / ".bintally_env").read_text().splitlines()
    assert {"export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0", 'export VIRTUAL_ENV="$HOME/venv"'} <= set(exported)


def test_packages_are_installed_only_when_the_lock_changed(config: Config, home: Path) -> None:
    commands = config["initialization_commands"] + config["setup_commands"]
    packages = "uv pip install --require-hashes -r requirements.lock [token]"
    project = "uv pip install --no-deps --no-build-isolation -e . [token]"
    first_boot = [f"uv venv --python 3.11 {home}/venv [token]", packages, project]
    for lock, expected in (("a==1", first_boot), ("a==1", [project]), ("a==2", [packages, project])):
        (home / "bintally/requirements.lock").write_text(lock)
        assert [c for c in run_commands(home, commands) if c.startswith("uv ")] == expected


def test_a_broken_install_fails_and_is_tried_again(config: Config, home: Path) -> None:
    commands = config["initialization_commands"] + config["setup_commands"]
    (home / "uv/bin/uv").write_text(UV_STUB + '[ "$3" != --require-hashes ]\n')
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            run_commands(home, commands)
    assert not (home / "venv/requirements.sha256").exists()
