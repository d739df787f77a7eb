"""The server of texts as a process, whose tokenizer is where a run leaves it, and its page in a browser."""

import shutil

import numpy as np
import pytest

from tests import hub_presets
from tests.serve.test_server import Browser, Server
from tests.serve.test_service import ask, head_of, index_of
from xbm_keras.evaluation.thresholds import MatchThresholds
from xbm_keras.export.saved_model import export_encoder

TEXTS = ["what time is it", "play a song by the book", "book a flight to the weather in time", "tell me joke"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A server of texts, whose tokenizer is where a run leaves it; and what the model gives in this process."""
    pytest.importorskip("keras_hub", reason="needs the extra [hub]")
    from xbm_keras.stages.backbone.hub import HubBackbone

    top = tmp_path_factory.mktemp("texts")
    backbone = HubBackbone.from_preset(hub_presets.tiny_bert(top / "bert"), max_length=32)
    model = head_of(0, backbone)
    version = export_encoder(model, top / "run/export")
    backbone.save_tokenizer(top / "run/tokenizer")
    items = [backbone.prepare(text) for text in TEXTS]
    vectors = model.encoder({name: np.stack([item[name] for item in items]) for name in items[0]}).numpy()
    index_of(
        top / "index", version, vectors, ["clock", "music", "travel", "fun"], text=TEXTS, price=[None, 2.0, 3.0, 1.5]
    )
    table = np.array([[0.5, 0.4, 0.6], [0.95, 0.92, 0.98]])
    MatchThresholds(np.array([0.2, 0.97]), table, table, table, 100, 10).write(version)
    running = Server(top, "index", arguments=[f"--model={top}/run"], precision=0.9)
    yield running, vectors
    running.process.kill()
    running.process.wait()


def test_the_page_searches_texts_and_tells_matches(texts, tmp_path):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    server, _ = texts
    browser = Browser(program, tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.wait_for("document.querySelectorAll('#items li').length === 4")
        assert browser.run("document.getElementById('drop').hidden && !document.getElementById('ask').hidden")
        assert "matches from a similarity of 0.970 on" in browser.run("document.getElementById('about').textContent")
        browser.run("document.getElementById('text').value = 'Tell me joke'")
        browser.run("document.querySelector('#ask button').click()")
        browser.wait_for("document.getElementById('status').textContent.includes('of them matches')")
        shown = browser.run("[...document.querySelector('#items li').innerText.split('\\n')].filter((each) => each)")
        assert shown == ["tell me joke", "fun", "similarity 1.000", "✓ match", "price: 1.5"]
        hits = ask(server, "/search?k=4", texts=["Tell me joke"])[1]["results"][0]["items"]
        assert [hit["is_match"] for hit in hits] == [hit["similarity"] >= 0.97 for hit in hits]
        assert browser.run("document.querySelectorAll('#items .far').length") == sum(
            not hit["is_match"] for hit in hits
        )
        browser.screenshot(tmp_path / "page.png")
    finally:
        browser.process.kill()
        browser.process.wait()


def test_texts_are_tokenized_inside_and_alone_as_among_others(texts):
    server, vectors = texts
    status, answer = ask(server, "/embed", texts=TEXTS)
    assert status == 200
    np.testing.assert_allclose(answer["embeddings"], vectors, atol=1e-6)
    for i, text in enumerate(TEXTS):
        assert ask(server, "/embed", texts=[text])[1]["embeddings"] == [answer["embeddings"][i]]
    status, answer = ask(server, "/search?k=1", texts=["Play a song by the book", "\ud800"])
    assert status == 200
    (best,) = answer["results"][0]["items"]
    assert (best["label"], best["metadata"]) == ("music", {"text": TEXTS[1], "price": 2.0})
    assert ask(server, "/embed", texts=["a" * 100_001])[0] == 413
    assert ask(server, "/embed", texts=[1])[0] == 422
