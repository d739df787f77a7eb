"""What the server lets in and gives away: sockets that send little, or slowly, or ask under a stranger's name."""

import contextlib
import http.client
import io
import os
import pathlib
import socket
import threading
import time

import numpy as np
import PIL.Image
import pytest

from tests.export.test_saved_model import encoded, image_model
from tests.serve.test_server import BOUNDARY, Server
from xbm_keras.export.saved_model import export_encoder
from xbm_keras.index import galleries
from xbm_keras.index.exported_model import fingerprint_of
from xbm_keras.index.gallery import Gallery

PATIENCE = 2.0
LARGE = 32 << 20
FILES = {
    "plain.jpg": encoded(20, 30, "JPEG"),
    "wrong.html": encoded(20, 30, "PNG"),
    "moving.gif": encoded(20, 30, "GIF", mode="P"),
    "raw.bmp": encoded(20, 30, "BMP"),
    "web": encoded(20, 30, "WEBP"),
    "page.html": b"<script>alert(1)</script>",
    "page.jpg": b"<script>alert(1)</script>",
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "riff.webp": b"RIFF\0\0\0\0WAVE<script>",
    "empty.png": b"",
}
OUTSIDE = [
    "more/../secret.png",
    "more//etc/hostname",
    "more/plain.jpg",
    "link.png",
    "../secret.png",
    "linked/secret.png",
    "folder",
    "missing.png",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, files, links, and an index whose items name all of them and more."""
    top = tmp_path_factory.mktemp("serve")
    model = export_encoder(image_model(), top / "model")
    (top / "secret.png").write_bytes(encoded(8, 8))
    (top / "elsewhere").mkdir()
    (top / "elsewhere/secret.png").write_bytes(encoded(8, 8))
    pictures = top / "pictures"
    (pictures / "folder").mkdir(parents=True)
    for name, content in FILES.items():
        (pictures / name).write_bytes(content)
    (pictures / "link.png").symlink_to(top / "secret.png")
    (pictures / "linked").symlink_to(top / "elsewhere")
    (pictures / "unlisted.png").write_bytes(encoded(8, 8))
    (top / "more").mkdir()
    (top / "more/late.png").write_bytes(encoded(9, 9))
    ids = np.array([*FILES, *OUTSIDE, "more/late.png", str(top / "secret.png")])
    vectors = np.eye(4, dtype=np.float32)[np.arange(len(ids)) % 4]
    gallery = Gallery.of(vectors, ids)
    galleries.write_index(top / "index", gallery, fingerprint_of(model))
    return top


@pytest.fixture(scope="module")
def server(folder):
    options = {"patience": PATIENCE, "max_pixels": 2_000_000, "allowed_hosts": "shop.example"}
    pictures = ["--pictures", str(folder / "pictures"), f"more={folder}/more"]
    running = Server(folder, "model", "index", arguments=pictures, **options)
    yield running
    running.process.kill()
    running.process.wait()


@contextlib.contextmanager
def connected(server, *parts):
    """A bare connection that sent these parts."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def head(length, *lines, method="POST", path="/embed"):
    fields = ["Host: 127.0.0.1:1", f"Content-Type: multipart/form-data; boundary={BOUNDARY}", *lines]
    if length is not None:
        fields.append(f"Content-Length: {length}")
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "", ""]).encode()


def answer_to(server, path):
    """Status, headers and body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def everything(connection):
    """What comes until the other side ends; empty where it just breaks off."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            received += part
    return received


def first_line(connection):
    return connection.recv(1 << 16).split(b"\r\n")[0].decode()


