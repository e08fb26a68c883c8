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
from zoo import card, hub
from zoo.errors import UserError


@pytest.fixture
def server():
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture
def client(server, tmp_path):
    """Runs Python with the Hub at the loopback server, and a cache of its own."""

    def run(code, *arguments, **environment):
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
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def nats(folder):
    return zoo.load(str(folder)).score("a b c").nats


PUBLISH = """
    from zoo.cli import main
    main(["publish", "first", "--repo_id", "me/tiny"])
    main(["publish", "second", "--repo_id", "me/tiny"])
"""
LOAD = """
    import json, sys, zoo, zoo.hub
    commit = sys.argv[1]
    zoo.hub.PUBLISHED["tiny"] = ("me/tiny", commit)
    assert "tiny" in zoo.names()
    models = [zoo.load("me/tiny"), zoo.load("me/tiny", revision=commit), zoo.load("tiny")]
    print(json.dumps([model.score("a b c").nats for model in models]))
"""
LOAD_BY_NAME = """
    import json, sys, zoo, zoo.hub
    zoo.hub.PUBLISHED["tiny"] = ("me/tiny", sys.argv[1])
    print(json.dumps(zoo.load("tiny").score("a b c").nats))
"""
TRY = """
    import json, sys, zoo
    messages = []
    for name, revision in json.loads(sys.argv[1]):
        try:
            messages.append(zoo.load(name, revision=revision).score("a b c").nats)
        except zoo.errors.UserError as error:
            messages.append(str(error))
    print(json.dumps(messages))
"""


