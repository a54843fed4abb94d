"""`up`, the deployments, and `down`, against the real servers."""

from __future__ import annotations

import gc
import html
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import PurePath
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running

from flows import shell
from flows.gpus import reserved
from resnet_pipeline import __version__
from resnet_pipeline.adapters.mlflow.descriptions import experiments_page, run_page
from resnet_pipeline.adapters.mlflow.runs import Delivery
from resnet_pipeline.errors import UnavailableError, UserError
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.train import run_config
from resnet_pipeline.parallel import start_thread
from resnet_pipeline.services.deployments import deploy
from resnet_pipeline.services.lost_runs import mark_lost_runs, schedule_left_runs
from resnet_pipeline.services.prefect_api import prefect_client
from resnet_pipeline.training.checkpoint import checkpoint_steps, newest_checkpoint
from resnet_pipeline.training.metrics_log import ResumeEntry, TrainEntry, complete_lines, entries_of, last_step
from resnet_pipeline.training.run_directory import RunDirectory
from tests.flow_runs import Api, FlowRun
from tests.images import jpeg
from tests.integration.nodes import SETTINGS, nodes
from tests.launching import launch
from tests.metrics import losses
from tests.proxy import Proxy
from tests.unit.flows.test_deployments import DEPLOYMENTS
from tests.workspaces import with_digits

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def ended(pid: int) -> bool:
    """Whether a process has ended; as a zombie too, since in a container its new parent may ask late or never."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def services(tmp_path_factory, run_program):
    """Start Prefect, a worker and MLflow as a user does; yield (folder, environment for clients, output of up)."""
    folder = tmp_path_factory.mktemp("services")
    prefect, mlflow = free_port(), free_port()
    up = run_program(
        "resnet-pipeline", "up", "--detach", "--prefect-port", str(prefect), "--mlflow-port", str(mlflow), cwd=folder
    )
    assert up.returncode == 0, up.stdout
    environment = {
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
        "PREFECT_HOME": str(folder / "client"),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        "RESNET_PIPELINE_ROOT": str(folder / "work"),
    }
    yield folder, environment, up.stdout
    down = run_program("resnet-pipeline", "down", cwd=folder)
    assert down.returncode == 0 and down.stdout.count("stopped") in (0, 3), down.stdout


def sample_folder(tmp_path, archive, images=4):
    """Write a few files of the ImageNet sample as train/<wnid>/* and val/<wnid>/*."""
    with tarfile.open(archive) as tar:
        for number, member in enumerate(m for m in tar if m.isfile()):
            if number == images:
                break
            name = PurePath(member.name).name
            data = tar.extractfile(member).read()
            for split in ("train", "val"):
                path = tmp_path / "images" / split / name.split("_")[0] / name
                path.parent.mkdir(parents=True)
                path.write_bytes(data)
    return tmp_path / "images"


def test_up_prints_the_urls_and_what_to_type(services):
    _, environment, out = services
    assert environment["PREFECT_API_URL"].removesuffix("/api") in out and environment["MLFLOW_TRACKING_URI"] in out
    assert "prefect deployment run imagenet-train/resnet152" in out
    assert f"{len(DEPLOYMENTS)} deployments" in out


def test_everything_listens_on_this_machine_alone(services):
    folder, _, _ = services
    entries = json.loads((folder / "work" / "services" / "processes.json").read_text())
    assert set(entries) == {"prefect-server", "mlflow-server", "prefect-worker"}
    for entry in entries.values():
        process = psutil.Process(entry["pid"])
        for one in (process, *process.children(recursive=True)):
            for connection in one.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in ("127.0.0.1", "::1"), connection


def test_doctor_asks_the_servers(services, run_program):
    folder, environment, _ = services
    looked = run_program("resnet-pipeline", "doctor", "--json", "d.json", cwd=folder, env=environment)
    found = {f["what"]: f["state"] for f in json.loads((folder / "d.json").read_text())}
    assert looked.returncode == 0, looked.stdout
    for name in ("MLflow", "Prefect"):
        assert re.search(r"^http://127.0.0.1:\d+\S* answers \(version [\d.]+, as here\)$", found[name])


def test_deploying_again_keeps_what_the_user_has_set(services, monkeypatch):
    folder, environment, _ = services
    api = environment["PREFECT_API_URL"]
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.chdir(folder)
    answered = {"response": [httpx.Response.raise_for_status]}  # else a busy server's refusal would go unnoticed
    with httpx.Client(base_url=api, timeout=60, event_hooks=answered) as server:

        def known() -> dict[str, dict[str, object]]:
            found = server.post("/deployments/filter", json={}).json()
            return {entry["id"]: entry for entry in found}

        before = known()
        one = next(i for i, entry in before.items() if entry["name"] == "resnet1202")
        server.patch(f"/deployments/{one}", json={"paused": True, "concurrency_limit": 1, "tags": ["x"]})
        schedule = {"schedule": {"cron": "0 0 1 1 *"}, "active": False}
        server.post(f"/deployments/{one}/schedules", json=[schedule])
        server.patch("/work_pools/local", json={"concurrency_limit": 5})
        assert deploy("local") == len(before)
        after, pool = known(), server.get("/work_pools/local").json()
        queue = server.get("/work_pools/local/queues/training").json()
        server.patch("/work_pools/local", json={"concurrency_limit": None})
    changed = after.pop(one)
    assert {i: e["updated"] for i, e in before.items() if i != one} == {i: e["updated"] for i, e in after.items()}
    assert (changed["paused"], changed["global_concurrency_limit"]["limit"], len(changed["schedules"])) == (True, 1, 1)
    assert {e["work_queue_name"] for e in before.values() if "training" in e["tags"]} == {"training"}
    assert queue["concurrency_limit"] == 1, "`up` lets one training run at a time"
    assert changed["tags"] == before[one]["tags"] and pool["concurrency_limit"] == 5


def test_a_second_up_and_a_port_in_use_are_refused(services, run_program, tmp_path):
    folder, environment, _ = services
    again = run_program("resnet-pipeline", "up", "--detach", cwd=folder)
    assert again.returncode == 2 and "already up" in again.stdout
    port = re.search(r":(\d+)/api", environment["PREFECT_API_URL"])[1]
    taken = run_program("resnet-pipeline", "up", "--detach", "--prefect-port", port, cwd=tmp_path)
    assert taken.returncode == 2 and f"port {port} for Prefect is in use" in taken.stdout
    assert len(taken.stdout.strip().splitlines()) == 1


def test_resnet152_is_trained_tested_and_registered_by_its_deployment(
    services, run_program, run_forked, imagenet_sample, tmp_path
):
    folder, environment, _ = services
    images = sample_folder(tmp_path, imagenet_sample)
    staged = run_program(
        "prefect", "deployment", "run", "stage-dataset/images", "--watch",
        "--param", f"source={images}", "--param", "name=sample", cwd=folder, env=environment,
    )  # fmt: skip
    assert staged.returncode == 0, staged.stdout
    trained = run_program(
        "prefect", "deployment", "run", "imagenet-train/resnet152", "--watch",
        "--param", "dataset=sample", "--param", "steps=1", "--param", "evaluation_images=1",
        "--param", 'overrides={"batch": 2, "micro_batch": 1, "bn_images": 2}', cwd=folder, env=environment,
    )  # fmt: skip
    worker = (folder / "work" / "services" / "prefect-worker.log").read_text()
    assert trained.returncode == 0, trained.stdout + worker
    from mlflow import MlflowClient

    # the registry by name: an earlier test may have set MLflow's global one
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"], environment["MLFLOW_TRACKING_URI"])
    version = client.get_model_version_by_alias("imagenet-resnet152", "candidate")
    assert "10-crop-224-of-256-mirrored_top5_error" in version.tags
    run = client.get_run(version.run_id)
    assert run.data.params["model.name"] == "resnet152" and run.data.params["augment.crop"] == "224"
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "report")] == ["report/report.html"]
    (weights,) = (folder / "work" / "runs").glob("imagenet-resnet152-*/weights.safetensors")
    assert weights.stat().st_size > 4 * 58.1e6  # float32, 60.2 million less the classifier of 1,000 classes
    # the registered version is a MODEL for the command line
    evaluated = run_forked(
        "evaluate", "models:/imagenet-resnet152@candidate", "--dataset", "sample",
        "--protocol", "10-crop", "--images", "1", "--json", str(tmp_path / "e.json"), cwd=folder, env=environment,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stdout
    result = json.loads((tmp_path / "e.json").read_text())["models"][0]
    assert result["reused"] and result["images"] == 1


def test_a_bad_parameter_is_refused_with_its_name(services, run_program):
    folder, environment, _ = services
    done = run_program(
        "prefect", "deployment", "run", "imagenet-train/resnet152", "--param", "steps=0", cwd=folder, env=environment
    )
    assert done.returncode == 1 and "'steps'" in done.stdout


def test_a_failing_flow_run_ends_with_one_clear_message(services, run_program):
    folder, environment, _ = services
    done = run_program(
        "prefect", "deployment", "run", "cifar10-train/resnet20", "--watch", "--param", "dataset=missing",
        cwd=folder, env=environment,
    )  # fmt: skip
    assert done.returncode == 1
    flow_run = Api(environment["PREFECT_API_URL"]).last("cifar10-train")
    kind, message = flow_run.state()
    assert flow_run.name() == "resnet20 · missing · seed 0"
    assert kind == "FAILED" and message.startswith("no dataset 'missing'")
    flow_run.until(lambda: any(line.startswith("Finished in state") for line in flow_run.log()))
    assert [line.splitlines()[1:] for line in flow_run.log() if "no dataset" in line] == [[]], flow_run.log()
    assert not any("Traceback" in line for line in flow_run.log())


BIG = {"model.name": "resnet152", "batch": 8, "micro_batch": 8}
"""A checkpoint of 467 MB."""
NEVER = {"checkpoint_every": 100_000, "eval_every": 100_000, "log_every": 1}
"""No checkpoint but the one that is written when the training is stopped."""


def add_digits(folder, digits):
    """Give the servers' root the digits, once."""
    if not (folder / "work" / "datasets" / "digits").exists():
        with_digits(folder / "work", digits)


def start_training(services, digits, launcher, steps, variables=None, /, **changes):
    """Start a flow run that trains; return it, the run's directory, its processes, and the one that was started."""
    folder, environment, _ = services
    add_digits(folder, digits)
    runs = folder / "work" / "runs"
    before = set(runs.glob("*/config.json"))
    flow_run = Api(environment["PREFECT_API_URL"]).start(
        "digits-train/resnet8", variables, steps=steps, launcher=launcher, workers=1, registered=False,
        protocols=["center"], overrides={**NEVER, "bn_images": 64, **changes},
    )  # fmt: skip
    flow_run.until(lambda: any(last_step(one.with_name("metrics.jsonl")) >= 3 for one in runs.glob("*/config.json")
                               if one not in before), 300)  # fmt: skip
    (config,) = set(runs.glob("*/config.json")) - before
    worker = json.loads((folder / "work" / "services" / "processes.json").read_text())["prefect-worker"]["pid"]
    (around,) = psutil.Process(worker).children()
    tree = [around.pid, *(child.pid for child in around.children(recursive=True))]
    return flow_run, RunDirectory(config.parent), tree, around


def tracked(environment, run):
    """Return what MLflow has of a run."""
    from mlflow import MlflowClient

    return MlflowClient(environment["MLFLOW_TRACKING_URI"]).get_run(Delivery.of(run).run_id)


@pytest.mark.parametrize(
    ("launcher", "how", "changes"),
    [
        ("local", "cancel", {}),
        pytest.param("ray", "cancel", BIG, marks=pytest.mark.soak),
        pytest.param("local", "wait", {"seed": 2}, marks=pytest.mark.soak),
        pytest.param("ray", "kill", {"seed": 1}, marks=pytest.mark.soak),
    ],
)
def test_a_training_flow_that_is_stopped_saves_and_says_how_to_go_on(
    services, run_program, digits, launcher, how, changes
):
    folder, environment, _ = services
    flow_run, run, tree, around = start_training(services, digits, launcher, 3000, **changes)
    (engine,) = around.children()
    if how == "wait":
        engine.suspend()  # a save of half a minute: the worker waits no longer
    if how != "kill":
        done = run_program("prefect", "flow-run", "cancel", flow_run.id, cwd=folder, env=environment)
        assert done.returncode == 0, done.stdout
    else:
        around.kill()
    kind, message = flow_run.ended()
    assert kind == "CANCELLED", (message, flow_run.log())
    if how == "wait":
        assert not checkpoint_steps(run.checkpoints) and run.state() == ("running", None)
        engine.resume()
    flow_run.until(lambda: all(ended(pid) for pid in tree))
    (step,) = checkpoint_steps(run.checkpoints)
    path, problems = newest_checkpoint(run.checkpoints, run=run.identity())
    assert step == last_step(run.metrics_file) and path is not None and not problems
    assert path.stat().st_size > (450e6 if changes is BIG else 0)
    assert run.state() == ("interrupted", None)
    assert tracked(environment, run).info.status == "KILLED"
    tags = tracked(environment, run).data.tags
    page = f"{environment['PREFECT_API_URL'].removesuffix('/api')}/runs/flow-run/{flow_run.id}"
    assert (tags["prefect.flow_run_id"], tags["prefect.flow_run_page"]) == (flow_run.id, page)
    said = [line for line in flow_run.log() if "to go on: prefect deployment run digits-train/resnet8" in line]
    assert len(said) == 1 and not any("Traceback" in line for line in flow_run.log()), flow_run.log()


def dump_of(browser, address, text):
    """Return a page's DOM as soon as it has a text; a slow machine's page is given more time."""
    for milliseconds in (8_000, 30_000, 90_000):
        dump = browser(f"--virtual-time-budget={milliseconds}", "--dump-dom", address).stdout
        if text in dump:
            return dump
    raise AssertionError(f"no {text!r} in {text_of(dump)}")


def text_of(dump: str) -> list[str]:
    """Return the texts of a page's elements, in order."""
    dump = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", dump, flags=re.S)
    return [html.unescape(text.strip()) for text in re.findall(r">([^<]+)<", dump) if text.strip()]


def test_mlflow_s_pages_open_on_the_runs_and_show_what_they_are(services, browser, tmp_path):
    """After the training that was stopped: its name, dataset, flow run, and charts in sections, losses first."""
    folder, environment, out = services
    assert f"{environment['MLFLOW_TRACKING_URI']}/#/experiments?workflowType=machine_learning" in out
    found, *_ = (folder / "work" / "runs").glob("digits-resnet8-*/mlflow.json")
    kept = json.loads(found.read_text())
    run = tracked(environment, RunDirectory(found.parent))
    at = [environment["MLFLOW_TRACKING_URI"], kept["experiment_id"]]
    runs, page = experiments_page(*at), run_page(*at, run.info.run_id)
    assert run.info.run_name.startswith("resnet8 · seed 0 · digits")
    listed = text_of(dump_of(browser, runs, run.info.run_name))
    assert "digits (resnet-pipeline)" in listed and "Runs" in listed and "Evaluation runs" not in listed
    browser("--virtual-time-budget=8000", "--window-size=1400,800", f"--screenshot={tmp_path / 'runs.png'}", runs)
    with Image.open(tmp_path / "runs.png") as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 500, "a page is drawn"
    charts = text_of(dump_of(browser, page.replace("?", "/model-metrics?"), "train/pace"))
    sections = {text: count for text, count in pairwise(charts) if text.startswith("train")}
    # those with the loss and the error come first, and the loss has but the error beside it
    assert list(sections.items()) == [
        ("train", "(2)"), ("train/checkpoint", "(2)"), ("train/optim", "(3)"), ("train/pace", "(6)"),
    ]  # fmt: skip
    link = f'href="{run.data.tags["prefect.flow_run_page"]}"'
    about = text_of(dump_of(browser, page, link))
    assert {f"resnet-pipeline {__version__}", run.data.tags["mlflow.user"]} <= set(about)
    assert any(run.inputs.dataset_inputs[0].dataset.digest[:8] in text for text in about), "its dataset"


def test_prefect_s_pages_show_what_a_training_came_to(services, digits, browser, tmp_path):
    """Its name and tasks, how far each phase is, errors, curves and links."""
    folder, environment, _ = services
    add_digits(folder, digits)
    api, mlflow = Api(environment["PREFECT_API_URL"]), environment["MLFLOW_TRACKING_URI"]
    flow_run = api.start(
        "digits-train/resnet8", steps=4, seed=3, launcher="local", workers=1, registered_as="watched",
        protocols=["center"], overrides={"bn_images": 64, "log_every": 2},
    )  # fmt: skip
    assert flow_run.ended(500)[0] == "COMPLETED", flow_run.log()
    tasks = [name.partition(" · ")[0] for name in flow_run.tasks()]
    assert sorted(tasks) == ["evaluate", "register", "report", "train"]
    kept = flow_run.artifacts()
    keys = ["curves-digits-resnet8", "errors-digits-resnet8", "links-digits-resnet8", "progress-center-digits-resnet8",
            "progress-digits-resnet8"]  # fmt: skip
    assert sorted(one["key"] for one in kept) == keys, "one of each, updated"
    curves, errors, links, tested, trained = sorted(kept, key=lambda one: one["key"])
    assert (trained["data"], tested["data"]) == (100, 100) and "4/4 steps" in trained["description"]
    (row,) = json.loads(errors["data"])
    assert row["network"] == "digits/resnet8" and re.fullmatch(r"\d+\.\d\d to \d+\.\d\d", row["top-1 interval"])
    (run,) = (folder / "work" / "runs").glob("digits-resnet8-*-s3-*")
    known = Delivery.of(RunDirectory(run))
    for address in (run_page(mlflow, known.experiment_id, known.run_id), f"{mlflow}/#/models/watched/versions/1?"):
        assert f"]({address}" in links["data"]
    pages, wait = environment["PREFECT_API_URL"].removesuffix("/api"), "--virtual-time-budget=10000"
    seen = text_of(dump_of(browser, f"{pages}/v2/runs/flow-run/{flow_run.id}?tab=Artifacts", keys[0]))
    assert {"resnet8 · digits · seed 3", "Completed", "4 Task runs", *keys} <= set(seen), seen
    shown = [wait, "--window-size=1300,1000", f"--screenshot={tmp_path / 'curves.png'}"]
    browser(*shown, f"{pages}/v2/artifacts/artifact/{curves['id']}")
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (np.abs(pixels - (0x00, 0x72, 0xB2)).sum(2) < 40).sum() > 200, "the curves are drawn"


@pytest.fixture
def here(services):
    """Let flows of this process have the server; Prefect's clients leave their connections to the garbage collector."""
    api = Api(services[1]["PREFECT_API_URL"])
    with temporary_settings({PREFECT_API_URL: api.address}):
        yield api
    gc.collect()


LEFT = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@LEFT
def test_a_phase_is_tried_again_if_a_service_was_away_and_only_then(here, monkeypatch):
    monkeypatch.setattr(shell, "_SECONDS_BETWEEN_TRIES", [0.1, 0.1, 0.1])
    kinds, tries = {"away": UnavailableError, "wrong": UserError}, []

    @shell.phase("work", "work · {kind}")
    def work(kind: str) -> int:
        tries.append(kind)
        if tries.count(kind) < 3:
            raise kinds[kind]("so it is")
        return tries.count(kind)

    @flow(name="phases")
    @shell.logged
    def phases(kind: str) -> int:
        return shell.outcome(work(kind))

    assert phases("away") == 3
    with pytest.raises(UserError, match="so it is"):
        phases("wrong")
    assert tries == ["away", "away", "away", "wrong"]


@LEFT
def test_what_a_worker_has_left_running_is_scheduled_again_all_of_it_and_no_other_s(here):
    @flow
    def left() -> None: ...

    with prefect_client(here.address) as client:
        deployment = client.create_deployment(flow_id=client.create_flow(left), name="left")
        for number in range(205):  # the server gives 200 at a time
            of = {"prefect.worker.name": "another" if number == 3 else "gone"}
            client.create_flow_run_from_deployment(deployment, state=Running(), name=f"left {number}", labels=of)
        found = schedule_left_runs(client, "gone")
        assert sorted(found) == sorted(f"left {number}" for number in range(205) if number != 3)
        assert schedule_left_runs(client, "gone") == []
        client.delete_deployment(deployment)


@LEFT
def test_trainings_share_the_gpus_that_a_limit_of_the_server_counts(here, caplog):
    config, order = run_config("digits/resnet8"), []
    caplog.set_level("INFO", "flows.gpus")

    def taken() -> int:
        return int(here.ask("/v2/concurrency_limits/gpus")["active_slots"])

    def second() -> None:
        with reserved(config, Launch(workers=2)):
            order.append("second")

    with reserved(config, Launch(workers=2)):
        assert not caplog.messages, "without the limit there is nothing to wait for"
    here.ask("/v2/concurrency_limits/", {"name": "gpus", "limit": 3})
    try:
        with reserved(config, Launch(launcher="local")), reserved(config, Launch(workers="1-2")):
            assert taken() == 3
            thread = start_thread(second, name="second")
            while len(caplog.messages) < 3:
                time.sleep(0.1)
            time.sleep(1)  # a training that did not wait would have begun
            order.append("first")
        thread.join(60)
        assert order == ["first", "second"] and taken() == 0
        with reserved(config, Launch(workers=8)):
            assert taken() == 3, "never more than there are"
    finally:
        httpx.delete(f"{here.address}/v2/concurrency_limits/gpus")


@pytest.mark.soak
def test_trainings_wait_for_the_first_and_the_earliest_start_is_next(services, digits, run_program):
    folder, environment, _ = services
    add_digits(folder, digits)
    api = Api(environment["PREFECT_API_URL"])
    short = {"launcher": "local", "workers": 1, "registered": False, "protocols": ["center"]}

    def prefect(*words: str) -> str:
        done = run_program("prefect", *words, cwd=folder, env=environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    first = api.start("digits-train/resnet8", steps=20_000, seed=11, **short)  # longer than this test on any machine
    second = api.start("digits-train/resnet8", steps=4, seed=12, **short)
    first.until(lambda: first.state()[0] == "RUNNING")
    given = json.dumps({"steps": 4, "seed": 13, **short})
    asked = prefect("deployment", "run", "digits-train/resnet8", "--params", given, "--start-at", "yesterday")
    ahead = FlowRun(api, re.search(r"UUID: ([0-9a-f-]{36})", asked)[1])
    moved = api.start("digits-train/resnet8", steps=4, seed=14, **short)
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2020-01-01T00:00:00Z"}}
    prefect("api", "POST", f"/flow_runs/{moved.id}/set_state", "--data", json.dumps({"state": state}))
    time.sleep(10)  # five times that the worker asks for more
    waiting = (second, ahead, moved)
    assert [one.state()[0] for one in (first, *waiting)] == ["RUNNING", *3 * ["SCHEDULED"]]
    api.ask(f"/flow_runs/{first.id}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    assert first.ended()[0] == "CANCELLED"
    assert [one.ended(300)[0] for one in waiting] == 3 * ["COMPLETED"]
    assert sorted(waiting, key=lambda one: one.started()) == [moved, ahead, second]


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_training_flow_whose_ray_cluster_is_lost_goes_on_when_there_is_one_again(services, digits, tmp_path):
    _, environment, _ = services
    api = Api(environment["PREFECT_API_URL"])

    def train_task() -> dict[str, Any]:
        # the server learns of tasks by events, of a task's state perhaps later than of the task
        tasks = api.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run.id]}}})
        return next((one for one in tasks if one["name"].startswith("train")), {"state_name": None})

    with nodes(tmp_path, 0) as cluster:
        variables = {**SETTINGS, "RAY_ADDRESS": cluster.address}
        flow_run, run, _, _ = start_training(services, digits, "ray", 150, variables, seed=21, checkpoint_every=10)
        flow_run.until(lambda: checkpoint_steps(run.checkpoints))
        cluster.kill("head")  # and with it all of Ray's processes
        flow_run.until(lambda: train_task()["state_name"] in ("AwaitingRetry", "Failed"), 300)
        assert train_task()["state_name"] == "AwaitingRetry", flow_run.log()
        saved, reached = checkpoint_steps(run.checkpoints)[-1], last_step(run.metrics_file)
        assert saved <= reached < 150, "the training was over before its cluster was lost"
        cluster.start()
        assert flow_run.ended(600)[0] == "COMPLETED", flow_run.log()
    assert (train_task()["run_count"] > 1, api.ask(f"/flow_runs/{flow_run.id}")["run_count"]) == (True, 1)
    lines = list(complete_lines(run.metrics_file))
    assert [step for step, _ in entries_of(lines, ResumeEntry)] == [0, saved] and saved % 10 == 0
    (resumed,) = (i for i, line in enumerate(lines) if isinstance(line.entry, ResumeEntry) and line.step)
    assert [step for step, _ in entries_of(lines[resumed:], TrainEntry)] == list(range(saved + 1, 151))
    undisturbed = RunDirectory.create(tmp_path / "undisturbed", run.config(), digits.facts)
    (process,) = launch(undisturbed, digits, 1)
    assert process.wait(300) == 0
    assert run.result().weights_sha256 == undisturbed.result().weights_sha256
    assert losses(run) == losses(undisturbed) and len(losses(run)) == 150


