"""What the environment says: this program's own variables, and those of others that it honours.

No other module reads them. They are read when they are asked for, since tests and workers change the environment. Our
own may also stand in a file ``.env`` in the current folder; the environment goes before it. Others' variables are
taken from the environment alone, since their libraries look there.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from resnet_pipeline.errors import UserError

PREFIX = "RESNET_PIPELINE_"
ENV_FILE = ".env"

ROOT_VARIABLE = f"{PREFIX}ROOT"
CACHE_VARIABLE = f"{PREFIX}CACHE"
CACHE_LIMIT_VARIABLE = f"{PREFIX}CACHE_GB"
TIMEOUT_VARIABLE = f"{PREFIX}TIMEOUT"

_WHOLE = "{variable} must be a whole number of at least 1, not {value!r}"
_POSITIVE = "{variable} must be a positive number, not {value!r}"
_NUMBER = "{variable} must be a whole number of at least 0, not {value!r}"
_MUST = {
    "cache_gb": "{variable}={value} must be a positive number of gigabytes",
    "image_mb": _POSITIVE,
    "image_megapixels": "{variable} must be a number above 0 and up to 178, not {value!r}",
    "serving_image_mb": _POSITIVE,
    "serving_image_megapixels": "{variable} must be a number above 0 and up to 178, not {value!r}",
    "serving_megapixels": _POSITIVE,
    "ray_nodes": "{variable} must be COUNTxCPUSxGPUS, as 4x64x8, groups with commas between, not {value!r}",
    "timeout": "{variable} must be a number of seconds from 1 to 86400, not {value!r}",
    "price": _POSITIVE,
    "loader_threads": _WHOLE,
    "loader_prefetch": _WHOLE,
    "gpu_decoding": "{variable} must be auto, regions, whole or cpu, not {value!r}",
    "log_format": "{variable} must be text or json, not {value!r}",
    "world_size": _WHOLE,
    "local_world_size": _WHOLE,
    "master_port": _WHOLE,
    "rank": _NUMBER,
    "local_rank": _NUMBER,
}


_GROUP = r"\d{1,4}x\d{1,4}x\d{1,3}"


class Settings(BaseSettings):
    """The variables ``RESNET_PIPELINE_...``; an empty one counts as not set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    root: Path = Path("work")
    """where everything is kept: datasets, runs, scores, reports; shared by a cluster's nodes that have no bucket"""

    data: str | None = None
    """where `--dataset NAME` is looked for: a folder, or `s3://bucket/prefix`"""

    cache: Path | None = None
    """where a node keeps the shards that it brought"""

    cache_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """the most that the cache takes, in 10⁹ bytes; the least recently used go first"""

    image_mb: float = Field(default=256, gt=0, allow_inf_nan=False)
    """the largest file of an image that is staged or predicted, in 10⁶ bytes; larger ones are refused unread"""

    image_megapixels: float = Field(default=178, gt=0, le=178)
    """the most pixels of such an image, in 10⁶; decoding takes some 10 bytes for each"""

    serving_image_mb: float = Field(default=32, gt=0, allow_inf_nan=False)
    """the largest file of an image that a served model takes, in 10⁶ bytes"""

    serving_image_megapixels: float = Field(default=50, gt=0, le=178)
    """the most pixels of an image that a served model takes, in 10⁶"""

    serving_megapixels: float = Field(default=500, gt=0, allow_inf_nan=False)
    """the most pixels in all requests that a served model has at once, in 10⁶; a request beyond it is refused"""

    mirror: str | None = None
    """a folder or `s3://` address where checkpoints are kept too, and found from another machine"""

    runs: str | None = None
    """where runs are kept for good: a folder or `s3://bucket/prefix`; each process then works in a folder of its own"""

    ray_nodes: str | None = Field(default=None, pattern=rf"^{_GROUP}(,{_GROUP})*$")
    """the nodes that the Ray cluster's autoscaler can be counted on for, `4x64x8`: 4 of 64 CPUs and 8 GPUs"""

    price: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """what an hour of all the hardware in use costs, in any currency; long work then says what it costs"""

    timeout: float = Field(default=600, ge=1, le=86_400)
    """seconds that a worker waits for the others before the attempt ends"""

    loader_threads: int | None = Field(default=None, ge=1)
    """each worker's decoding threads"""

    loader_prefetch: int | None = Field(default=None, ge=1)
    """batches that each worker prepares ahead"""

    gpu_decoding: Literal["auto", "regions", "whole", "cpu"] = "auto"
    """how a GPU gets its crops: regions or whole images decoded there, or by the `cpu`; `auto`: the first that works"""

    log_format: Literal["text", "json"] = "text"
    """`json` writes messages and progress as JSON lines, with run, rank and step; a command's last error stays text"""

    revision: str | None = None
    """the commit that an installed package was built from, where there is no checkout; the image sets it"""


class Surroundings(BaseSettings):
    """Variables of others that this program honours; an empty one counts as not set."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, use_attribute_docstrings=True)

    ray_address: str | None = None
    """the Ray cluster that is joined; none: one is started on this machine"""

    ray_use_tls: str | None = None
    """whether Ray's nodes speak TLS"""

    omp_wait_policy: str | None = None
    """how OpenMP's threads wait for one another, `PASSIVE` or `ACTIVE`; none: as `GOMP_SPINCOUNT` says"""

    gomp_spincount: str | None = None
    """how long OpenMP's threads spin before they sleep; the package sets it if the user sets neither of the two"""

    ray_tmpdir: str | None = None
    """where Ray keeps its sockets and logs; none: TMPDIR, else /tmp"""

    tmpdir: str | None = None
    """where programs keep what is temporary"""

    mlflow_tracking_uri: str | None = None
    """MLflow's server; none: a SQLite file under the root"""

    prefect_api_url: str | None = None
    """the API of Prefect's server"""

    aws_endpoint_url: str | None = None
    """the S3 server; none: AWS"""


