"""infra/databases.sh and infra/bucket.py: what they saved comes back, from PostgreSQL and an S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.integration.postgres import server, sql
from tests.s3_server import KEYS

pytestmark = [pytest.mark.integration, pytest.mark.slow]

INFRA = Path(__file__).parents[2] / "infra"


@pytest.fixture(scope="module")
def postgres() -> Iterator[dict[str, str]]:
    """Return the variables that name a server with the databases prefect and mlflow."""
    with server() as variables:
        yield variables


def databases(variables: dict[str, str], what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [INFRA / "databases.sh", what, folder]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_both_databases_come_back_as_they_were(postgres: dict[str, str], tmp_path: Path) -> None:
    for database in ("prefect", "mlflow"):
        sql(postgres, database, "CREATE EXTENSION pg_trgm")  # as Prefect does
        sql(postgres, database, f"CREATE TABLE run AS SELECT n, 'of {database}' AS who FROM generate_series(1, 1000) n")
    saved = databases(postgres, "backup", tmp_path / "backup")
    assert saved.returncode == 0, saved.stderr
    sql(postgres, "mlflow", "DROP TABLE run; CREATE TABLE newer (n int)")
    sql(postgres, "prefect", "DELETE FROM run WHERE n > 10")
    restored = databases(postgres, "restore", tmp_path / "backup")
    assert restored.returncode == 0, restored.stderr
    for database in ("prefect", "mlflow"):
        assert sql(postgres, database, "SELECT count(*), sum(n), min(who) FROM run") == f"1000|500500|of {database}"
    assert sql(postgres, "mlflow", "SELECT count(*) FROM pg_tables WHERE tablename = 'newer'") == "0"
    assert not list((tmp_path / "backup").glob("*.new"))


def test_a_damaged_backup_leaves_the_databases_alone(postgres: dict[str, str], tmp_path: Path) -> None:
    for database in ("prefect", "mlflow"):
        sql(postgres, database, "CREATE TABLE IF NOT EXISTS kept AS SELECT n FROM generate_series(1, 50000) n")
    assert databases(postgres, "backup", tmp_path).returncode == 0
    dump = tmp_path / "mlflow.dump"
    dump.write_bytes(dump.read_bytes()[:-5000])
    assert databases(postgres, "restore", tmp_path).returncode != 0
    assert sql(postgres, "mlflow", "SELECT count(*) FROM kept") == "50000"
    dump.write_bytes(b"no archive")
    refused = databases(postgres, "restore", tmp_path)
    assert refused.returncode == 2 and refused.stderr.endswith(f"{dump} is no archive of pg_dump\n")
    assert databases(postgres, "remove", tmp_path).returncode == 2


def bucket(variables: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, INFRA / "bucket.py", *arguments],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_bucket_comes_back_whatever_its_keys_are(s3_server: tuple[str, int], tmp_path: Path) -> None:
    address = "http://{}:{}".format(*s3_server)
    variables = {**KEYS, "AWS_ENDPOINT_URL": address, "S3_BUCKET": "to-back-up"}
    client = boto3.client("s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test",
                          region_name="us-east-1")  # fmt: skip
    client.create_bucket(Bucket="to-back-up")
    objects = {"runs/a": b"a", "runs/a/b": b"below a", "../../escape": b"x", "mlflow/0/é ü.txt": os.urandom(9_000_000)}
    for key, content in objects.items():
        client.put_object(Bucket="to-back-up", Key=key, Body=content)
    first = bucket(variables, "backup", tmp_path / "copy")
    assert "4 objects copied, 0 were there" in first.stdout, first.stderr
    client.put_object(Bucket="to-back-up", Key="runs/a", Body=b"changed")
    client.delete_object(Bucket="to-back-up", Key="runs/a/b")
    assert "1 objects copied, 2 were there" in bucket(variables, "backup", tmp_path / "copy").stdout
    assert not (tmp_path.parent / "escape").exists() and len(list((tmp_path / "copy/objects").iterdir())) == 3
    for key in objects:
        client.delete_object(Bucket="to-back-up", Key=key)
    back = bucket(variables, "restore", tmp_path / "copy")
    assert "3 objects copied, 0 were there" in back.stdout, back.stderr
    for key, content in {**objects, "runs/a": b"changed"}.items():
        if key != "runs/a/b":
            assert client.get_object(Bucket="to-back-up", Key=key)["Body"].read() == content
    damaged = max((tmp_path / "copy/objects").iterdir(), key=lambda path: path.stat().st_size)
    damaged.write_bytes(b"damaged")
    refused = bucket(variables, "restore", tmp_path / "copy")
    assert refused.returncode == 2 and "the copy of mlflow/0/é ü.txt is damaged" in refused.stderr
    assert bucket(variables, "restore", tmp_path / "nowhere").returncode == 2
