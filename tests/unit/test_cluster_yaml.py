"""cluster.yaml and its variants: against Ray's and EC2's own validators, and against our rules."""

import copy
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema  # type: ignore[import-untyped]  # no stubs installed
import moto
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import DEFAULT_AMI
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from bintally.errors import ConfigError
from cluster.manifests import EC2 as POD_SIZES
from cluster.render import cluster_config, merge

Config = dict[str, Any]

ROOT = Path(__file__).parents[2]
WHEN = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
COMMAND_LISTS = tuple(f"{when}_commands" for when in WHEN)
VARIANTS = (None, "cpu", "one-gpu")
GB_PER_TRIAL_ON_HEAD, GB_FOR_RAY_ON_HEAD = 2.7, 6


@pytest.fixture
def config() -> Config:
    return cluster_config()


@pytest.fixture(params=VARIANTS)
def each(request: pytest.FixtureRequest) -> Config:
    """The file and each of its variants."""
    return cluster_config(request.param)


def test_ray_accepts_the_file(each: Config) -> None:
    validate_config(prepare_config(each))


@pytest.mark.parametrize("path", [(), ("auth",), ("available_node_types", "gpu_spot")])
def test_ray_refuses_an_unknown_key(config: Config, path: tuple[str, ...]) -> None:
    section = config
    for key in path:
        section = section[key]
    section["idle_timeout_minuets"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(config))


def test_no_part_comes_from_rays_defaults(each: Config) -> None:
    prepared = prepare_config(copy.deepcopy(each))
    assert prepared.keys() - each.keys() == {"docker", "upscaling_speed"}  # none; 1.0
    assert all(isinstance(each[name], list) for name in COMMAND_LISTS)
    assert "ray-wheels" not in yaml.safe_dump(prepared)


def ec2_complaints(node_config: Config) -> str:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert shape
    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    return str(report.generate_report())


def test_node_configs_fit_run_instances(each: Config) -> None:
    complaints = {name: ec2_complaints(t["node_config"]) for name, t in each["available_node_types"].items()}
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
    config = cluster_config()
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


def in_catalogue(instance_type: str) -> Config:
    """What EC2 tells of an instance type, in the words of cluster.yaml, and its memory."""
    found = aws("ec2").meta.client.describe_instance_types(InstanceTypes=[instance_type])["InstanceTypes"][0]
    gpus = {"GPU": sum(one["Count"] for one in found["GpuInfo"]["Gpus"])} if "GpuInfo" in found else {}
    return {"CPU": found["VCpuInfo"]["DefaultVCpus"], "MiB": found["MemoryInfo"]["SizeInMiB"]} | gpus


@pytest.mark.usefixtures("resolved")
def test_each_variant_says_of_its_instances_what_the_catalogue_says(each: Config) -> None:
    types = each["available_node_types"]
    head = in_catalogue(types["head"]["node_config"]["InstanceType"])
    num_trials = 0
    for node_type in types.values():
        instance_type, resources = node_type["node_config"]["InstanceType"], node_type["resources"]
        if instance_type in POD_SIZES:
            found = in_catalogue(instance_type)
            assert POD_SIZES[instance_type] == (found["CPU"], found["MiB"] / 1024)
        if node_type is not types["head"]:
            assert in_catalogue(instance_type).items() >= resources.items()
            # a GPU for each trial, or eight CPUs
            num_trials = max(num_trials, each["max_workers"] * (resources.get("GPU") or resources["CPU"] // 8))
    assert types["head"]["resources"] == {"CPU": 0}
    assert num_trials
    assert num_trials * GB_PER_TRIAL_ON_HEAD + GB_FOR_RAY_ON_HEAD < 0.9 * head["MiB"] * 2**20 / 1e9


def test_merge_takes_away_replaces_and_leaves_alone() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(base, {"a": {"b": None, "c": [4], "e": {"f": 5}}}) == {"a": {"c": [4], "e": {"f": 5}}, "d": 3}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_variants_have_a_name_of_their_own_and_all_commands() -> None:
    base = cluster_config()
    for variant in VARIANTS[1:]:
        merged = cluster_config(variant)
        assert merged["cluster_name"] == f"bintally-{variant}"  # may run beside the others
        assert all(merged[name] == base[name] for name in COMMAND_LISTS)
    assert {t["resources"].get("GPU") for t in cluster_config("cpu")["available_node_types"].values()} == {None}
    with pytest.raises(ConfigError, match="variant must be one of cpu, one-gpu, not 'gpu'"):
        cluster_config("gpu")


def test_nodes_are_named_bounded_and_stateless(each: Config) -> None:
    provider = each["provider"]
    assert (provider["type"], provider["region"], provider["cache_stopped_nodes"]) == ("aws", "us-east-1", False)
    assert 0 < each["idle_timeout_minutes"] <= 15
    for name, node_type in each["available_node_types"].items():
        node_config = node_type["node_config"]
        assert (node_type["min_workers"], node_type["max_workers"] == 0) == (0, name == each["head_node_type"])
        assert node_config["ImageId"].startswith(("ami-", "resolve:ssm:/aws/service/"))
        assert node_config["ImageId"] not in DEFAULT_AMI.values()
        assert node_config["MetadataOptions"]["HttpTokens"] == "required"
        assert node_config["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100
        assert node_config["IamInstanceProfile"]["Name"]


def test_no_path_host_or_secret_of_ours(config: Config) -> None:
    text = "".join(path.read_text() for path in (ROOT / "cluster.yaml", *(ROOT / "cluster").glob("*.yaml")))
    assert not re.search(r"https?://|index-url|/home/|/Users/|/work/|AKIA|BEGIN [A-Z ]*KEY", text)
    assert list(config["file_mounts"].items()) == [("~/bintally", "."), ("~/.ray/auth_token",) * 2]


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
