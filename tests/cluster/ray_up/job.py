"""The job of the rehearsal: a CPU node comes, a spot GPU node comes, and is taken back."""

import time
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

ray.init(log_to_driver=False)


@ray.remote(num_cpus=1)
def where() -> dict[str, Any]:
    """The labels of the node on which this runs."""
    return dict(ray.get_runtime_context().get_node_labels())


cpu_node = ray.get(where.options(label_selector={"market": "on-demand"}).remote())
print("cpu:", cpu_node["market"], cpu_node["ray.io/node-group"], flush=True)
group = placement_group([{"GPU": 1, "CPU": 1}] * 4, strategy="STRICT_PACK")
ray.get(group.ready())
gpu_node = ray.get(where.options(num_gpus=1, placement_group=group).remote())
print("gpu:", gpu_node["market"], gpu_node["ray.io/node-group"], gpu_node["ray.io/node-id"], flush=True)
while not (due_ms := ray._private.state.state.get_draining_nodes().get(gpu_node["ray.io/node-id"])):  # noqa: SLF001  # as Train does
    time.sleep(0.2)
print("seconds left:", round(due_ms / 1000 - time.time()), flush=True)
remove_placement_group(group)