class Torchrun(BaseSettings):
    """What torchrun tells its processes; apart, since only a process that joins a group of them should mind it."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, use_attribute_docstrings=True)

    rank: int = Field(default=0, ge=0)
    """the number of this process"""

    world_size: int = Field(default=1, ge=1)
    """the number of processes"""

    local_rank: int = Field(default=0, ge=0)
    """the number of this process on its machine"""

    local_world_size: int = Field(default=1, ge=1)
    """the number of processes on its machine"""

    master_addr: str | None = None
    """the machine of rank 0, where all meet"""

    master_port: int | None = None
    """a free port there"""


_Read = TypeVar("_Read", bound=BaseSettings)


def settings() -> Settings:
    """Return this program's settings as they are now; UserError, naming the variable, if one has no valid value.

    Example: ``settings().timeout``
    """
    return _read(Settings)


def surroundings() -> Surroundings:
    """Return others' variables as they are now; UserError, naming the variable, if one has no valid value."""
    return _read(Surroundings)


def torchrun() -> Torchrun:
    """Return what torchrun says, as it is now; UserError, naming the variable, if one has no valid value."""
    return _read(Torchrun)


def variable(field: str) -> str:
    """Return the environment variable of a field of Settings.

    >>> variable("mirror")
    'RESNET_PIPELINE_MIRROR'
    """
    return f"{PREFIX}{field.upper()}"


def for_children() -> dict[str, str]:
    """Return the variables that ``.env`` sets and the environment does not: a process elsewhere would not see them.

    Raises UserError as ``settings`` does.
    """
    now = settings()
    found = {}
    for field in sorted(now.model_fields_set):
        if not os.environ.get(variable(field)):
            value = getattr(now, field)
            found[variable(field)] = str(value.expanduser().absolute() if isinstance(value, Path) else value)
    return found


_OF_A_RUN = (variable("runs"), TIMEOUT_VARIABLE, "RAY_ADDRESS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def for_driver() -> dict[str, str]:
    """Return the variables that what directs a training has from whoever started it, and not from its own node.

    Example: ``for_driver().get("RAY_ADDRESS")``
    """
    everything = {**for_children(), **os.environ}
    return {name: value for name, value in everything.items() if name in _OF_A_RUN or name.startswith("RAY_TRAIN_")}


@dataclass(frozen=True)
class Shown:
    """A setting as ``doctor`` shows it: its variable, its value without passwords, and where that is from."""

    variable: str
    value: str
    origin: str


def effective() -> Iterator[Shown]:
    """Yield all settings and the servers that others' variables name; UserError as ``settings`` raises it.

    Example: ``[shown.variable for shown in effective()]``
    """
    own, others = settings(), surroundings()
    servers = ("ray_address", "mlflow_tracking_uri", "prefect_api_url", "aws_endpoint_url")
    fields: list[tuple[BaseSettings, str, str]] = [(own, field, variable(field)) for field in Settings.model_fields]
    fields += [(others, field, field.upper()) for field in servers]
    for holder, field, name in fields:
        value = getattr(holder, field)
        if field not in holder.model_fields_set:
            origin = "default"
        else:
            origin = "environment" if os.environ.get(name) or holder is others else ENV_FILE
        yield Shown(name, "not set" if value is None else without_secrets(str(value)), origin)


_SCHEME = r"(?:[\w.+-]+://|(?:https?|ftp|s3):/)"  # with one slash, as a path writes an address


def without_secrets(address: str) -> str:
    """Return an address fit to show: without ``user:password@``, and with the values of secret parameters masked.

    >>> without_secrets("http://me:secret@host/api?token=abc")
    'http://host/api?token=***'
    """
    address = re.sub(rf"^((?:{_SCHEME})?)[^/?#\s]*@", r"\1", address)
    # a password may hold what should have been quoted: all up to the last @ goes, unless a port comes first
    address = re.sub(rf"^({_SCHEME})[^/@\s:]*:(?!\d+(?:[/?#]|$))\S*@", r"\1", address)
    return re.sub(r"(?i)([?&][^=&#]*(?:passw|pwd|secret|token|key|signature)[^=&#]*=)[^&#]*", r"\1***", address)


def cleaned(text: str) -> str:
    """Return a text in which addresses are fit to show, as `without_secrets` has it.

    >>> cleaned("no answer from http://me:secret@host/api")
    'no answer from http://host/api'
    """
    return re.sub(rf"{_SCHEME}[^\s'\"<>]+", lambda found: without_secrets(found[0]), text)


def basic_authorization(address: str) -> dict[str, str]:
    """Return the HTTP header that stands for an address's ``user:password@``; empty if it has none.

    >>> basic_authorization("http://me:secret@host/api")
    {'Authorization': 'Basic bWU6c2VjcmV0'}
    """
    found = re.match(r"[\w.+-]+://([^/?#\s]*)@", address)
    if not found:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(unquote(found[1]).encode()).decode()}"}


def _read(kind: type[_Read]) -> _Read:
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        raise UserError(_explained(kind, field, first)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{Path(ENV_FILE).absolute()} can't be read: {error}") from None


def _explained(kind: type[BaseSettings], field: str, first: Any) -> str:
    name = f"{kind.model_config.get('env_prefix', '')}{field}".upper()
    must = _MUST.get(field, "{variable}={value!r} is not valid: " + first["msg"].replace("{", "{{").replace("}", "}}"))
    text: str = must.format(variable=name, value=first["input"])
    return text
