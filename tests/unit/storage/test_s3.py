from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
import botocore.utils
import numpy as np
import pytest
from dateutil.parser import parse

from resnet_pipeline.errors import UnavailableError, UserError
from resnet_pipeline.storage import s3, s3_client, storage_at
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.storage.s3 import S3Storage
from tests.proxy import Proxy
from tests.s3_server import TroubledServer, settings

BIG = np.random.default_rng(0).bytes(2 * s3.PART + 12345)


@pytest.fixture
def storage(bucket):
    return storage_at(f"s3://{bucket}/some/prefix/")


@pytest.fixture
def quick(monkeypatch):
    """Wait for a server as often as ever, but shortly."""
    monkeypatch.setattr(s3_client, "_WAIT", 0.001)
    monkeypatch.setattr(s3_client, "_LONGEST_WAIT", 0.05)


@pytest.fixture
def impatient(quick, monkeypatch):
    """And not for long."""
    monkeypatch.setattr(s3_client, "_PATIENCE", 0.1)


@pytest.fixture
def troubled():
    server = TroubledServer()
    with settings(AWS_ENDPOINT_URL=server.url, AWS_MAX_ATTEMPTS="1"):
        yield server
    server.close()


def client():
    return boto3.session.Session().client("s3")


def error_of(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_a_bucket_and_a_folder_behave_alike(kind, bucket, tmp_path):
    storage = pickle.loads(pickle.dumps(storage_at(f"s3://{bucket}" if kind == "bucket" else tmp_path / "folder")))
    assert storage.files() == [] and storage.stat("a/b") is None
    (tmp_path / "file").write_bytes(b"from a file")
    storage.write("a/b", b"0123456789")
    storage.write("a-b", tmp_path / "file")
    storage.write("empty", b"")
    assert [(s.name, s.size) for s in storage.files()] == [("a-b", 11), ("a/b", 10), ("empty", 0)]
    assert [s.name for s in storage.files("a/")] == ["a/b"]
    first = storage.stat("a/b")
    assert first in storage.files() and first.size == 10
    whole, part, tail = storage.read("a/b"), storage.read("a/b", 2, 3), storage.read("a/b", 8, 10)
    assert (whole, part, tail) == (b"0123456789", b"234", b"89")
    assert storage.read("a/b", 10, 5) == storage.read("empty") == storage.read("a/b", 3, 0) == b""
    with storage.open("a-b") as file:
        assert file.read(4) == b"from" and file.seek(-4, io.SEEK_END) == 7 and file.read() == b"file"
    storage.write("a/b", b"other")
    assert storage.stat("a/b").version != first.version and storage.read("a/b") == b"other"
    storage.delete("a/b")
    storage.delete("a/b")
    assert storage.stat("a/b") is None
    assert "none" in error_of(lambda: storage.read("none")) and "none" in error_of(lambda: storage.open("none"))


def test_addresses():
    assert storage_at("s3://bucket/a/b/") == S3Storage("bucket", "a/b")
    assert storage_at("s3://bucket").url == "s3://bucket" and storage_at("s3://bucket/x").url == "s3://bucket/x"
    assert isinstance(storage_at("some/folder"), LocalStorage)
    for wrong in ("s3://", "s3:///x", "s3://a b/x"):
        assert "s3://BUCKET/PREFIX" in error_of(lambda wrong=wrong: storage_at(wrong))


@pytest.mark.slow
def test_a_large_file_goes_up_in_parts_and_comes_back_the_same(storage, tmp_path):
    (tmp_path / "big").write_bytes(BIG)
    where = {"Bucket": storage.bucket, "Key": "some/prefix/big"}
    client().create_multipart_upload(**where)  # what a killed upload leaves
    storage.write("big", tmp_path / "big")
    assert client().head_object(**where)["ETag"].endswith('-3"')
    assert "Uploads" not in client().list_multipart_uploads(Bucket=storage.bucket)
    assert storage.read("big") == BIG and storage.read("big", s3.PART - 5, 10) == BIG[s3.PART - 5 : s3.PART + 5]


@pytest.mark.slow
def test_more_objects_than_a_page_are_listed(storage, monkeypatch):
    for i in range(7):
        storage.write(f"{i}", b"x")
    client().put_object(Bucket=storage.bucket, Key="some/prefix/folder/", Body=b"")
    client().put_object(Bucket=storage.bucket, Key="some/prefix-of-another", Body=b"")
    pages = []
    original = s3_client.client().get_paginator

    def paged(name):
        paginator = original(name)
        paginate = paginator.paginate
        paginator.paginate = lambda **k: (pages.append(p) or p for p in paginate(**k, PaginationConfig={"PageSize": 3}))
        return paginator

    monkeypatch.setattr(s3_client.client(), "get_paginator", paged)
    assert [s.name for s in storage.files()] == [str(i) for i in range(7)] and len(pages) == 3


@pytest.mark.slow
def test_a_file_reads_ahead_and_jumps(storage):
    content = BIG[: 3 * 2**20]
    storage.write("file", content)
    rng = np.random.default_rng(1)
    with storage.open("file") as file:
        while data := file.read(int(rng.integers(1, 400_000))):
            assert content[file.tell() - len(data) : file.tell()] == data
        assert file.tell() == len(content)
        for at in rng.integers(0, len(content), 20):
            file.seek(int(at))
            assert file.read(1000) == content[at : at + 1000]


@pytest.mark.slow
def test_a_tar_is_read_from_a_bucket_as_from_a_file(storage):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(20):
            info = tarfile.TarInfo(f"member-{i}")
            info.size = 30_000 * i
            tar.addfile(info, io.BytesIO(BIG[: info.size]))
    storage.write("x.tar", buffer.getvalue())
    with storage.open("x.tar") as file, tarfile.open(fileobj=file) as tar:
        for i, member in enumerate(tar):
            assert tar.extractfile(member).read() == BIG[: 30_000 * i]


def test_an_open_file_that_is_replaced_says_so(storage):
    storage.write("file", BIG[: 2**20])
    with storage.open("file") as file:
        file.read(10)
        storage.write("file", BIG[1 : 2**20])
        assert "file: it changed while it was read" in error_of(file.read)


@pytest.mark.slow
def test_a_cut_connection_is_taken_up_where_it_was(storage, s3_server, impatient):
    storage.write("big", BIG[: 5 * 2**20])
    proxy = Proxy(*s3_server, after=2**20, cuts=3)
    with settings(AWS_ENDPOINT_URL=proxy.url):
        assert storage.read("big", 100) == BIG[100 : 5 * 2**20]
    proxy.close()
    assert proxy.done == 3


@pytest.mark.slow
def test_a_range_comes_in_pieces_that_are_no_copies_of_it(storage, s3_server, impatient):
    storage.write("big", BIG[: 5 * 2**20])
    proxy = Proxy(*s3_server, after=3 * 2**19, cuts=1)
    with settings(AWS_ENDPOINT_URL=proxy.url):
        pieces = storage.pieces("big", 100, 3 * 2**20)
    proxy.close()
    assert proxy.done == 1
    assert b"".join(pieces) == BIG[100 : 100 + 3 * 2**20]
    assert len(pieces) >= 4 and max(map(len, pieces)) <= 2**20
    assert storage.pieces("big", 5 * 2**20, 10) == storage.pieces("big", 3, 0) == []


@pytest.mark.slow
def test_a_connection_that_is_cut_again_and_again_ends_with_an_error(storage, s3_server, impatient):
    storage.write("big", BIG[: 2**20])
    proxy = Proxy(*s3_server, after=600, cuts=10**9)
    with settings(AWS_ENDPOINT_URL=proxy.url), pytest.raises(UnavailableError) as error:
        storage.read("big")
    said = f"s3://{storage.bucket}/some/prefix/big: the connection was cut again and again"
    assert str(error.value).startswith(said)
    proxy.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [("500 Internal Server Error", "InternalError"), ("503 Slow Down", "SlowDown"), ("429 Busy", "TooManyRequests")],
)
def test_a_server_in_trouble_is_asked_again_until_it_is_well(storage, tmp_path, troubled, quick, answer):
    (tmp_path / "big").write_bytes(BIG)
    storage.write("first", b"here")
    for call, expected in (
        (lambda: storage.read("first"), b"here"),
        (lambda: storage.stat("first").size, 4),
        (lambda: storage.write("big", tmp_path / "big"), None),
        (lambda: [stored.name for stored in storage.files()], ["big", "first"]),
        (lambda: storage.delete("first"), None),
    ):
        troubled.answers.extend([answer] * 2 * s3_client._TRIES)
        assert call() == expected
        assert not troubled.answers
    assert storage.read("big") == BIG and storage.stat("first") is None


