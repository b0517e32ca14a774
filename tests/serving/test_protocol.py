"""Connections that are slow, idle, many, or chunked keep nobody else out."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress

import httpx
import pytest
import uvicorn

from recbole_onebp.serving.http.protocol import ConnectionLimits, limited_protocol


@pytest.fixture
def serve():
    """``serve(limits)`` returns host and port of an echo service."""
    with ExitStack() as stack:

        def start(limits):
            async def app(scope, receive, send):
                body, more = b"", True
                chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
                while more and not chunked:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                await send({"type": "http.response.start", "status": 411 if chunked else 200, "headers": []})
                await send({"type": "http.response.body", "body": b"%d" % len(body)})

            listener = socket.create_server(("127.0.0.1", 0))
            config = uvicorn.Config(app, log_level="critical", lifespan="off", http=limited_protocol(limits))
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            while not server.started:
                time.sleep(0.01)
            return listener.getsockname()

        yield start


def is_closed(connection, seconds):
    connection.settimeout(seconds)
    try:
        while connection.recv(1000):
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def answer_of(connection):
    answer = b""
    while not answer.endswith(b"0\r\n\r\n"):  # the last chunk
        answer += connection.recv(1000)
    return answer


def test_a04_headers_must_arrive_in_time(serve):
    place = serve(ConnectionLimits(header_seconds=0.5))
    silent, slow, kept = (socket.create_connection(place) for _ in range(3))
    slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
    kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer_of(kept).startswith(b"HTTP/1.1 200")
    time.sleep(0.7)
    kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # a whole request in time is no reason to close
    assert answer_of(kept).startswith(b"HTTP/1.1 200")
    kept.sendall(b"GET / HTTP/1.1\r\n")  # the second of a connection too
    assert all(is_closed(connection, 2) for connection in (silent, slow, kept))


def test_a04_half_open_connections_keep_nobody_out(serve):
    host, port = serve(ConnectionLimits(open=50, header_seconds=60))
    half_open = []
    for _ in range(205):
        half_open.append(socket.create_connection((host, port)))
        half_open[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
    start = time.perf_counter()
    assert httpx.get(f"http://{host}:{port}/").status_code == 200
    assert time.perf_counter() - start < 0.5
    assert is_closed(half_open[0], 1)
    assert not is_closed(half_open[-1], 0.1)


def test_a06_chunks_are_refused_at_the_headers(serve):
    host, port = serve(ConnectionLimits())
    connection = socket.create_connection((host, port))
    start = time.perf_counter()
    body = 900_000 * b"1\r\nx\r\n"
    with suppress(OSError):  # it hangs up meanwhile
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert httpx.get(f"http://{host}:{port}/").status_code == 200
    assert time.perf_counter() - start < 1


def test_a04_headers_are_bounded(serve):
    place = serve(ConnectionLimits())
    with socket.create_connection(place) as connection, suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nLong: " + 60_000 * b"x" + b"\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 200")
    for line in (b"x: ", b"x" * 100_000, b"a: b\r\n" * 20_000):
        with socket.create_connection(place) as connection, suppress(ConnectionResetError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + line)
            connection.sendall(b"x" * 100_000)
            assert connection.recv(1000).startswith(b"HTTP/1.1 400")
            assert is_closed(connection, 1)


def test_requests_in_a_row_are_answered_in_order(serve):
    """A client may send the next requests before it has the answers; they are parsed when it is their turn."""
    sizes = [number % 7 for number in range(3000)]
    sent = b"".join(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + size * b"y" for size in sizes)
    with socket.create_connection(serve(ConnectionLimits())) as connection:
        threading.Thread(target=connection.sendall, args=(sent,)).start()
        found, connection_file = [], connection.makefile("rb")
        while len(found) < len(sizes):
            while connection_file.readline() != b"\r\n":
                pass
            found.append(int(connection_file.read(int(connection_file.readline(), 16) + 2)))
            assert connection_file.read(5) == b"0\r\n\r\n"
    assert found == sizes


def test_a_chunked_request_in_a_row_is_answered_too(serve):
    with socket.create_connection(serve(ConnectionLimits())) as connection:
        connection.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"
        )
        with connection.makefile("rb") as answers:
            assert [line.split()[1] for line in answers.readlines() if line.startswith(b"HTTP/")] == [b"200", b"411"]


def test_an_upgrade_is_answered_as_usual_and_ends_the_connection(serve):
    """Some clients offer HTTP/2 with their first request."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n"
    place = serve(ConnectionLimits())
    for size in (0, 3, 5000, 1_000_000):
        with socket.create_connection(place) as connection:
            connection.sendall(head % size + size * b"x")
            with connection.makefile("rb") as answers:
                lines = answers.readlines()  # until it is closed
        assert lines[0].startswith(b"HTTP/1.1 200")
        assert b"%d\r\n" % size in lines[6:]


def test_a_body_of_known_length_is_read_whole(serve):
    host, port = serve(ConnectionLimits())
    with httpx.Client() as client:
        for size in (0, 1, 5000, 1_000_000):
            assert client.post(f"http://{host}:{port}/", content=b"x" * size).text == str(size)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"])
def test_a04_the_one_that_has_waited_longest_is_closed(serve, sent):
    """Half of the headers or half of the body; a connection whose request is being answered stays."""
    place = serve(ConnectionLimits(open=10, header_seconds=60))
    connections = []
    for _ in range(12):
        connections.append(socket.create_connection(place))
        connections[-1].sendall(sent)
        time.sleep(0.01)
    assert [is_closed(connection, 0.3) for connection in connections] == [True] * 2 + [False] * 10


def test_a04_a_refused_connection_is_closed_even_if_nobody_reads(serve):
    """What is left to send is not kept for ever."""
    host, port = serve(ConnectionLimits(closing_seconds=0.2))
    connection = socket.create_connection((host, port))
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert is_closed(connection, 2)