def rss(server):
    """Bytes of memory that the process holds."""
    return int(pathlib.Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_answered(server):
    status, answer = server.post("/embed", [encoded(8, 8)])
    return status == 200 and answer["valid"] == [True]


def test_room_is_asked_for_before_a_body_is_read(server):
    """Seven bodies of 32 MB leave no room for more of them, but room for small ones."""
    with contextlib.ExitStack() as stack:
        admitted = [stack.enter_context(connected(server, head(LARGE), b"x")) for _ in range(7)]
        time.sleep(0.2)
        late = stack.enter_context(connected(server, head(LARGE)))
        answer = late.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answer.lower()
        assert is_answered(server)
        for connection in admitted:  # they send nothing more, and their room is free again
            assert everything(connection).startswith(b"HTTP/1.1 408 ")
    with connected(server, head(LARGE, "Expect: 100-continue")) as connection:
        assert first_line(connection) == "HTTP/1.1 100 Continue"


def test_many_clients_that_send_the_beginning_of_much_take_little_memory(server):
    before, most = rss(server), 0
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            connection = stack.enter_context(connected(server, head(LARGE)))
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                connection.send(
                    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="pictures"; filename="x"\r\n\r\n'.encode()
                    + bytes(1_000_000)
                )
            most = max(most, rss(server) - before)
        for _ in range(10):
            time.sleep(0.05)
            most = max(most, rss(server) - before)
        assert most < 120e6  # 150 bodies of 32 MB are announced, and a megabyte of each comes
    time.sleep(0.2)
    assert is_answered(server)


def test_a_body_that_trickles_is_cut_off(server):
    with connected(server, head(100_000)) as connection:
        connection.settimeout(0.25)
        sent, answer = 0, b""
        while not answer:
            assert sent < 100, "it would have waited for ever"
            connection.sendall(b"x")
            sent += 1
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "start", [b"", b"GET /health HTTP/1.1\r\nHost: 127", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
def test_a_connection_that_asks_for_nothing_is_ended(server, start):
    """Also where its head trickles."""
    with connected(server, start) as connection:
        ended = threading.Event()
        threading.Thread(target=lambda: (everything(connection), ended.set()), daemon=True).start()
        for _ in range(100):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"G" if start.endswith(b"\n") or not start else b".")
            if ended.wait(0.25):
                return
    raise TimeoutError


def test_an_answer_that_is_not_taken_ends_the_connection(server, folder):
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(folder / "pictures/raw.bmp")  # 27 MB, more than sockets buffer
    count = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    with connected(server, head(None, method="GET", path="/picture/raw.bmp")):
        for _ in range(100):
            time.sleep(0.25)
            if len(os.listdir(f"/proc/{server.process.pid}/fd")) <= count:
                break
        else:
            raise TimeoutError
    (folder / "pictures/raw.bmp").write_bytes(FILES["raw.bmp"])


def test_more_connections_than_there_may_be_do_not_shut_others_out_for_long(server):
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(connected(server))
        for _ in range(100):
            with contextlib.suppress(OSError, http.client.HTTPException):
                if is_answered(server):
                    return
            time.sleep(0.1)
    raise TimeoutError


@pytest.mark.parametrize(
    ("lines", "length", "status"),
    [
        ([], LARGE + 1, 413),
        ([], 10**30, 400),  # h11 takes no such number
        (["Transfer-Encoding: chunked"], None, 411),
        (["Transfer-Encoding: chunked"], 10, 411),  # the length would not count
        ([], 0, 422),
        ([], None, 422),
    ],
)
def test_bodies_whose_size_is_not_known_or_too_large(server, lines, length, status):
    with connected(server, head(length, *lines), b"5\r\nhello\r\n" if lines else b"") as connection:
        assert first_line(connection).startswith(f"HTTP/1.1 {status} ")


def test_who_is_refused_can_read_so_while_still_sending(server):
    body = bytes(8 << 20)
    status, answer = server.request("POST", "/embed", body, {"Host": "evil.example"})
    assert status == 400
    assert b"evil.example" in answer


def test_a_request_has_so_many_pixels(server):
    """Two megapixels here. What alone has more is not decoded; what has more together is refused."""
    million, bomb = PIL.Image.new("RGB", (1000, 1000)), PIL.Image.new("RGB", (4000, 4000))
    files = [io.BytesIO(), io.BytesIO()]
    for file, picture in zip(files, (million, bomb), strict=True):
        picture.save(file, "PNG")
    one, large = (file.getvalue() for file in files)
    assert server.post("/embed", [one, one, large])[1]["valid"] == [True, True, False]
    status, answer = server.post("/search?k=1", [one, one, encoded(8, 8)])
    assert status == 413
    assert "2 megapixels" in answer["detail"]
    assert is_answered(server)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("plain.jpg", "image/jpeg"), ("wrong.html", "image/png"), ("moving.gif", "image/gif"), ("raw.bmp", "image/bmp"),
        ("web", "image/webp"),
    ],
)  # fmt: skip
def test_a_picture_is_told_by_its_content(server, name, kind):
    status, headers, body = answer_to(server, f"/picture/{name}")
    assert (status, headers["Content-Type"]) == (200, kind)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert body == FILES[name]


def test_each_root_has_its_folder(server):
    assert answer_to(server, "/picture/more/late.png")[2] == encoded(9, 9)


@pytest.mark.parametrize(
    "path",
    [
        "page.html", "page.jpg", "drawing.svg", "riff.webp", "empty.png", *OUTSIDE, "unlisted.png", "..%2fsecret.png",
        "%2e%2e%2fsecret.png", "..%5csecret.png", "plain.jpg%00", "plain.jpg/", "./plain.jpg", "%2e/plain.jpg", "",
    ],
)  # fmt: skip
def test_nothing_else_is_given_away(server, path):
    status, body = server.request("GET", f"/picture/{path}")
    assert status == 404, body


def test_no_absolute_path_is_given_away(server, folder):
    for path in (f"{folder}/secret.png", f"/{folder}/secret.png", "%2fetc%2fpasswd"):
        assert server.request("GET", f"/picture/{path}")[0] == 404


@pytest.mark.parametrize("path", ["/", "/health", "/items", "/picture/nobody", "/embed", "/docs", "/nowhere"])
def test_every_answer_forbids_to_guess_and_to_load_from_elsewhere(server, path):
    headers = answer_to(server, path)[1]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'sha256-")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:8000", 200), ("localhost:1", 200), ("LOCALHOST", 200), ("[::1]:8000", 200),
        ("shop.example", 200), ("Shop.Example:443", 200),
        ("evil.example", 400), ("evil.example:8000", 400), ("127.0.0.1.evil.example", 400), ("localhost.evil", 400),
        ("evil.shop.example", 400), ("localhost@evil.example", 400), ("localhost evil.example", 400), ("", 400),
        ("[::1]evil.example", 400), ("10.0.0.1", 400),
    ],
)  # fmt: skip
def test_only_own_names_are_answered_to(server, host, status):
    """A stranger's page whose name points here (DNS rebinding) must not read what is served."""
    for path in ("/", "/items", "/picture/plain.jpg"):
        assert server.request("GET", path, headers={"Host": host})[0] == status
    with connected(server, f"GET /items HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: localhost\r\n\r\n".encode()) as c:
        assert first_line(c).startswith(f"HTTP/1.1 {status} ")


def test_without_a_name_it_does_not_answer(server):
    with connected(server, b"GET /items HTTP/1.0\r\n\r\n") as connection:
        assert first_line(connection).startswith("HTTP/1.1 400 ")
