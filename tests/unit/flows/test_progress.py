"""Progress artifacts while Prefect does not answer; tests/integration/test_services.py has those of real flow runs."""

from __future__ import annotations

import logging
import socket
import threading

from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.progress import ProgressArtifacts
from resnet_pipeline.progress import displayed_on, progress


def test_work_goes_on_while_the_server_takes_the_connection_and_is_silent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        display = ProgressArtifacts(seconds=0.01)
        with temporary_settings({PREFECT_API_URL: api, PREFECT_CLIENT_MAX_RETRIES: 0}):
            with displayed_on(display), progress("digits/resnet8", total=1000, unit="steps") as bar:
                asked, _ = silent.accept()
                asked.recv(100)  # it waits for the answer now
                for _ in range(1000):
                    bar.advance()
            assert bar.finished
            display.wait(0.01)
            waiting = [thread for thread in threading.enumerate() if thread.name == "progress-artifact"]
            assert len(waiting) == 1 and waiting[0].daemon, "it waits; neither the work nor the process's end does"
            asked.close()
    waiting[0].join(60)


def test_a_server_in_trouble_is_asked_again_and_said_once(caplog):
    caplog.set_level(logging.INFO, "flows.progress")
    display = ProgressArtifacts(seconds=0.01)
    with socket.create_server(("127.0.0.1", 0)) as rude:
        api = f"http://127.0.0.1:{rude.getsockname()[1]}/api"
        with (
            temporary_settings({PREFECT_API_URL: api, PREFECT_CLIENT_MAX_RETRIES: 0}),
            displayed_on(display),
            progress("digits/resnet8", total=10, unit="steps"),
        ):
            for _ in range(3):
                rude.accept()[0].close()
    display.wait(60)
    (said,) = caplog.messages
    assert said.startswith("Prefect's page can't show how far digits/resnet8 is: ")
