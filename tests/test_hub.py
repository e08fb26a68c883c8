"""Names and repositories, over real HTTP; each client is a process of its own, as a user's would be."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

import zoo
from tests.conftest import ROOT
from tests.hub_server import Hub
from tests.test_bundle import make
from zoo import hub
from zoo.errors import UserError


@pytest.fixture
def server():
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture
def client(server, tmp_path):
    """Runs Python with the Hub at the loopback server, and a cache of its own."""

    def run(code, *arguments, expect=0, **environment):
        settings = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "a-token",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            env={**os.environ, **settings, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == expect, done.stderr
        return done.stdout if expect == 0 else done.stderr

    return run


PUBLISH = "import sys; from zoo.cli import main; main(['publish', *sys.argv[1:]])"
LOAD = """
    import json, sys, zoo
    revision = sys.argv[2] if len(sys.argv) > 2 else None
    print(json.dumps(zoo.load(sys.argv[1], revision=revision).score("a b c").nats))
"""
LOAD_BY_NAME = """
    import json, sys, zoo, zoo.hub
    zoo.hub.PUBLISHED["tiny"] = ("me/tiny", sys.argv[1])
    assert "tiny" in zoo.names()
    print(json.dumps(zoo.load("tiny").score("a b c").nats))
"""
LOAD_OR_SAY = """
    import sys
    from zoo.cli import main
    main(["score", sys.argv[1], sys.argv[2]])
"""


def nats(model, tokenizer):
    model.tokenizer = tokenizer
    return model.score("a b c").nats


def test_publish_then_load_by_name_then_offline_then_at_a_pinned_revision(server, client, tmp_path):
    first = make(tmp_path / "tiny")
    tokenizer = zoo.load(str(tmp_path / "tiny")).tokenizer
    output = client(PUBLISH, "tiny", "me/tiny")
    commit, files = server.commits["me/tiny"][-1]
    assert f'"tiny": ("me/tiny", "{commit}"),' in output
    assert {file: data for file, data in files.items() if file != ".gitattributes"} == {
        file.name: file.read_bytes() for file in (tmp_path / "tiny").iterdir()
    }
    (tmp_path / "tiny").rename(tmp_path / "moved")

    assert json.loads(client(LOAD, "me/tiny")) == nats(first, tokenizer)
    assert json.loads(client(LOAD_BY_NAME, commit)) == nats(first, tokenizer)

    second = make(tmp_path / "moved", seed=1)
    client(PUBLISH, "moved", "me/tiny")
    assert server.commits["me/tiny"][-1][0] != commit
    assert json.loads(client(LOAD, "me/tiny")) == nats(second, tokenizer) != nats(first, tokenizer)
    assert json.loads(client(LOAD, "me/tiny", commit)) == nats(first, tokenizer)

    # A pinned commit that is in the cache asks the Hub for nothing, and needs none.
    server.requests.clear()
    assert json.loads(client(LOAD_BY_NAME, commit)) == nats(first, tokenizer)
    assert server.requests == []
    assert json.loads(client(LOAD_BY_NAME, commit, HF_HUB_OFFLINE="1")) == nats(first, tokenizer)


def test_an_interrupted_download_says_so_and_goes_on_next_time(server, client, tmp_path):
    model = make(tmp_path / "tiny")
    tokenizer = zoo.load(str(tmp_path / "tiny")).tokenizer
    client(PUBLISH, "tiny", "me/tiny")
    (tmp_path / "text").write_text("a b c\n")
    server.cut = 100
    message = client(LOAD_OR_SAY, "me/tiny", "text", expect=2)
    assert message.startswith("error: me/tiny at main could not be had from the Hub")
    server.cut = None
    assert json.loads(client(LOAD, "me/tiny")) == nats(model, tokenizer)


def test_a_tampered_file_is_refused(server, client, tmp_path):
    make(tmp_path / "tiny")
    client(PUBLISH, "tiny", "me/tiny")
    files = server.commits["me/tiny"][-1][1]
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"\x7f"
    (tmp_path / "text").write_text("a b c\n")
    message = client(LOAD_OR_SAY, "me/tiny", "text", expect=2)
    assert "model.safetensors was changed: its sha256 is" in message


@pytest.mark.parametrize(("name", "revision"), [("me/nothing", None), ("me/tiny", "v9")])
def test_what_the_hub_does_not_have_is_named(server, client, tmp_path, name, revision):
    make(tmp_path / "tiny")
    client(PUBLISH, "tiny", "me/tiny")
    code = f"import zoo\nzoo.load({name!r}, revision={revision!r})"
    assert f"UserError: {name} at {revision or 'main'} could not be had from the Hub" in client(code, expect=1)


def test_offline_and_not_in_the_cache(client):
    assert "me/tiny at main could not be had from the Hub" in client(
        "import zoo; zoo.load('me/tiny')", expect=1, HF_HUB_OFFLINE="1"
    )


def test_a_recipe_without_weights_is_not_published(server, client, tmp_path):
    make(tmp_path / "tiny")
    for name in ("model.safetensors", "SHA256SUMS"):
        (tmp_path / "tiny" / name).unlink()
    assert "error: tiny is a recipe without weights" in client(PUBLISH, "tiny", "me/tiny", expect=2)
    assert server.requests == []


class TestNames:
    def test_the_checkouts_models_are_known(self):
        assert {"zaremba-small-ptb", "zaremba-medium-ptb", "zaremba-large-ptb"} <= set(zoo.names())

    def test_places_are_searched_in_order(self, tmp_path, monkeypatch):
        chosen, here = tmp_path / "chosen", tmp_path / "here"
        for place in (chosen, here / "checkpoints"):
            (place / "zaremba-small-ptb").mkdir(parents=True)
            (place / "zaremba-small-ptb" / "config.yaml").touch()
        assert hub.folder("zaremba-small-ptb") == ROOT / "checkpoints" / "zaremba-small-ptb"
        monkeypatch.chdir(here)
        assert hub.folder("zaremba-small-ptb").resolve() == here / "checkpoints" / "zaremba-small-ptb"
        monkeypatch.setenv("ZOO_CHECKPOINTS", str(chosen))
        assert hub.folder("zaremba-small-ptb") == chosen / "zaremba-small-ptb"
        assert hub.folder(str(here / "checkpoints" / "zaremba-small-ptb")).parent.parent == here

    def test_an_unknown_name_lists_the_nearest(self):
        with pytest.raises(UserError, match="no model 'zarembasmall-ptb': did you mean zaremba-small-ptb"):
            zoo.load("zarembasmall-ptb")
        with pytest.raises(UserError, match="known names: .*zaremba-small-ptb"):
            zoo.load("qqq")

    def test_a_folder_that_is_no_model_says_so(self, tmp_path):
        with pytest.raises(UserError, match=r"is a folder but no model: it has no config\.yaml"):
            zoo.load(str(tmp_path))
        with pytest.raises(UserError, match="no model './me/nothing'"):
            zoo.load("./me/nothing")

    def test_a_revision_of_a_local_folder_is_refused(self):
        with pytest.raises(UserError, match="revision 'v1' is for the Hub"):
            zoo.load("zaremba-small-ptb", revision="v1")