@pytest.mark.slow
def test_a_server_that_is_away_is_waited_for_and_said_once(storage, s3_server, quick, caplog):
    storage.write("big", BIG[: 5 * 2**20])
    proxy = Proxy(*s3_server, after=2**20, cuts=1)
    with settings(AWS_ENDPOINT_URL=proxy.url, AWS_MAX_ATTEMPTS="1"), ThreadPoolExecutor() as pool:
        assert storage.stat("big").size == 5 * 2**20
        proxy.leave()
        reading = [pool.submit(storage.read, "big", start) for start in (0, 100)]
        while not caplog.messages:
            time.sleep(0.01)
        proxy.come_back()
        assert [found.result(300) for found in reading] == [BIG[start : 5 * 2**20] for start in (0, 100)]
    proxy.close()
    away, back = caplog.messages
    assert away.startswith(f"S3: no connection to {proxy.url}; ") and away.endswith(
        "waiting for it for up to 5 minutes"
    )
    assert back == "S3 answers again"


@pytest.mark.slow
def test_credentials_that_expire_are_one_line_whatever_is_asked(storage, troubled, tmp_path):
    storage.write("first", b"here")
    troubled.always = ("400 Bad Request", "ExpiredToken")
    for call in (
        lambda: storage.read("first"),
        lambda: storage.stat("first"),
        lambda: storage.open("first"),
        lambda: storage.files(),
        lambda: storage.write("first", b""),
        lambda: storage.delete("first"),
    ):
        assert "the credentials have expired; renew them and start again: what is finished is kept" in error_of(call)
    troubled.always = None
    assert storage.read("first") == b"here"


