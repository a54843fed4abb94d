"""A TCP proxy that stands between a client and a real server, and is the trouble between them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from resnet_pipeline.parallel import Ahead

_PIECE = 65536


class Proxy:
    """Passes TCP on to a server, until it is told to be trouble.

    - `leave`: nobody listens any more, and all connections are cut; `come_back` ends that.
    - `freeze`: it takes connections and what is sent, and nothing goes on or comes back; `thaw` ends that.
    - ``rate``: it takes what a client sends at once, and passes on so many bytes a second, as a proxy does that keeps
      requests until they are whole.
    - ``cuts``: each of the first so many connections ends after ``after`` bytes of answers; ``done`` counts them.
    """

    def __init__(self, host: str, port: int, *, rate: float | None = None, after: int = 0, cuts: int = 0) -> None:
        self.rate, self.after, self.cuts, self.done = rate, after, cuts, 0
        self._server = (host, port)
        self._flowing = threading.Event()
        self._flowing.set()
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._accept_in_thread()

    def leave(self) -> None:
        """Be away: connections are refused, and those that there are end."""
        for one in (self._listener, *self._connections):
            _end(one)
        self._connections.clear()

    close = leave

    def come_back(self) -> None:
        """Listen again, at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._accept_in_thread()

    def freeze(self) -> None:
        """Take everything and answer nothing."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass on what was taken meanwhile, and whatever comes."""
        self._flowing.set()

    def _accept_in_thread(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            limit = None
            if self.done < self.cuts:
                self.done, limit = self.done + 1, self.after
            threading.Thread(target=self._connect, args=(client, limit), daemon=True).start()

    def _connect(self, client: socket.socket, limit: int | None) -> None:
        self._flowing.wait()
        try:
            server = socket.create_connection(self._server)
        except OSError:
            _end(client)
            return
        self._connections += [client, server]
        threading.Thread(target=self._pass_on, args=(client, server, None, self.rate), daemon=True).start()
        self._pass_on(server, client, limit, None)

    def _pass_on(self, source: socket.socket, target: socket.socket, limit: int | None, rate: float | None) -> None:
        pieces = Ahead(_pieces(source), 10**6) if rate else _pieces(source)
        with suppress(OSError):
            for data in pieces:
                self._flowing.wait()
                if rate:
                    time.sleep(len(data) / rate)
                if limit is not None:
                    data, limit = data[:limit], limit - len(data)
                target.sendall(data)
                if limit is not None and limit <= 0:
                    break
        for end in (source, target):
            _end(end)


def _pieces(source: socket.socket) -> Iterator[bytes]:
    while data := source.recv(_PIECE):
        yield data


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
