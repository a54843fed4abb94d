"""Every setting that infra/ gives is read by the program that gets it, and every setting that is read is documented."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_pipeline.settings import PREFIX, Settings, Surroundings, Torchrun, variable
from tests.contract.test_infra import (
    BACKUP,
    DOCKERFILE,
    INFRA,
    METRICS,
    ROOT,
    SECRETS,
    SERVICES,
    containers,
    of_kind,
    secrets_of,
)

PACKAGES = Path(sysconfig.get_paths()["purelib"])
READERS = {
    # by the beginning of a variable's name: the packages that may read it, among those that are installed here
    "RAY_": ["ray"],
    "MLFLOW_": ["mlflow"],
    "AWS_": ["botocore"],
    "PG": ["asyncpg"],
    "GIT_PYTHON_": ["git"],
}
BY_HAND = {
    # read by programs that are not Python packages, or not here
    "POSTGRES_USER": "the image of PostgreSQL",
    "POSTGRES_DB": "the image of PostgreSQL",
    "POSTGRES_PASSWORD": "the image of PostgreSQL",
    "POSTGRES_PASSWORD_FILE": "the image of PostgreSQL",
    "PGDATA": "the image of PostgreSQL",
    "PGHOST": "libpq",
    "PGUSER": "libpq",
    "GF_SECURITY_ADMIN_PASSWORD__FILE": "Grafana",
    "GF_ANALYTICS_REPORTING_ENABLED": "Grafana",
    "GF_ANALYTICS_CHECK_FOR_UPDATES": "Grafana",
    "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "Grafana",
    "NVIDIA_VISIBLE_DEVICES": "NVIDIA's Container Toolkit",
    "NVIDIA_DRIVER_CAPABILITIES": "NVIDIA's Container Toolkit",
    "PYTHONUNBUFFERED": "Python",
    "PATH": "the system",
    "PIP_NO_CACHE_DIR": "pip",
    "PIP_DISABLE_PIP_VERSION_CHECK": "pip",
}
UNKNOWN_PROGRAMS = {"mini"}  # SeaweedFS's, whose program is not here


def given() -> Iterator[tuple[str, str]]:
    """Yield each variable that a file of infra/ sets, and where."""
    for name, service in [*SERVICES.items(), *BACKUP["services"].items(), *METRICS["services"].items()]:
        for setting in [*service.get("environment", {}), *secrets_of(service)]:
            yield setting, f"compose {name}"
    for name, container in containers():
        for entry in container.get("env", []):
            yield entry["name"], f"kuberay {name}"
    for cluster in of_kind("RayCluster"):
        for entry in cluster["spec"]["autoscalerOptions"]["env"]:
            yield entry["name"], "kuberay autoscaler"
    for setting in re.findall(r"- -e (\w+)=", (INFRA / "aws/ray-cluster.yaml").read_text()):
        yield setting, "aws"
    for block in re.findall(r"^ENV ((?:.*\\\n| +#.*\n)*.*)$", DOCKERFILE, re.MULTILINE):
        for setting in re.findall(r"(?:^|\s)([A-Z_]+)=", block):
            yield setting, "Dockerfile"


@functools.cache
def sources_of(package: str) -> str:
    """Return the strings in a package's modules, and what is quoted with a variable's name in its compiled ones."""
    found = subprocess.run(
        ["grep", "-rhoE", "--include=*.py", """["'][A-Z][A-Z_0-9]+["']""", str(PACKAGES / package)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return found + "".join(_printable(path) for path in (PACKAGES / package).glob("_raylet.so"))


def _printable(path: Path) -> str:
    return "".join(f'"{name.decode()}"\n' for name in re.findall(rb"RAY_[A-Za-z_]+", path.read_bytes()))


def is_read(setting: str) -> bool:
    from prefect.settings import Settings as PrefectSettings
    from prefect.settings.legacy import _get_settings_fields

    if setting in BY_HAND:
        return True
    if setting.startswith(PREFIX):
        ours = {variable(field) for field in Settings.model_fields}
        scripts = "".join(path.read_text() for path in INFRA.glob("*.sh"))
        return setting in ours or re.search(rf"\$\{{{setting}\b", scripts) is not None
    if setting.startswith("PREFECT_"):
        return setting in _get_settings_fields(PrefectSettings)
    if setting == "S3_BUCKET":
        return all('os.environ["S3_BUCKET"]' in (INFRA / name).read_text() for name in ("make-bucket.py", "bucket.py"))
    packages = next((found for start, found in READERS.items() if setting.startswith(start)), [])
    return any(re.search(rf"[\"']{setting}[\"']", sources_of(package)) for package in packages)


@pytest.mark.slow
def test_every_variable_that_is_set_is_read() -> None:
    unread = {f"{setting} of {where}" for setting, where in given() if not is_read(setting)}
    assert not unread
    assert not {setting for setting in BY_HAND if setting not in {setting for setting, _ in given()}}
    assert is_read("MLFLOW_TRACKING_URI")
    for misspelt in (
        "RESNET_PIPELINE_RUN",
        "PREFECT_APIURL",
        "RAY_TOKEN",
        "MLFLOW_ALLOWED_HOSTS",
        "AWS_REGION_DEFAULT",
    ):
        assert not is_read(misspelt)


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, service in SERVICES.items():
        yield f"compose {name}", [str(word) for word in service.get("command", [])]
        yield f"compose {name}'s check", [str(word) for word in service.get("healthcheck", {}).get("test", [])[1:]]
    for name, container in containers():
        yield f"kuberay {name}", container.get("args", [])
    for cluster in of_kind("RayCluster"):
        groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
        for group in groups:
            yield (
                f"kuberay {group.get('groupName', 'head')}",
                ["ray", "start", *(f"--{o}" for o in group["rayStartParams"])],
            )
    launched = yaml.safe_load((INFRA / "aws/ray-cluster.yaml").read_text())
    for line in launched["head_start_ray_commands"] + launched["worker_start_ray_commands"]:
        yield "aws", line.split()
    for path in sorted(INFRA.glob("**/*.s*h")):
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(
            r"^ *(?:until |exec |srun )?((?:ray|prefect|mlflow|resnet-pipeline) .*)$", text, re.MULTILINE
        ):
            yield path.name, re.split(r" (?:[&>]|\|\|)", line)[0].split()


@functools.cache
def options_of(*command: str) -> str:
    """Return the options of a command, or the help that has them."""
    if command[0] in ("ray", "mlflow", "resnet-pipeline"):
        found = _click(command[0])
        for word in command[1:]:
            found = found.commands[word]
        return " ".join(option for parameter in found.params for option in [*parameter.opts, *parameter.secondary_opts])
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/local/bin")
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": "300", "TERM": "dumb"}
    done = subprocess.run(
        [program, *command[1:], "--help"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def _click(program: str) -> Any:
    if program == "ray":
        from ray.scripts.scripts import cli
    elif program == "mlflow":
        from mlflow.cli import cli
    else:
        import typer

        from resnet_pipeline.cli.main import app

        return typer.main.get_command(app)
    return cli


@pytest.mark.slow
def test_programs_know_the_options_that_they_are_given() -> None:
    seen = set()
    for where, command in commands():
        if not command or command[0].startswith("/opt/infra/") or command[0] in UNKNOWN_PROGRAMS | {"wget"}:
            continue
        options = {word.partition("=")[0] for word in command if re.match(r"--[a-z]", word)}
        first = next(
            (at for at, word in enumerate(command) if not re.fullmatch(r"[a-z-]+", word) or word[0] == "-"), None
        )
        text = options_of(*(command[:1] if command[0].startswith("pg_") else command[:first]))
        assert not {option for option in options if not re.search(rf"{option}(?![\w-])", text)}, f"{where}: {command}"
        seen.add(command[0])
    assert seen >= {"ray", "prefect", "mlflow", "resnet-pipeline"}


def test_every_variable_that_is_read_is_documented() -> None:
    """Ours are in a table of their own, with its test in tests/unit/test_settings.py."""
    text = (ROOT / "docs/operations.md").read_text()
    for field, about in Surroundings.model_fields.items():
        assert f"| `{field.upper()}` | {about.description} |" in text
    assert not {field.upper() for field in Torchrun.model_fields if f"{field.upper()}" not in text}
    assert not {name for name in re.findall(rf"{PREFIX}[A-Z_]+(?=:-)", (INFRA / "prefect-worker.sh").read_text())
                if name not in text}  # fmt: skip
    documents = "".join(path.read_text() for path in [*(ROOT / "docs").glob("*.md"), *INFRA.glob("**/*.md")])
    assert not {secret for secret in SECRETS if secret not in documents and not secret.startswith("AWS_")}
