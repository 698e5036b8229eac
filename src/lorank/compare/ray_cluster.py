"""Cells on a Ray cluster in place of processes of this machine (`lorank compare --engine ray`, extra `lorank[ray]`)."""

import os
from pathlib import Path

from lorank.compare.launch import Launch, environment_of, in_process
from lorank.errors import ComparisonError


def on_ray(processes: int) -> Launch:
    """A launcher that gives each cell to Ray as a task of its own, and waits for it.

    The cluster is the one that `RAY_ADDRESS` names, else a new one on this machine. Every node needs lorank and sees the working
    folder, the grid's and the data under the same paths. A cell gets its share of the cluster's cores, no more than the largest
    node has, and one GPU where the cluster has any.

    Args:
        processes: cells at a time.

    Raises:
        ComparisonError: Ray is not installed.

    """
    try:
        import ray
    except ImportError:
        raise ComparisonError(
            "engine ray needs the package ray: pip install 'lorank[ray]'; or leave --engine out to run on this machine"
        ) from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves cells on a machine that does anything else
        ray.init(log_to_driver=False, include_dashboard=False)
    most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    cores = max(1, min(int(most), int(ray.cluster_resources()["CPU"]) // processes))
    working = Path.cwd()
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0

    @ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=0)
    def run(folder: str) -> int:
        return in_process(Path(folder), environment_of(cores), working)

    return lambda folder: int(ray.get(run.remote(str(folder.resolve()))))