def test_publish_then_load_by_name_then_offline_and_at_a_pinned_revision(server, client, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("zoo.bundle.SHARD_BYTES", 300)  # the first in shards, which the second must not leave lying about
        make(tmp_path / "first")
    make(tmp_path / "second", seed=1)
    expected = [nats(tmp_path / "first"), nats(tmp_path / "second")]
    assert expected[0] != expected[1]
    output = client(PUBLISH)
    commits = [commit for commit, _ in server.commits["me/tiny"][1:]]
    assert len(set(commits)) == 2
    for name, (commit, files) in zip(("first", "second"), server.commits["me/tiny"][1:], strict=True):
        assert f'"{name}": ("me/tiny", "{commit}"),' in output
        published = {file: data for file, data in files.items() if file != ".gitattributes"}
        assert published == {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}

    assert json.loads(client(LOAD, commits[0])) == [expected[1], expected[0], expected[0]]

    # A pinned commit that is in the cache asks the Hub for nothing, and needs none.
    server.requests.clear()
    assert json.loads(client(LOAD_BY_NAME, commits[0])) == expected[0]
    assert server.requests == []
    server.stop()
    assert json.loads(client(LOAD_BY_NAME, commits[0], HF_HUB_OFFLINE="1")) == expected[0]


def test_an_interrupted_download_says_so_and_goes_on_next_time(server, client, tmp_path):
    make(tmp_path / "tiny")
    server.put("me/tiny", tmp_path / "tiny")
    server.cuts = 6  # the client tries six times
    first, second = json.loads(client(TRY, json.dumps([["me/tiny", None]] * 2)))
    assert first.startswith("me/tiny at main could not be had from the Hub")
    assert second == nats(tmp_path / "tiny")
    assert server.cuts == 0


def test_what_the_hub_does_not_have_or_has_altered_is_named(server, client, tmp_path):
    make(tmp_path / "tiny")
    server.put("me/tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"another file")
    server.put("me/altered", tmp_path / "tiny")
    (tmp_path / "tiny" / "config.yaml").unlink()
    server.put("me/no-model", tmp_path / "tiny")
    wanted = [["me/nothing", None], ["me/tiny", "v9"], ["me/altered", None], ["me/no-model", None], ["me/a b", None]]
    nothing, revision, altered, no_model, no_id = json.loads(client(TRY, json.dumps(wanted)))
    assert nothing.startswith("me/nothing at main could not be had from the Hub")
    assert revision.startswith("me/tiny at v9 could not be had from the Hub")
    assert "model.safetensors was changed: its sha256 is" in altered
    assert "config.yaml is missing" in no_model
    assert no_id.startswith("me/a b at main could not be had from the Hub")


def test_offline_and_not_in_the_cache(tmp_path):
    with pytest.raises(UserError, match="me/tiny at main could not be had from the Hub"):
        zoo.load("me/tiny")


def test_a_partial_run_is_not_published_unawares(tmp_path):
    make(tmp_path / "tiny")
    partial = card.Measured("owner/data", "Data", "perplexity per word", finished=False)
    (tmp_path / "tiny" / "README.md").write_text(card.render("tiny", card.Card(), partial))
    with pytest.raises(UserError, match="a run that was cut short; partial=true publishes it nevertheless"):
        hub.publish(str(tmp_path / "tiny"), "me/tiny")


def test_a_repository_that_cannot_be_is_named(tmp_path):
    make(tmp_path / "tiny")
    with pytest.raises(UserError, match="me//tiny could not be written"):
        hub.publish(str(tmp_path / "tiny"), "me//tiny")


def test_a_recipe_without_weights_is_not_published(tmp_path):
    make(tmp_path / "tiny")
    for name in ("model.safetensors", "SHA256SUMS"):
        (tmp_path / "tiny" / name).unlink()
    with pytest.raises(UserError, match="tiny is a recipe without weights"):
        hub.publish(str(tmp_path / "tiny"), "me/tiny")


class TestNames:
    def test_the_checkouts_models_are_known(self):
        assert {"zaremba-small-ptb", "zaremba-medium-ptb", "zaremba-large-ptb"} <= set(zoo.names())

    def test_places_are_searched_in_order(self, tmp_path, monkeypatch):
        chosen, here = tmp_path / "chosen", tmp_path / "here"
        for place in (chosen, here / "checkpoints"):
            (place / "zaremba-small-ptb").mkdir(parents=True)
            (place / "zaremba-small-ptb" / "config.yaml").touch()
        monkeypatch.chdir(tmp_path)
        assert hub.find("zaremba-small-ptb").folder == ROOT / "checkpoints" / "zaremba-small-ptb"
        monkeypatch.chdir(here)
        assert hub.find("zaremba-small-ptb").folder.resolve() == here / "checkpoints" / "zaremba-small-ptb"
        monkeypatch.setenv("ZOO_CHECKPOINTS", str(chosen))
        assert hub.find("zaremba-small-ptb").folder == chosen / "zaremba-small-ptb"
        assert hub.find(str(here / "checkpoints" / "zaremba-small-ptb")).folder.parent.parent == here

    def test_an_unknown_name_lists_the_nearest(self):
        with pytest.raises(UserError, match="no model 'zarembasmall-ptb': did you mean zaremba-small-ptb"):
            zoo.load("zarembasmall-ptb")
        with pytest.raises(UserError, match="known are .*zaremba-small-ptb"):
            zoo.load("qqq")

    def test_a_folder_that_is_no_model_says_so(self, tmp_path):
        with pytest.raises(UserError, match=r"is a folder but no model: it has no config\.yaml"):
            zoo.load(str(tmp_path))
        with pytest.raises(UserError, match="no model './me/nothing'"):
            zoo.load("./me/nothing")

    def test_a_mistyped_folder_is_not_looked_for_on_the_hub(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "owner").mkdir()
        with pytest.raises(UserError, match="no model 'owner/zaremba-smal-ptb': did you mean zaremba-small-ptb"):
            zoo.load("owner/zaremba-smal-ptb")

    def test_a_revision_of_a_local_folder_is_refused(self):
        with pytest.raises(UserError, match="revision 'v1' is for the Hub"):
            zoo.load("zaremba-small-ptb", revision="v1")
