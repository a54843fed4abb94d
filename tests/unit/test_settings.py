"""The environment's variables: read in one module, checked, documented, and shown without passwords."""

from __future__ import annotations

import ast
import os
import runpy
from pathlib import Path

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.settings import (
    Settings,
    Surroundings,
    basic_authorization,
    cleaned,
    effective,
    for_children,
    settings,
    surroundings,
    torchrun,
    variable,
    without_secrets,
)
from resnet_pipeline.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]

TOUCH_THE_ENVIRONMENT = {
    "resnet_pipeline/__init__.py": "says how long OpenMP's threads spin",
    "resnet_pipeline/settings.py": "reads it",
    "resnet_pipeline/cli/main.py": "sets the root for the flows of `demo`",
    "resnet_pipeline/services/local.py": "gives it, with additions, to servers and the worker",
    "resnet_pipeline/services/temporary_prefect.py": "sets Prefect up",
    "resnet_pipeline/adapters/mlflow/client.py": "sets MLflow up, and takes away what MLflow adds",
    "resnet_pipeline/adapters/ray/cluster.py": "sets Ray up",
    "resnet_pipeline/adapters/ray/process_group.py": "sets what torchrun would, for PyTorch",
    "resnet_pipeline/adapters/ray/worker.py": "hands the driver's timeout on to a worker",
    "resnet_pipeline/adapters/serving.py": "MLflow's sign that its server runs the model",
    "resnet_pipeline/staging/shard_pool.py": "hands it on to worker processes",
    "resnet_pipeline/models/export.py": "sets ONNX Runtime up",
    "resnet_pipeline/storage/s3_client.py": "a client serves as long as all of AWS_... stay",
    "resnet_pipeline/report/terminal.py": "COLUMNS, the terminal's",
}
"""The only modules that touch os.environ, and why."""


def modules():
    for folder in ("resnet_pipeline", "flows"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            yield path.relative_to(REPOSITORY).as_posix(), path.read_text()


@pytest.mark.slow
def test_no_other_module_reads_our_variables():
    touching = set()
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Attribute, ast.Name)):
                word = node.attr if isinstance(node, ast.Attribute) else node.id
                if word in ("environ", "environb", "getenv"):
                    touching.add(name)
            elif (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and name != "resnet_pipeline/settings.py"
            ):
                names = node.value.startswith("RESNET_PIPELINE_") and node.value.isupper() and " " not in node.value
                assert not names, f"{name} names {node.value}"
            elif isinstance(node, ast.keyword):
                assert node.arg != "envvar", f"{name} reads a variable by means of an option"
    assert touching == set(TOUCH_THE_ENVIRONMENT)


@pytest.mark.slow
def test_what_is_read_of_the_environment_elsewhere_is_none_of_ours():
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            reads = isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv")
            reads |= (
                isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Load)
                and (ast.unparse(node.value) == "os.environ")
            )
            if reads and name != "resnet_pipeline/settings.py":
                assert name == "resnet_pipeline/adapters/serving.py", f"{name}: {ast.unparse(node)}"


def test_the_table_of_settings_has_every_field_with_its_line():
    table = (REPOSITORY / "docs/operations.md").read_text()
    for field, about in Settings.model_fields.items():
        assert about.description, f"{field} has no line"
        assert f"| `{variable(field)}` | {about.description} |" in table
    assert all(about.description for about in Surroundings.model_fields.values())


