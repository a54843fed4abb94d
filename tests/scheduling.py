"""How `make test` shares the tests between processes."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

OUTSIDE = ("tests/integration/test_launchers.py", "tests/integration/test_examples.py")


class OneLaneOfServers(LoadFileScheduling):
    """A file at a time to each process; the tests that start servers and clusters never run two at a time.

    Those wait for other processes much of the time, so the others run beside them. What has no server and no node is no
    part of that lane, which would otherwise be the last to end.
    """

    def _split_scope(self, nodeid: str) -> str:
        servers = nodeid.startswith("tests/integration/") and not nodeid.startswith(OUTSIDE)
        return "servers" if servers else super()._split_scope(nodeid)
