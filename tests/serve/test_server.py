"""The server as a process: its answers, its limits, under load, killed and started again, and in a browser."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests.export.test_saved_model import encoded, image_model
from tests.fresh_processes import start_python
from xbm_keras.cli import index
from xbm_keras.export.saved_model import export_encoder

for package in ("fastapi", "uvicorn", "multipart"):
    pytest.importorskip(package, reason="needs the extra [serve]")

BOUNDARY = "--------picture"


class Server:
    """The server in a process of its own, on a free port of this machine."""

    def __init__(self, folder, *parts, arguments=(), **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [
            "-m", "xbm_keras.cli", "serve", f"--port={self.port}",
            *(f"--{name}={folder / name}" for name in parts),
            *(f"--{name}={value}" for name, value in options.items()), *arguments,
        ]  # fmt: skip
        self.folder = folder
        self.start()

    def start(self):
        log = self.folder / "server.log"
        self.process = start_python(self.command, log, log, cwd=self.folder)
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if self.request("GET", "/ready")[0] == 200:
                    return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text())

    def kill(self):
        """As the kernel kills: without a last word."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def request(self, method, path, body=None, headers=None):
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def get(self, path):
        status, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path, pictures):
        """Status and decoded body of pictures sent as a form."""
        body = b"".join(
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="pictures"; filename="{i}"\r\n\r\n'.encode()
            + picture
            + b"\r\n"
            for i, picture in enumerate(pictures)
        )
        body += f"--{BOUNDARY}--\r\n".encode()
        form = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        status, answer = self.request("POST", path, body, form)
        return status, json.loads(answer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, pictures and their index."""
    top = tmp_path_factory.mktemp("serve")
    model = export_encoder(image_model(), top / "model")
    for i in range(12):
        path = top / f"pictures/class {i % 3}/{i} ä.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(20 + i, 30, seed=i))
    (top / "secret.txt").write_text("secret")
    index.main(["build", f"--model={model}", f"--pictures={top}/pictures", f"--index={top}/index"])
    return top


@pytest.fixture(scope="module")
def server(folder):
    running = Server(folder, "model", "index", "pictures")
    yield running
    running.process.kill()
    running.process.wait()


def test_it_says_where_it_answers(folder, server):
    assert f"http://127.0.0.1:{server.port} answers; Ctrl-C ends it.\n" in (folder / "server.log").read_text()


def test_answers_are_those_of_the_exported_model(server, folder):
    pictures = [encoded(25, 18, "JPEG", seed=40), b"no picture", (folder / "pictures/class 1/4 ä.png").read_bytes()]
    status, answer = server.post("/embed", pictures)
    assert status == 200
    assert answer["valid"] == [True, False, True]
    serve = tf.saved_model.load(str(folder / "model/1")).signatures["serve_bytes"]
    np.testing.assert_allclose(answer["embeddings"], serve(bytes=tf.constant(pictures))["embeddings"], atol=1e-6)

    status, answer = server.post("/search?k=3", pictures)
    assert status == 200
    first, bad, own = answer["results"]
    assert [len(result["items"]) for result in (first, bad, own)] == [3, 0, 3]
    assert not bad["valid"]
    assert own["items"][0]["id"] == "class 1/4 ä.png"
    assert own["items"][0]["label"] == "class 1"
    assert own["items"][0]["similarity"] == pytest.approx(1.0, abs=1e-6)
    assert [item["label"] for item in server.get("/items?count=3")] == ["class 0", "class 1", "class 2"]


def test_pictures_that_tensorflow_does_not_know_are_read_as_in_training(server):
    png = encoded(25, 18, seed=41)
    pixels = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    tiff = io.BytesIO()
    pixels.save(tiff, "TIFF")
    damaged, huge = tiff.getvalue()[: len(tiff.getvalue()) // 2], io.BytesIO()
    PIL.Image.new("1", (5_000, 5_000)).save(huge, "TIFF", compression="group4")  # 25 megapixels in a few kilobytes
    _, answer = server.post("/embed", [png, tiff.getvalue(), damaged, huge.getvalue()])
    assert answer["valid"] == [True, True, False, False]
    np.testing.assert_allclose(answer["embeddings"][1], answer["embeddings"][0], atol=1e-6)


def test_without_an_index_it_embeds(folder):
    running = Server(folder, "model")
    try:
        about = {
            "status": "ok",
            "model": "1",
            "index": None,
            "items": 0,
            "approximate": False,
            "takes": ["pictures", "vectors", "embeddings"],
        }
        assert running.get("/health") == about
        status, answer = running.post("/embed", [encoded(8, 8)])
        assert status == 200
        assert answer["valid"] == [True]
        status, answer = running.post("/search", [encoded(8, 8)])
        assert status == 404
        assert "say --index" in answer["detail"]
        assert running.get("/items") == []
    finally:
        running.kill()


def test_limits(server):
    small = encoded(8, 8)
    assert server.post("/search?k=3", [small] * 33)[0] == 413
    assert server.post("/search?k=0", [small])[0] == 422
    assert server.post("/search?k=101", [small])[0] == 422
    assert server.post("/search", [])[0] == 422
    assert server.request("POST", "/search", b"x", {"Content-Length": str(1 << 30)})[0] == 413
    assert server.request("POST", "/search", iter([b"x"]), {"Transfer-Encoding": "chunked"})[0] == 411
    assert server.get("/health")["status"] == "ok"


def test_only_pictures_of_items_are_given_away(server):
    status, body = server.request("GET", "/picture/class%201/4%20%C3%A4.png")
    assert status == 200
    assert body == encoded(24, 30, seed=4)
    for path in ("/picture/../secret.txt", "/picture/%2e%2e/secret.txt", "/picture//etc/passwd", "/picture/nobody.png"):
        assert server.request("GET", path)[0] == 404


def test_under_load_answers_stay_the_same_bit_for_bit(server):
    pictures = [encoded(20 + i, 40, "JPEG", seed=60 + i) for i in range(8)]
    alone = [server.post("/search?k=5", [picture]) for picture in pictures]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: server.post("/search?k=5", [pictures[i % 8]]), range(160)))
    assert all(answer == alone[i % 8] for i, answer in enumerate(answers))


def test_a_new_version_of_the_index_is_taken_up_and_a_kill_loses_nothing(folder, server):
    late = encoded(50, 20, seed=99)
    more = folder / "more"
    more.mkdir()
    (more / "late.png").write_bytes(late)
    version = server.get("/health")["index"]
    index.main(["add", f"--model={folder}/model/1", f"--pictures={more}", f"--index={folder}/index"])
    for _ in range(100):
        if server.get("/health")["index"] != version:
            break
        time.sleep(0.1)
    before = server.post("/search?k=4", [late])
    assert before[1]["results"][0]["items"][0]["id"] == "more/late.png"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(server.post, "/search?k=4", [late]) for _ in range(20)]
        server.kill()
        for future in pending:
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert future.result() == before
    server.start()
    assert server.post("/search?k=4", [late]) == before


class Browser:
    """Chromium without a window, spoken to through a pipe (Chrome DevTools Protocol)."""

    def __init__(self, program, profile):
        to_browser, self.out = os.pipe()
        self.inp, from_browser = os.pipe()
        arguments = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *arguments],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.rest, self.session = 0, b"", None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                received = os.read(self.inp, 1 << 16)
                assert received, "the browser ended"
                self.rest += received
            answer, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(answer)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        """The value of a script, which may be a promise."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script):
        for _ in range(300):
            value = self.run(script)
            if value:
                return value
            time.sleep(0.1)
        raise TimeoutError(script)

    def screenshot(self, path, width=1100, height=800):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


DROP = """
(async () => {
  const blob = new Blob([Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0))]);
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], "dropped", {type: "image/jpeg"}));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
})()
"""


def test_the_page_shows_the_items_nearest_to_a_dropped_picture(server, folder, tmp_path):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    browser = Browser(program, tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.wait_for(
            "document.readyState === 'complete' && document.getElementById('about').textContent.includes('items')"
        )
        picture = (folder / "pictures/class 2/8 ä.png").read_bytes()
        browser.run(DROP % base64.b64encode(picture).decode())
        browser.wait_for("document.querySelectorAll('#items li').length")
        assert browser.run("document.querySelector('#items button').title") == "class 2/8 ä.png"
        assert browser.run("document.querySelector('#items small').textContent") == "similarity 1.000"
        browser.wait_for("[...document.querySelectorAll('#items img')].every((i) => i.complete && i.naturalWidth)")
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000

        browser.run("document.querySelectorAll('#items button')[1].click()")  # search by that item
        browser.wait_for("location.search.includes('item=')")
        browser.run(DROP % base64.b64encode(b"no picture").decode())
        assert "no picture that the model can read" in browser.wait_for(
            "document.getElementById('status').className === 'error' && document.getElementById('status').textContent"
        )
    finally:
        browser.process.kill()
        browser.process.wait()
