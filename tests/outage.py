"""What lets a server such as PostgreSQL be away and come back: a relay before it, or a stop of its processes."""

import selectors
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from sqlalchemy import create_engine, make_url, text


class Relay:
    """Passes every connection to its port on to a server, unless it is away: then connections break and are refused."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lost: set[socket.socket] = set()
        self._swallowing = False
        self._lock = threading.Lock()
        self._serve(self._listener)

    def away(self) -> None:
        """Break all connections and refuse new ones."""
        with self._lock:
            for each in (self._listener, *self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._open.clear()

    def swallow(self) -> None:
        """Keep all connections open and take new ones, and pass nothing on: each side waits for the other's answer."""
        self._swallowing = True

    def pass_on(self) -> None:
        """Pass new connections on again; those that were swallowed stay silent for ever."""
        with self._lock:
            self._lost |= self._open
            self._swallowing = False

    def back(self) -> None:
        """Take connections again."""
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self._serve(self._listener)

    def _serve(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._to)
                with self._lock:
                    self._open |= {client, server}
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with suppress(OSError, ValueError), selectors.DefaultSelector() as ready:
            for each in other:
                ready.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select(timeout=0.5):
                    source = client if key.fileobj is client else server
                    data = source.recv(65536)
                    if not data:
                        return self._end(client, server)
                    if self._swallowing or client in self._lost:
                        continue
                    other[source].sendall(data)
        return self._end(client, server)

    def _end(self, *sockets: socket.socket) -> None:
        with self._lock:
            for each in sockets:
                self._open.discard(each)
                self._lost.discard(each)
                each.close()


@contextmanager
def relayed(url: str) -> Iterator[tuple[Relay, str]]:
    """A relay before the database of a URL, and its URL by way of the relay."""
    parsed = make_url(url)
    relay = Relay(parsed.host or "127.0.0.1", parsed.port or 5432)
    try:
        yield relay, parsed.set(port=relay.port).render_as_string(hide_password=False)
    finally:
        relay.away()


@contextmanager
def freezable(url: str) -> Iterator["Frozen"]:
    """What freezes the PostgreSQL server of a URL, which goes on at the end."""
    engine = create_engine(url)
    with engine.connect() as connection:
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
        postmaster = psutil.Process(backend).parent()
    engine.dispose()
    assert postmaster is not None
    frozen = Frozen(postmaster)
    try:
        yield frozen
    finally:
        frozen.thaw()


class Frozen:
    """A server whose processes can be stopped: connections stay open, the kernel takes new ones, nobody answers."""

    def __init__(self, postmaster: psutil.Process) -> None:
        self._postmaster = postmaster

    def freeze(self) -> None:
        """Stop all processes; the parent first, so that no more begin."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        for process in (self._postmaster, *self._postmaster.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
