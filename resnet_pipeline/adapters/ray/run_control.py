"""Ray: what the processes of a run tell one another if no folder is seen by all of them: an actor keeps it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from resnet_pipeline.errors import UnavailableError, lines_of

_SECONDS_TO_ANSWER = 60.0


class Control:
    """What such an actor keeps: texts by name, and lines by their run."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._lines: dict[str, list[bytes]] = defaultdict(list)

    def put(self, name: str, text: str) -> None:
        """Keep a text."""
        self._texts[name] = text

    def get(self, name: str) -> str | None:
        """Return a text, None if there is none."""
        return self._texts.get(name)

    def remove(self, name: str) -> None:
        """Forget a text."""
        self._texts.pop(name, None)

    def tell(self, run: str, line: bytes) -> None:
        """Keep a line of a run."""
        self._lines[run].append(line)

    def lines(self, run: str, after: int) -> list[bytes]:
        """Return a run's lines, but for the first ``after``."""
        return self._lines[run][after:]


@dataclass(frozen=True)
class RunControl:
    """The `training.signals.Signals` of one run, or of a group of workers, in an actor that is a `Control`.

    It can be sent to any process.

    Example: ``RunControl(actor).of("digits-resnet8-…").put(STOP)``
    """

    actor: Any
    run: str = ""
    shared: bool = False

    def of(self, run: str) -> RunControl:
        """Return the same actor for what concerns a run."""
        return RunControl(self.actor, run)

    def put(self, name: str, text: str = "") -> None:
        """Leave a text."""
        self._ask("put", self._named(name), text)

    def get(self, name: str) -> str | None:
        """Return a text, None if there is none."""
        found: str | None = self._ask("get", self._named(name))
        return found

    def remove(self, name: str) -> None:
        """Remove a text."""
        self._ask("remove", self._named(name))

    def tell(self, line: bytes) -> None:
        """Keep a line of the run's metrics for whoever started it."""
        self._ask("tell", self.run, line)

    def _named(self, name: str) -> str:
        return f"{self.run}/{name}"

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self.actor, method).remote(*arguments), timeout=_SECONDS_TO_ANSWER)
        except ray.exceptions.RayError as error:
            reason = lines_of(error)[0].rstrip(".")
            raise UnavailableError(f"the run's driver on the Ray cluster can't be reached: {reason}") from error
