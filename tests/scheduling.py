"""How `make test` shares the tests between two processes."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling


class OneLaneOfServers(LoadFileScheduling):
    """A file at a time to each process; the tests that start servers and clusters never run two at a time.

    Those wait for other processes much of the time, so the fast tests run beside them.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "servers" if nodeid.startswith("tests/integration/") else super()._split_scope(nodeid)