@pytest.mark.slow
def test_an_address_that_takes_no_connection_is_not_waited_for(storage, quick):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        waiting = [socket.create_connection(listener.getsockname())]  # which fill its queue: no more are answered
        while True:
            try:
                waiting.append(socket.create_connection(listener.getsockname(), timeout=0.5))
            except TimeoutError:
                break
        with settings(AWS_ENDPOINT_URL=address):
            assert f"no connection to {address}; check the network" in error_of(lambda: storage.read("x"))
        for one in waiting:
            one.close()


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_is_an_error_of_one_line(storage, s3_server, impatient):
    storage.write("big", BIG[: 2**20])
    proxy = Proxy(*s3_server, after=2**19, cuts=10**9)
    with settings(AWS_ENDPOINT_URL=proxy.url, AWS_MAX_ATTEMPTS="1"):
        response = storage._get("big", "bytes=0-", None)
        proxy.close()
        assert "big: no connection to http://127.0.0.1:" in error_of(lambda: storage.read("big"))
        response["Body"].close()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 50, 200])
def test_an_upload_over_a_connection_that_is_cut_is_tried_again(storage, s3_server, tmp_path, after, impatient):
    (tmp_path / "big").write_bytes(BIG)
    proxy = Proxy(*s3_server, after=after, cuts=3)
    with settings(AWS_ENDPOINT_URL=proxy.url, AWS_MAX_ATTEMPTS="5"):
        storage.write("big", tmp_path / "big")
    proxy.close()
    assert hashlib.md5(storage.read("big")).digest() == hashlib.md5(BIG).digest()


