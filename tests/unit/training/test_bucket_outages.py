"""Training on a dataset in a bucket whose server is away, in trouble, or refuses its credentials in the middle."""

from __future__ import annotations

import time

import pytest

from resnet_pipeline.data import shard_reader
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.parallel import start_thread
from resnet_pipeline.storage import cache, s3_client
from resnet_pipeline.storage.cache import CacheFolder
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import NoteEntry
from tests.metrics import entries, losses
from tests.proxy import Proxy
from tests.s3_server import TroubledServer, settings

pytestmark = pytest.mark.slow


@pytest.fixture
def small_cache(sharded_digits, digits_in_s3, tmp_path):
    """Return a function that opens the dataset in the bucket; its cache holds a third of the shards."""
    largest = max(shard.bytes for shard in sharded_digits.manifest.splits["train"].shards)
    return lambda: Dataset.open(digits_in_s3, CacheFolder(tmp_path / "cache", limit=5 * largest))


@pytest.fixture
def make_blocks(make_run):
    """Return a function that makes a run which comes to new shards all the time."""
    return lambda folder: make_run("order=block", "block_shards=2", "steps=24", "eval_every=24", folder=folder)


@pytest.fixture
def undisturbed(make_blocks, sharded_digits):
    run = make_blocks("undisturbed")
    assert train(run, sharded_digits, LocalContext())
    return run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Wait for a server as often as ever, but shortly."""
    monkeypatch.setattr(s3_client, "_WAIT", 0.001)
    monkeypatch.setattr(s3_client, "_LONGEST_WAIT", 0.05)


def at_step(step, work):
    """Return the context of a training that calls ``work`` between two steps."""
    left = iter(range(step))
    return LocalContext(stop=lambda: bool(next(left, None) == step - 1 and work()))


def when_said(caplog, words, act):
    """Call ``act`` in a thread as soon as a line of the log has the words."""

    def wait():
        while not any(words in message for message in caplog.messages):
            time.sleep(0.01)
        act()

    start_thread(wait, name="when-said")


def test_a_bucket_away_in_the_middle_is_waited_for_and_changes_no_bit(
    small_cache, make_blocks, undisturbed, s3_server, caplog
):
    proxy, run = Proxy(*s3_server), make_blocks("away")

    def leave():
        proxy.leave()
        when_said(caplog, "waiting for it", proxy.come_back)

    with settings(AWS_ENDPOINT_URL=proxy.url, AWS_MAX_ATTEMPTS="1"):
        assert train(run, small_cache(), at_step(3, leave))
    proxy.close()
    assert run.result().weights_sha256 == undisturbed.result().weights_sha256
    assert losses(run) == losses(undisturbed)
    away, back = (note.text for _, note in entries(run, NoteEntry))
    assert away.startswith(f"S3: no connection to {proxy.url}") and back == "S3 answers again"


def test_a_server_that_answers_slowly_is_named_in_one_line_and_changes_no_bit(
    small_cache, make_blocks, undisturbed, s3_server, caplog, monkeypatch
):
    monkeypatch.setattr(shard_reader, "_SECONDS_UNTIL_SAID", 600.0)  # on a busy machine others wait, too
    proxy, run = Proxy(*s3_server), make_blocks("slow")

    def thaw():
        monkeypatch.setattr(shard_reader, "_SECONDS_UNTIL_SAID", 600.0)
        proxy.thaw()

    def freeze():
        monkeypatch.setattr(shard_reader, "_SECONDS_UNTIL_SAID", 0.2)
        proxy.freeze()
        when_said(caplog, "reading has waited", thaw)

    with settings(AWS_ENDPOINT_URL=proxy.url, AWS_MAX_ATTEMPTS="1"):
        assert train(run, small_cache(), at_step(3, freeze))
    proxy.close()
    assert run.result().weights_sha256 == undisturbed.result().weights_sha256
    assert losses(run) == losses(undisturbed)
    (slow,) = (note.text for _, note in entries(run, NoteEntry))
    assert slow.startswith("s3://") and " s for shard shards/train-" in slow


def test_a_server_that_takes_requests_and_answers_none_is_waited_for_and_said_once(
    small_cache, make_blocks, undisturbed, s3_server, caplog, monkeypatch
):
    monkeypatch.setattr(s3_client, "_READ_TIMEOUT", 3.0)
    monkeypatch.setattr(s3_client, "_SAID_AFTER", 0.2)
    proxy, run = Proxy(*s3_server), make_blocks("mute")

    def freeze():
        proxy.freeze()
        when_said(caplog, "waiting for it", proxy.thaw)

    with settings(AWS_ENDPOINT_URL=proxy.url, AWS_MAX_ATTEMPTS="1"):
        assert train(run, small_cache(), at_step(3, freeze))
    proxy.close()
    assert run.result().weights_sha256 == undisturbed.result().weights_sha256
    mute, back = (note.text for _, note in entries(run, NoteEntry))
    assert "Read timeout" in mute and back == "S3 answers again"


def test_a_cache_whose_disk_fills_in_the_middle_is_gone_around_and_changes_no_bit(
    small_cache, make_blocks, undisturbed, monkeypatch
):
    usage, run = cache.shutil.disk_usage, make_blocks("full")

    def fill():
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(path)._replace(free=0))

    assert train(run, small_cache(), at_step(12, fill))
    assert run.result().weights_sha256 == undisturbed.result().weights_sha256
    assert losses(run) == losses(undisturbed)
    told = [note.text for _, note in entries(run, NoteEntry)]
    assert len(told) == 2  # of each split once
    for split, text in zip(("train", "val"), told, strict=True):
        assert (
            f"shards/{split}-" in text and "free; free some" in text and "are read one by one from the bucket" in text
        )


def test_credentials_that_expire_in_the_middle_end_a_run_that_new_ones_resume(small_cache, make_blocks, undisturbed):
    server, run = TroubledServer(), make_blocks("expired")

    def expire():
        server.always = ("400 Bad Request", "ExpiredToken")

    with settings(AWS_ENDPOINT_URL=server.url, AWS_MAX_ATTEMPTS="1"):
        with pytest.raises(UserError, match=r"^s3://.*: the credentials have expired; renew them and start again"):
            train(run, small_cache(), at_step(3, expire))
        server.always = None
        assert train(run, small_cache(), LocalContext())
    server.close()
    assert run.result().weights_sha256 == undisturbed.result().weights_sha256
    assert losses(run) == losses(undisturbed)