@pytest.mark.soak
def test_prefect_away_for_a_minute_holds_no_step_and_the_flow_can_still_be_cancelled(services, run_program, digits):
    folder, environment, _ = services
    server = httpx.URL(environment["PREFECT_API_URL"])
    between = Proxy(server.host, server.port)
    flow_run, run, _, _ = start_training(
        services, digits, "local", 100_000, {"PREFECT_API_URL": f"{between.url}/api"}, seed=31
    )
    between.leave()
    for _ in range(6):
        before = last_step(run.metrics_file)
        time.sleep(10)
        assert last_step(run.metrics_file) > before, flow_run.log()
    between.come_back()
    done = run_program("prefect", "flow-run", "cancel", flow_run.id, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout
    kind, message = flow_run.ended()
    between.close()
    assert kind == "CANCELLED", (message, flow_run.log())
    assert checkpoint_steps(run.checkpoints) and run.state() == ("interrupted", None)
    assert not any("Traceback" in line for line in flow_run.log()), flow_run.log()


@pytest.mark.soak
def test_a_flow_run_whose_process_is_lost_is_crashed_and_the_same_start_puts_all_right(services, run_program, digits):
    folder, environment, _ = services
    api = Api(environment["PREFECT_API_URL"])
    for _ in range(2):
        with prefect_client(api.address) as client:
            mark_lost_runs(client, within=timedelta(seconds=40))
    (automation,) = api.ask("/automations/filter", {})
    assert automation["enabled"] and automation["trigger"]["within"] == 40
    flow_run, run, tree, around = start_training(services, digits, "local", 300, seed=7)
    worker = around.parent()
    worker.suspend()  # as if its machine were gone: it says nothing of the end
    try:
        for pid in reversed(tree):
            psutil.Process(pid).kill()
        kind, message = flow_run.ended()
        assert kind == "CRASHED" and "No heartbeat for 40 s" in message
        assert tracked(environment, run).info.status == "RUNNING", "nobody could tell MLflow"
    finally:
        worker.resume()
    run_program("resnet-pipeline", "runs", "--json", "runs.json", cwd=folder, env=environment)
    (row,) = [row for row in json.loads((folder / "runs.json").read_text()) if row["run"] == run.name]
    assert row["state"] == "interrupted"
    resumed = run_program(
        *shlex.split(row["resume"]), "--launcher", "local", "--no-register", cwd=folder, env=environment
    )
    assert resumed.returncode == 0, resumed.stdout
    assert run.state() == ("finished", None) and tracked(environment, run).info.status == "FINISHED"


def test_an_archive_can_be_staged_by_its_deployment(services, tmp_path):
    folder, environment, _ = services
    with tarfile.open(tmp_path / "tiny.tar", "w") as tar:
        for split in ("train", "val"):
            for label in ("a", "b"):
                info = tarfile.TarInfo(f"{split}/{label}/0.jpg")
                data = jpeg(40, 50)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    flow_run = Api(environment["PREFECT_API_URL"]).start(
        "stage-dataset/images", source=str(tmp_path / "tiny.tar"), name="tiny"
    )
    assert flow_run.ended()[0] == "COMPLETED", flow_run.log()
    assert (folder / "work" / "datasets" / "tiny" / "manifest.json").exists()


def test_down_stops_exactly_what_up_started(services, run_program):
    folder, _, _ = services
    entries = json.loads((folder / "work" / "services" / "processes.json").read_text())
    others = {p.pid for p in psutil.process_iter()} - {e["pid"] for e in entries.values()}
    tree = [c.pid for e in entries.values() for c in psutil.Process(e["pid"]).children(recursive=True)]
    done = run_program("resnet-pipeline", "down", cwd=folder)
    assert done.returncode == 0 and done.stdout.count("stopped") == 3
    assert all(ended(pid) for pid in [*(entry["pid"] for entry in entries.values()), *tree])
    assert psutil.Process().pid in others  # this very process lives
    again = run_program("resnet-pipeline", "down", cwd=folder)
    assert again.returncode == 0 and "nothing is up" in again.stdout


def test_what_the_servers_kept_is_usable_without_them(services, run_forked, digits):
    # after `down`: the same root, SQLite opened directly, a run added to the same MLflow experiment
    folder, _, _ = services
    add_digits(folder, digits)
    small = ["--steps", "4", "--set", "bn_images=64", "--set", "log_every=2", "--launcher", "local"]
    done = run_forked("train", "digits/resnet8", "--dataset", "digits", *small, cwd=folder)
    assert done.returncode == 0 and "registered as digits-resnet8 version 1" in done.stdout, done.stdout
    listed = run_forked(
        "evaluate", "models:/imagenet-resnet152@candidate", "--dataset", "sample",
        "--protocol", "10-crop", "--images", "1", cwd=folder,
    )  # fmt: skip
    # without the ImageNet sample no ResNet-152 was registered above
    assert listed.returncode == (0 if "RESNET_PIPELINE_IMAGENET_SAMPLE" in os.environ else 2), listed.stdout


def test_ctrl_c_stops_a_foreground_up(services, run_program):
    # on the root of the first, whose databases and deployments are there
    folder, _, _ = services
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    process = subprocess.Popen(
        [sys.executable, "-m", "resnet_pipeline.cli", "up", *ports],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k not in ("RESNET_PIPELINE_ROOT", "PREFECT_HOME")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C stops all three" in line:
                break
        entries = json.loads((folder / "work" / "services" / "processes.json").read_text())
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        run_program("resnet-pipeline", "down", cwd=folder)
    assert process.returncode == 0, "".join(lines) + out
    assert out.count("stopped") == 3
    assert all(ended(entry["pid"]) for entry in entries.values())