def test_they_are_read_when_they_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(tmp_path / "a"))
    assert Workspace.of().root == tmp_path / "a"
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(tmp_path / "b"))
    assert Workspace.of().root == tmp_path / "b" and Workspace.of(tmp_path).root == tmp_path
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", "")
    assert Workspace.of().root == Path("work").resolve()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("CACHE_GB", "ten", "RESNET_PIPELINE_CACHE_GB=ten must be a positive number of gigabytes"),
        ("TIMEOUT", "0", "RESNET_PIPELINE_TIMEOUT must be a number of seconds from 1 to 86400, not '0'"),
        ("TIMEOUT", "nan", "RESNET_PIPELINE_TIMEOUT must be a number of seconds from 1 to 86400, not 'nan'"),
        (
            "RAY_NODES",
            "4x64",
            "RESNET_PIPELINE_RAY_NODES must be COUNTxCPUSxGPUS, as 4x64x8, groups with commas between, not '4x64'",
        ),
        ("LOADER_THREADS", "two", "RESNET_PIPELINE_LOADER_THREADS must be a whole number of at least 1, not 'two'"),
        ("LOADER_PREFETCH", "0", "RESNET_PIPELINE_LOADER_PREFETCH must be a whole number of at least 1, not '0'"),
        ("GPU_DECODING", "nvjpeg", "RESNET_PIPELINE_GPU_DECODING must be auto, regions, whole or cpu, not 'nvjpeg'"),
    ],
)
def test_an_invalid_value_is_one_line(monkeypatch, name, value, text):
    monkeypatch.setenv(f"RESNET_PIPELINE_{name}", value)
    with pytest.raises(UserError) as raised:
        settings()
    assert str(raised.value) == text


def test_torchrun_s_variables_concern_those_alone_who_ask(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "-1")
    assert surroundings().ray_address is None
    with pytest.raises(UserError, match="LOCAL_RANK must be a whole number of at least 0, not '-1'"):
        torchrun()


def test_a_file_in_the_current_folder_is_read_after_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RESNET_PIPELINE_ROOT")
    monkeypatch.setenv("RESNET_PIPELINE_TIMEOUT", "9")
    (tmp_path / ".env").write_text(
        "RESNET_PIPELINE_ROOT=there\nRESNET_PIPELINE_TIMEOUT=8\nRESNET_PIPELINE_VERSION=0.1.0\nRAY_ADDRESS=ours\n"
    )
    assert settings().timeout == 9 and Workspace.of().root == tmp_path / "there"
    assert surroundings().ray_address is None, "Ray itself would not see it"
    assert for_children() == {"RESNET_PIPELINE_ROOT": str(tmp_path / "there")}
    origins = {shown.variable.removeprefix("RESNET_PIPELINE_"): shown.origin for shown in effective()}
    assert (origins["ROOT"], origins["TIMEOUT"], origins["DATA"]) == (".env", "environment", "default")
    (tmp_path / ".env").write_bytes(b"RESNET_PIPELINE_DATA=\xff\n")
    with pytest.raises(UserError, match=r"\.env can't be read"):
        settings()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:5000/api", "http://host:5000/api"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://user:pw@host:5000/api", "http://host:5000/api"),
        ("postgresql+psycopg2://user:p@w@host/mlflow", "postgresql+psycopg2://host/mlflow"),
        ("http://user:p/w#1@host/api", "http://host/api"),
        ("http://token@host", "http://host"),
        ("user:pw@host:6379", "host:6379"),
        ("http://host/?token=abc&x=1&db_password=z", "http://host/?token=***&x=1&db_password=***"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("/data/a@b", "/data/a@b"),
        ("auto", "auto"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address, shown):
    assert without_secrets(address) == shown


def test_addresses_in_a_text_are_shown_without_their_secrets():
    text = "('http://user:pw@host/api' failed: s3://bucket/a@b, see http://host/?token=abc)"
    assert cleaned(text) == "('http://host/api' failed: s3://bucket/a@b, see http://host/?token=***"
    assert cleaned("/here/https:/user:pw@host/x is missing") == "/here/https:/host/x is missing"
    assert cleaned("no address: a@b, models:/name@candidate") == "no address: a@b, models:/name@candidate"


def test_the_header_of_a_password():
    assert basic_authorization("http://user:%70w@host/") == {"Authorization": "Basic dXNlcjpwdw=="}
    assert basic_authorization("http://host/a@b") == {}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"GOMP_SPINCOUNT": "20000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_threads_spin_for_a_while_unless_the_user_says_otherwise(monkeypatch, given, found):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is restored after the test
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(REPOSITORY / "resnet_pipeline/__init__.py"))
    assert {name: os.environ[name] for name in names if name in os.environ} == found
