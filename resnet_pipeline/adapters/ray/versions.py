"""What each node of a Ray cluster has: its versions beside those of this process, and whether it sees a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.ray.cluster import ray_cluster
from resnet_pipeline.errors import UserError
from resnet_pipeline.settings import ROOT_VARIABLE, variable

PACKAGES = ("resnet-pipeline", "ray", "torch", "torchvision", "nvidia-dali-cuda130", "mlflow")
"""What a worker computes with, and what is pickled between driver and workers."""

_THE_SAME = ("Python", "resnet-pipeline", "ray", "torch")
_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node: its address, CPUs and GPUs, and its versions by package, with that of Python; "none" if not installed."""

    address: str
    cpus: int
    gpus: int
    versions: dict[str, str]


def nodes_and_versions() -> tuple[dict[str, str], list[Node]]:
    """Return the versions of this process, and the nodes of the cluster that RAY_ADDRESS names.

    Raises UserError if the cluster can't be joined, or a node does not answer within a minute.

    Example: ``here, nodes = nodes_and_versions()``
    """
    versions = _reader(PACKAGES)
    with ray_cluster():
        found = [
            Node(
                address=str(node["NodeManagerAddress"]),
                cpus=int(node["Resources"].get("CPU", 0)),
                gpus=int(node["Resources"].get("GPU", 0)),
                versions=of_node,
            )
            for node, of_node in _on_each_node(versions)
        ]
    return versions(), found


def check_sees(folder: Path) -> None:
    """Raise UserError, naming it, if a node of the joined cluster that computes does not see a folder of this machine.

    Example: ``with ray_cluster(): check_sees(workspace.root)``
    """

    def sees() -> bool:
        from pathlib import Path  # a nested function travels as code, to a node that may lack this package

        return Path(path).is_dir()

    path = str(folder)
    lacking = [
        str(node["NodeManagerAddress"])
        for node, there in _on_each_node(sees)
        if node["Resources"].get("CPU") and not there
    ]
    if lacking:
        raise UserError(
            f"Ray's node {', '.join(lacking)} does not see {folder}; name a place for runs that all nodes reach with "
            f"{variable('runs')}=s3://BUCKET/PREFIX, or put {ROOT_VARIABLE} on a volume that they share"
        )


def _on_each_node(function: Callable[[], Any]) -> list[tuple[dict[str, Any], Any]]:
    """Return what a function returns on each node of the joined cluster; UserError if one does not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0)(function)
    alive = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in alive
    ]
    found = []
    for node, answer in zip(alive, answers, strict=True):
        try:
            found.append((node, ray.get(answer, timeout=_SECONDS)))
        except ray.exceptions.RayError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"Ray's node {node['NodeManagerAddress']} runs no task: {reason}") from None
    return found


def differences(
    here: Mapping[str, str], nodes: Iterable[Node], names: Sequence[str] = ("Python", *PACKAGES)
) -> list[str]:
    """Return a line for each version of a node that is not the one here, of the packages of these names.

    Example: ``differences(*nodes_and_versions())``
    """
    return [
        f"{node.address} has {name} {found}, here is {here[name]}"
        for node in nodes
        for name, found in node.versions.items()
        if name in names and found != here[name]
    ]


def check_versions() -> None:
    """Raise UserError if a node of the cluster that RAY_ADDRESS names has another version of what computes than here.

    A node without CPUs, as a cluster's head often is, computes nothing.

    What is pickled in one version may not be read by another, and the last bits of weights are PyTorch's.

    Example: ``with ray_cluster(): check_versions()``
    """
    here, nodes = nodes_and_versions()
    if found := differences(here, (node for node in nodes if node.cpus), _THE_SAME):
        raise UserError(
            f"Ray's nodes have other versions than this process: {'; '.join(found)}; install the same on all"
        )


def _reader(packages: Sequence[str]) -> Callable[[], dict[str, str]]:
    """Return a function that a node runs although it may lack this package: a nested one travels as code."""

    def versions() -> dict[str, str]:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        found = {"Python": platform.python_version()}
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "none"
        return found

    return versions
