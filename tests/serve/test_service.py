"""The server as a process: vectors, metrics, a model and its index that change as one, and how it stops."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import shutil
import signal
import threading
import time

import keras
import numpy as np
import pytest

from tests.export.test_saved_model import encoded
from tests.serve.test_server import Server
from xbm_keras import Backbone, CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.export.saved_model import export_encoder
from xbm_keras.index.coded_search import CodedSearch, SearchForm
from xbm_keras.index.exported_model import ExportedModel
from xbm_keras.index.galleries import remove_items, write_index
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.opened_index import OpenedIndex
from xbm_keras.serve.metrics import Metrics
from xbm_keras.serve.served import Asked, Served
from xbm_keras.serve.server import make_app
from xbm_keras.serve.service import Service

NUM_FEATURES = 16
FEATURES = np.random.default_rng(0).normal(size=(20, NUM_FEATURES)).astype(np.float32)
JSON = {"Content-Type": "application/json"}


def head_of(seed, backbone=None):
    keras.utils.set_random_seed(seed)
    model = XBMModel(backbone, Head(4), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, NUM_FEATURES)})
    return model


def index_of(folder, version, vectors, labels=None, form=None, engine=None, **metadata):
    """The next version of an index, of vectors that this model gave."""
    ids = [f"item {i}" for i in range(len(vectors))]
    items, model = Gallery.of(vectors, ids, labels, **metadata), ExportedModel(version, "serve_features")
    write_index(folder, items, model.fingerprint, form=form, engine=engine)


def embedded(version, features):
    return ExportedModel(version, "serve_features").embed_features(features)


def ask(server, path, **body):
    status, answer = server.request("POST", path, json.dumps(body), JSON)
    return status, json.loads(answer)


def test_an_item_gets_the_same_bits_alone_as_among_others(tmp_path):
    """Of a network wide enough that kernels sum one row, a few and many in orders of their own."""
    images = keras.Input((12, 10, 3))
    network = keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(600, 3)(images)))
    keras.utils.set_random_seed(0)
    backbone = Backbone(network, preprocessing="MobileNetV2", image_size=(12, 10), name="backbone")
    model = XBMModel(backbone, Head(64), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 600)})
    served = Served(export_encoder(model, tmp_path / "model"), None, Metrics(), 10**8)
    pictures = [encoded(20, 30, seed=i) for i in range(6)]
    rows = np.random.default_rng(0).normal(size=(21, 600)).astype(np.float32)
    for kind, items, wrong in (("pictures", pictures, [b"none"]), ("vectors", rows, [])):
        answers = [
            np.array([each.embedding for each in served._answer(kind, [Asked(item, 0) for item in some])])
            for some in (items, items[:1], items[:4], [items[0], *wrong])
        ]
        for answer in answers[1:3]:
            np.testing.assert_array_equal(answer, answers[0][: len(answer)])
        np.testing.assert_array_equal(answers[3][0], answers[0][0])


@pytest.fixture
def vectors(tmp_path):
    """A server of a head without a network, and its folder."""
    version = export_encoder(head_of(0), tmp_path / "model")
    price = [1.5] + [None] * 19
    index_of(tmp_path / "index", version, embedded(version, FEATURES), ["a"] * 20, price=price, text=["<b>&"] * 20)
    running = Server(tmp_path, "model", "index")
    yield running
    running.process.kill()
    running.process.wait()


def test_vectors_embeddings_and_what_is_refused(vectors):
    expected = embedded(vectors.folder / "model/1", FEATURES)
    status, answer = ask(vectors, "/embed", vectors=FEATURES[:3].tolist())
    assert (status, answer["valid"]) == (200, [True] * 3)
    np.testing.assert_allclose(answer["embeddings"], expected[:3], atol=1e-6)
    for body in ({"vectors": FEATURES[4:5].tolist()}, {"embeddings": (3 * expected[4:5]).tolist()}):
        status, answer = ask(vectors, "/search?k=2", **body)
        assert (status, answer["model"], answer["index"]) == (200, "1", "1")
        best, other = answer["results"][0]["items"]
        assert best.pop("similarity") == pytest.approx(1.0, abs=1e-6)
        assert best == {"id": "item 4", "label": "a", "metadata": {"price": None, "text": "<b>&"}}
        assert other["similarity"] < 1
    assert vectors.get("/items?count=1")[0]["metadata"]["price"] == 1.5
    for where, found in (("price%20%3E%201", ["item 0"]), ("price%20%3E%202", [])):
        status, answer = ask(vectors, f"/search?where={where}", vectors=FEATURES[4:5].tolist())
        assert (status, [hit["id"] for hit in answer["results"][0]["items"]]) == (200, found)
    status, answer = ask(vectors, "/search?where=prize=1", vectors=FEATURES[:1].tolist())
    assert (status, "Received a condition on 'prize'; expected one of" in answer["detail"]) == (422, True)

    nan = b'{"vectors": [[' + b",".join([b"NaN"] * NUM_FEATURES) + b"]]}"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    refused = [
        (b"{", JSON, 422, 'expected an object such as {"vectors": [[...]]}, of 16 numbers each'),
        (b"[]", JSON, 422, "JSON of another form"),
        (b'{"vectors": [], "texts": []}', JSON, 422, "JSON of another form"),
        (b'{"vectors": []}', JSON, 422, "an empty one"),
        (b'{"vectors": [[1, 2]]}', JSON, 422, "expected lists of 16 finite numbers"),
        (b'{"vectors": "me"}', JSON, 422, "vectors that are no list"),
        (b'{"vectors": [{}]}', JSON, 422, "expected lists of 16 finite numbers"),
        (nan, JSON, 422, "expected lists of 16 finite numbers"),
        (b'{"vectors": ' + json.dumps([[0] * 16] * 1025).encode() + b"}", JSON, 413, "expected at most 1024"),
        (b'{"texts": ["a"]}', JSON, 415, "texts; this model takes vectors, embeddings"),
        (b"--x--", form, 415, "pictures; this model takes vectors, embeddings"),
        (b"a", {"Content-Type": "text/plain"}, 415, "expected multipart/form-data or application/json"),
    ]
    for body, headers, status, sentence in refused:
        received = vectors.request("POST", "/search", body, headers)
        assert received[0] == status, received
        assert sentence in json.loads(received[1])["detail"]

    text = vectors.request("GET", "/metrics")[1].decode().splitlines()
    assert 'xbm_keras_requests_total{endpoint="/search",status="200"} 4.0' in text
    assert 'xbm_keras_requests_total{endpoint="/search",status="415"} 3.0' in text
    assert 'xbm_keras_request_seconds_count{endpoint="/embed"} 1.0' in text
    assert 'xbm_keras_pass_items_sum{kind="vectors"} 6.0' in text
    assert "xbm_keras_index_items 20.0" in text
    assert vectors.request("GET", "/nowhere/else")[0] == 404
    assert b'xbm_keras_requests_total{endpoint="other",status="404"} 1.0' in vectors.request("GET", "/metrics")[1]


@pytest.mark.parametrize("engine", ["faiss", "lancedb"])
def test_an_engine_answers_and_changes_with_model_and_index(tmp_path, monkeypatch, caplog, engine):
    pytest.importorskip(engine, reason="needs the extra [ann], or [stores]")
    version = export_encoder(head_of(0), tmp_path / "model")
    items, folder = embedded(version, FEATURES), tmp_path / "index"
    price = [*range(19), float("nan")]
    index_of(folder, version, items, engine=engine, price=price)
    service = Service(str(tmp_path / "model"), folder, 10**8, approximate=True)
    monkeypatch.setattr(OpenedIndex, "_exact", None)  # which is not to be asked
    service.refresh()
    first = service.served

    def found(place, where=None, k=2):
        answers = service.served._answer("vectors", [Asked(FEATURES[place], k, where=where), Asked(FEATURES[0], k)])
        assert answers[1].hits[0]["id"] == "item 0"
        return [hit["id"] for hit in answers[0].hits]

    assert found(4)[0] == "item 4"
    assert found(4, "price = 7 or price > 18") == ["item 7"]
    assert found(19, "not price > 17", k=20)[0] != "item 19"
    with pytest.raises(ValueError, match="condition on 'prize'"):
        service.served.require_readable("prize = 1")
    remove_items(folder, ["item 4"])
    service.refresh()
    assert (service.served.index.name, service.served is first) == ("2", False)
    assert found(4)[0] != "item 4"
    index_of(folder, version, items)
    with caplog.at_level("WARNING", "uvicorn.error"):
        service.refresh()
    assert service.served.index.name == "2"
    assert "left alone: Received --approximate with an index that has no such part" in caplog.text


@pytest.mark.parametrize(
    ("engine", "where", "told"),
    [
        ("usearch", b"price=1", b"USearch, which has no filter"),
        ("lancedb", b"price%20%3E%201e400", b"a condition that LanceDB refuses"),
    ],
)
def test_a_client_is_told_what_is_wrong_with_a_condition_and_not_with_the_server(
    tmp_path, monkeypatch, engine, where, told
):
    pytest.importorskip(engine, reason="needs the extra [ann], or [stores]")
    version, folder = export_encoder(head_of(0), tmp_path / "model"), tmp_path / "index"
    index_of(folder, version, embedded(version, FEATURES), engine=engine, price=[1] * 20)
    service = Service(str(tmp_path / "model"), folder, 10**8, approximate=True)
    service.refresh()
    app, answer = make_app(service, {}), []
    body = json.dumps({"vectors": FEATURES[:1].tolist()}).encode()
    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b"where=" + where}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]

    def damaged(self, *_, **__):
        raise self._damaged(OSError("x"))

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        answer.append(message)

    asyncio.run(app(scope, receive, send))
    assert (answer[0]["status"], told in answer[1]["body"]) == (422, True)
    answer.clear()
    monkeypatch.setattr(OpenedIndex, "find", damaged)
    with pytest.raises(ValueError, match="files are damaged"):  # which the server logs
        asyncio.run(app(scope, receive, send))
    assert (answer[0]["status"], str(tmp_path).encode() in answer[1]["body"]) == (500, False)


def test_a_model_and_its_index_change_as_one_and_no_request_is_lost(vectors):
    top, expected = vectors.folder, {}
    expected["1", "1"] = ask(vectors, "/search?k=3", vectors=FEATURES[:1].tolist())[1]["results"]
    stop, seen = threading.Event(), []

    def client():
        while not stop.is_set():
            status, answer = ask(vectors, "/search?k=3", vectors=FEATURES[:1].tolist())
            seen.append((status, (answer["model"], answer["index"]), answer["results"]))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(client) for _ in range(2)]
        try:
            version = export_encoder(head_of(1), top / "model")  # a model without an index of its own ...
            for _ in range(100):
                if "do not fit each other" in (top / "server.log").read_text():
                    break
                time.sleep(0.1)
            time.sleep(2.5)  # two more looks
            assert vectors.get("/health")["model"] == "1"
            form = SearchForm(4, "int4", "int8", 2)
            index_of(top / "index", version, embedded(version, FEATURES), form=form)  # ... and with one, in codes
            for _ in range(100):
                if vectors.get("/health")["index"] == "2":
                    break
                time.sleep(0.1)
        finally:
            stop.set()
        for each in clients:
            each.result()
    assert (top / "server.log").read_text().count("do not fit each other") == 1
    expected["2", "2"] = ask(vectors, "/search?k=3", vectors=FEATURES[:1].tolist())[1]["results"]
    search = CodedSearch.of(embedded(version, FEATURES), form)
    found = search.find(embedded(version, FEATURES[:1]), 3)[0][0]
    assert [item["id"] for item in expected["2", "2"][0]["items"]] == [f"item {i}" for i in found]
    assert {status for status, _, _ in seen} == {200}
    assert {pair for _, pair, _ in seen} >= {("1", "1")}
    assert all(results == expected[pair] for _, pair, results in seen)

    vectors.kill()
    shutil.copytree(top / "model/1", top / "model/3")  # restarted beside a model that no index fits best
    vectors.start()
    assert ask(vectors, "/search?k=3", vectors=FEATURES[:1].tolist())[1]["results"] == expected["2", "2"]

    broken = top / "index/3"
    shutil.copytree(top / "index/2", broken)
    (broken / "variables/variables.index").write_bytes(b"damaged")
    for _ in range(100):
        if "left alone" in (top / "server.log").read_text():
            break
        time.sleep(0.1)
    assert ask(vectors, "/search?k=3", vectors=FEATURES[:1].tolist())[1]["results"] == expected["2", "2"]
    assert vectors.get("/health")["index"] == "2"

    for version in (broken, top / "index/2"):  # back to the former one
        shutil.rmtree(version)
    for _ in range(100):
        if vectors.get("/health")["index"] == "1":
            break
        time.sleep(0.1)
    answer = ask(vectors, "/search?k=3", vectors=FEATURES[:1].tolist())[1]
    assert answer["results"] == expected["1", "1"]


def test_on_sigterm_what_runs_is_answered_and_what_comes_is_refused(vectors):
    body = json.dumps({"vectors": FEATURES.tolist()}).encode()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", vectors.port, timeout=60)) as late:
        late.putrequest("POST", "/search?k=1")
        late.putheader("Content-Type", "application/json")
        late.putheader("Content-Length", str(len(body)))
        late.endheaders(body[:10])
        for _ in range(100):  # until it is let in, which its own answer cannot tell
            time.sleep(0.02)
            if vectors.request("GET", "/ready")[0] == 200:
                break
        time.sleep(0.2)
        vectors.process.send_signal(signal.SIGTERM)
        for _ in range(100):
            status, state = vectors.request("GET", "/ready")
            if status == 503:
                break
            time.sleep(0.02)
        assert json.loads(state) == {"status": "stopping"}
        time.sleep(0.5)  # as long as something runs
        assert vectors.request("GET", "/health")[0] == 200
        status, answer = ask(vectors, "/search", vectors=FEATURES[:1].tolist())
        assert (status, "stopping" in answer["detail"]) == (503, True)
        late.send(body[10:])
        answer = late.getresponse()
        assert answer.status == 200
        assert len(json.loads(answer.read())["results"]) == 20
    assert vectors.process.wait(20) == 0


def test_it_is_alive_before_it_is_ready_and_says_why_it_cannot_be(tmp_path):
    version = export_encoder(head_of(0), tmp_path / "model")
    other = export_encoder(head_of(1), tmp_path / "other")
    index_of(tmp_path / "index", other, embedded(other, FEATURES))
    with pytest.raises(AssertionError, match="which holds no version that this model embedded"):
        Server(tmp_path, "model", "index")
    assert "Traceback" not in (tmp_path / "server.log").read_text()
    assert version.is_dir()