@pytest.mark.slow
def test_what_is_stored_is_compared_with_what_was_sent(storage, monkeypatch):
    """A server whose ETags are no MD5s is read back; one that stored something else is found out."""
    storage.files()  # a client of a server that has answered
    real = s3_client.client()
    put = real.put_object

    def other_etag(**arguments):
        return put(**arguments) | {"ETag": '"encrypted"'}

    def wrong_content(**arguments):
        return put(Bucket=arguments["Bucket"], Key=arguments["Key"], Body=b"wrong")

    monkeypatch.setattr(real, "put_object", other_etag)
    storage.write("a", b"right")
    assert storage.read("a") == b"right"
    monkeypatch.setattr(real, "put_object", wrong_content)
    assert "stored something else" in error_of(lambda: storage.write("a", b"right"))
    assert storage.stat("a") is None


@pytest.mark.slow
def test_a_failed_upload_leaves_no_parts(storage, tmp_path, monkeypatch):
    (tmp_path / "big").write_bytes(BIG)
    storage.files()
    real = s3_client.client()
    monkeypatch.setattr(real, "complete_multipart_upload", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        storage.write("big", tmp_path / "big")
    assert storage.stat("big") is None
    assert "Uploads" not in client().list_multipart_uploads(Bucket=storage.bucket)


@pytest.mark.slow
def test_missing_bucket_forbidden_no_credentials_no_server(storage, tmp_path):
    missing = storage_at("s3://no-such-bucket/x")
    (tmp_path / "big").write_bytes(BIG)
    for call in (
        lambda: missing.read("y"),
        lambda: missing.stat("y"),
        lambda: missing.files(),
        lambda: missing.open("y"),
        lambda: missing.write("y", b""),
        lambda: missing.write("y", tmp_path / "big"),
        lambda: missing.delete("y"),
    ):
        assert error_of(call).startswith("s3://no-such-bucket/x/") and "no such bucket" in error_of(call)
    with settings(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, AWS_EC2_METADATA_DISABLED="true"):
        assert "no credentials for S3; set AWS_ACCESS_KEY_ID" in error_of(lambda: storage.read("y"))
    with settings(AWS_PROFILE="nobody"):
        assert "nobody" in error_of(lambda: storage.read("y"))
    with settings(AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1"):
        assert "no connection to http://127.0.0.1:9; check" in error_of(lambda: storage.read("y"))
    policy = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{storage.bucket}/*"}
    client().put_bucket_policy(
        Bucket=storage.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    )
    for call in (lambda: storage.read("y"), lambda: storage.stat("y"), lambda: storage.write("y", b"")):
        assert "y: access is forbidden; check the credentials" in error_of(call)
    assert "can't be sent" in error_of(lambda: storage.write("y", tmp_path / "none"))


@pytest.mark.slow
def test_clients_of_the_same_settings_share_what_boto3_has_parsed(storage):
    storage.write("file", b"content")  # the server has answered: from now on it is waited for, by another client
    sessions = {id(session) for here, session in s3_client._sessions.items() if here == s3_client._surroundings()}
    assert len(sessions) == 1 and storage.read("file") == b"content"


@pytest.mark.slow
def test_a_forked_child_opens_its_own_connections(storage):
    storage.write("x", b"1")
    parent = s3_client.client()
    child = os.fork()
    if child == 0:
        os._exit(0 if s3_client.client() is not parent and storage.read("x") == b"1" else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "2026-12-01T10:31:26.000Z",
        "2026-12-01T10:31:26+00:00",
        "Tue, 01 Dec 2026 10:31:26 GMT",
        1796121086,
        "1796121086",
    ],
)
def test_a_server_s_times_are_read_as_botocore_reads_them(text):
    assert s3_client.read_time(text) == botocore.utils.parse_timestamp(text)


def test_a_listing_s_times_are_not_read_by_dateutil(storage, monkeypatch):
    """It is four fifths of what a listing costs."""
    storage.write("a", b"1")
    threads = []  # the server's, which reads them so, too
    monkeypatch.setattr(
        "dateutil.parser.parse", lambda *a, **k: threads.append(threading.get_ident()) or parse(*a, **k)
    )
    assert [stored.name for stored in storage.files()] == ["a"]
    assert threads and threading.get_ident() not in threads
