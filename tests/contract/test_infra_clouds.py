"""infra/aws/ and infra/slurm/: rights that are enough and no more, a file that Ray's launcher takes, a script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from resnet_pipeline.settings import Settings, variable
from tests.contract.test_infra import INFRA, ROOT

AWS = INFRA / "aws"
SBATCH = INFRA / "slurm/train.sbatch"
CLUSTER: dict[str, Any] = yaml.safe_load((AWS / "ray-cluster.yaml").read_text())
TRAINER = """
import json, os, sys

names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"]
print(json.dumps([[os.environ[name] for name in names], 20000 <= int(os.environ["MASTER_PORT"]) < 40000, sys.argv[1:]]))
"""
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


def refusal(call: Callable[..., Any], **arguments: Any) -> str:
    """Return the code of what AWS answers, empty if it does what it is asked."""
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_bucket_s_rights_are_enough_and_no_more() -> None:
    """Moto makes the stack, and then asks its own IAM at every call."""
    from moto import mock_aws
    from moto.core import set_initial_no_auth_action_count

    with mock_aws():
        cloud, iam, root = (boto3.client(name, **KEYS) for name in ("cloudformation", "iam", "s3"))
        parameters = [{"ParameterKey": "Bucket", "ParameterValue": "our-bucket"}]
        text = (AWS / "storage.yaml").read_text()
        cloud.create_stack(
            StackName="s", TemplateBody=text, Parameters=parameters, Capabilities=["CAPABILITY_NAMED_IAM"]
        )
        root.create_bucket(Bucket="another")
        root.put_object(Bucket="another", Key="theirs", Body=b"x")
        (policy,) = (one for one in iam.list_policies(Scope="Local")["Policies"])
        iam.create_user(UserName="u")
        iam.attach_user_policy(UserName="u", PolicyArn=policy["Arn"])
        key = iam.create_access_key(UserName="u")["AccessKey"]
        own = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
        s3, ec2 = (boto3.client(name, **{**KEYS, **own}) for name in ("s3", "ec2"))

        @set_initial_no_auth_action_count(0)
        def asked() -> None:
            ours = {"Bucket": "our-bucket", "Key": "datasets/x/manifest.json"}
            assert not refusal(s3.put_object, **ours, Body=b"x")
            assert not refusal(s3.get_object, **ours)
            assert not refusal(s3.head_object, **ours)
            assert not refusal(s3.list_objects_v2, Bucket="our-bucket")
            assert not refusal(s3.list_multipart_uploads, Bucket="our-bucket")
            assert not refusal(s3.delete_object, **ours)
            for refused in (
                refusal(s3.get_object, Bucket="another", Key="theirs"),
                refusal(s3.put_object, Bucket="another", Key="x", Body=b"x"),
                refusal(s3.list_objects_v2, Bucket="another"),
                refusal(s3.delete_bucket, Bucket="our-bucket"),
                refusal(s3.put_bucket_policy, Bucket="our-bucket", Policy="{}"),
                refusal(s3.list_buckets),
                refusal(ec2.describe_instances),
            ):
                assert refused in {"AccessDenied", "UnauthorizedOperation", "AllAccessDisabled"}

        asked()


def test_the_rights_are_those_that_the_documents_name() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    (paragraph,) = re.findall(r"^The user needs (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    whole = (AWS / "storage.yaml").read_text()
    assert whole.count(": true\n") == 4 and "AbortIncompleteMultipartUpload" in whole, "moto takes none of these in"
    assert whole.count("ManagedPolicyArns: [!Ref ReadAndWrite]") == 2 and whole.count("Policies:") == 1
    template = whole.partition("ReadAndWrite:")[2].partition("Worker:")[0]
    assert set(re.findall(r"s3:\w+", template)) == set(re.findall(r"s3:\w+", paragraph))


def test_ray_s_launcher_takes_the_cluster_s_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(CLUSTER))
    known = {variable(field) for field in Settings.model_fields}
    settings = dict(re.findall(r"-e (\w+)=(\S+)", "\n".join(CLUSTER["docker"]["run_options"])))
    assert {name for name in settings if name.startswith("RESNET_PIPELINE_")} <= known
    gpu = CLUSTER["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0
    nodes = f"{gpu['max_workers']}x{gpu['resources']['CPU']}x{gpu['resources']['GPU']}"
    assert settings[variable("ray_nodes")] == nodes
    profiles = set(re.findall(r"InstanceProfileName: (\S+)", (AWS / "storage.yaml").read_text()))
    types = CLUSTER["available_node_types"].values()
    assert {kind["node_config"]["IamInstanceProfile"]["Arn"].rpartition("/")[2] for kind in types} == profiles
    assert CLUSTER["max_workers"] == sum(kind.get("max_workers", 0) for kind in types)
    assert f"ray-cluster-name: {CLUSTER['cluster_name']}" in (AWS / "storage.yaml").read_text()


def test_slurm_s_script_starts_a_process_for_each_gpu_of_each_node(tmp_path: Path) -> None:
    """Without Slurm: an srun and a scontrol of the test's own; what srun starts has Slurm's variables."""
    tasks = 4
    (tmp_path / "resnet-pipeline").write_text(f"#!{sys.executable}\n{TRAINER}")
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    (tmp_path / "srun").write_text(
        "#!/bin/bash\n[[ $1 == --kill-on-bad-exit=1 ]] && shift\n"
        "for ((n = 0; n < SLURM_NTASKS; n++)); do\n"
        '  SLURM_PROCID=$n SLURM_LOCALID=$((n % SLURM_NTASKS_PER_NODE)) "$@"\ndone\n'
    )
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": "2",
    }
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RESNET_PIPELINE_RUNS": "s3://b/runs", **slurm}
    command = ["bash", SBATCH, "imagenet/resnet50", "--dataset", "two words"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    started = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one[0] for one in started] == [[str(n), str(tasks), str(n % 2), "2", "n1"] for n in range(tasks)]
    words = ["train", "imagenet/resnet50", "--dataset", "two words", "--launcher", "torchrun"]
    assert all(one[1:] == [True, words] for one in started)
    del environment["RESNET_PIPELINE_RUNS"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("set RESNET_PIPELINE_RUNS")
