"""Follows a training that a driver on the cluster directs: its metrics, its end, and a stop that the user asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from resnet_pipeline.adapters.ray.driver import Driver, Look
from resnet_pipeline.errors import UnavailableError, UserError
from resnet_pipeline.jobs.attempt import keep_error, stopped
from resnet_pipeline.jobs.follower import Follower
from resnet_pipeline.training.metrics_log import MetricsCopy
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import PROFILE, STOP

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_WORTH_SAYING = 30.0
_SECONDS_UNHEARD = 300.0  # Ray notices a lost node after half a minute, and starts the driver on another one


def follow(
    driver: Driver,
    run: RunDirectory,
    follower: Follower,
    stop: Callable[[], bool],
    check_alone: Callable[[], None],
    *,
    profile: bool,
) -> None:
    """Show the training's progress until it has ended; UserError if an error ended it, StoppedError if ``stop`` did so.

    UnavailableError if the driver is lost, or not heard for minutes; whoever starts the run again follows or resumes.

    Example: ``follow(Driver.start(plan), run, follower, stop, check_alone, profile=False)``
    """
    recipe = run.config().recipe
    copy, heard, look = MetricsCopy(run.metrics_file), time.monotonic(), None
    start, taken, told, said = "", 0, False, False
    while True:
        check_alone()
        try:
            now = driver.look(start, taken)
        except UnavailableError as error:
            raise UnavailableError(f"{recipe}: {error}; the same command resumes the run") from error
        if now is None:
            seconds = time.monotonic() - heard
            if look is None and not said and seconds > _SECONDS_WORTH_SAYING:
                _log.info("%s: waiting for a node of the cluster with a free CPU, which directs the training", recipe)
                said = True
            if look is not None and seconds > _SECONDS_UNHEARD:
                raise UnavailableError(
                    f"{recipe}: nothing was heard from its driver on the Ray cluster for {seconds:.0f} s; the same "
                    "command follows it if it lives, and resumes the run if not"
                )
            if stop() and look is None:
                driver.dismiss()  # it has no place yet, or nothing of it was seen
                raise stopped(run)
        else:
            if now.start != start:
                if start:
                    _log.warning("%s: the driver was lost and is started again", recipe)
                    copy.take(_lines_at_home(run))  # the lost one's last lines
                start, taken, told = now.start, 0, False
                if profile:
                    run.signals.put(PROFILE)
                    profile = False
            heard, look = time.monotonic(), now
            copy.take(now.lines)
            taken += len(now.lines)
            follower.poll()
            if now.end:
                driver.dismiss()
                _raise_error(now, run, recipe)
                return
            if stop() and not told:
                told = True
                if not now.begun:
                    driver.leave()  # workers take up to half a minute to start, and have nothing to save
                    continue
                run.signals.put(STOP)
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _raise_error(look: Look, run: RunDirectory, recipe: str) -> None:
    if look.end and look.end.error is not None:
        kind = UnavailableError if look.end.may_pass else UserError
        if not look.end.may_pass:
            keep_error(run, look.end.error)
        raise kind(f"{recipe}: {look.end.error}")


def _lines_at_home(run: RunDirectory) -> list[bytes]:
    with suppress(UserError):
        if run.home and run.home.stat(run.metrics_file.name):
            content = run.home.read(run.metrics_file.name)
            return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    return []
