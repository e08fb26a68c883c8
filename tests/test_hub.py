"""Names and repositories, over real HTTP; each client is a process of its own, as a user's would be."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
import yaml

import zoo
from tests.conftest import ROOT
from tests.hub_server import TOKEN, Hub
from tests.test_bundle import RECIPE, make, seal
from zoo import card, hub
from zoo.cli import main
from zoo.errors import UserError
from zoo.finetuning import finetune


@pytest.fixture
def server():
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture
def client(server, tmp_path):
    """Runs Python with the Hub at the loopback server, and a cache of its own."""

    def run(code, *arguments, stream="stdout", **environment):
        settings = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
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
        return getattr(done, stream)

    return run


def contents(path):
    """By folder and name."""
    folders = [folder for folder in path.iterdir() if (folder / "config.yaml").exists()]
    return {folder.name: {file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders}


def nats(folder):
    return zoo.load(str(folder)).score("a b c").nats


def test_a_recipe_alone_gives_way_to_the_published_weights(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    make(tmp_path / "here" / "tiny")
    (tmp_path / "here" / "tiny" / "model.safetensors").unlink()
    (tmp_path / "here" / "tiny" / "SHA256SUMS").unlink()
    make(tmp_path / "hub")
    monkeypatch.setenv("ZOO_CHECKPOINTS", str(tmp_path / "here"))
    assert "tiny" not in hub.names(pretrained=True)
    monkeypatch.setitem(hub.PUBLISHED, "tiny", ("me/tiny", "0" * 40))
    monkeypatch.setattr(hub, "_download", lambda repository, revision: tmp_path / "hub")
    assert "tiny" in hub.names(pretrained=True)
    assert hub.find("tiny") == hub.Found("tiny", tmp_path / "hub", "me/tiny")
    assert zoo.load("tiny").score("a b").predictions == 3


def make_published(folder, seed=0, **facts):
    """A small bundle with all that `publish` asks for."""
    make(folder, recipe=RECIPE + "card: {license: mit, arxiv: '1409.2329'}\n", seed=seed)
    (folder / "curve.png").write_bytes(b"a picture")
    result = card.Result("test", 113.8, 82_429)
    measured = card.Measured("Salesforce/wikitext", "WikiText-2", "perplexity per word", [result], **facts)
    (folder / "README.md").write_text(card.render(folder.name, card.read(folder).card, measured))


PUBLISH = """
    import json, os, sys
    from zoo.cli import main
    for name, repo_id, token, *options in json.loads(sys.argv[1]):
        os.environ["HF_TOKEN"] = token
        try:
            main(["publish", name, "--repo_id", repo_id, *options])
        except SystemExit:
            pass
"""
LOAD = """
    import json, sys, zoo, zoo.hub
    commit = sys.argv[1]
    zoo.hub.PUBLISHED["tiny"] = ("me/tiny", commit)
    assert "tiny" in zoo.names()
    revisions = [None, commit, "v1"]
    models = [*(zoo.load("me/tiny", revision=revision) for revision in revisions), zoo.load("tiny")]
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
        make_published(tmp_path / "first")
    make_published(tmp_path / "second", seed=1)
    expected = [nats(tmp_path / "first"), nats(tmp_path / "second")]
    assert expected[0] != expected[1]
    before = contents(tmp_path)
    output = client(PUBLISH, json.dumps([["first", "me/tiny", TOKEN, "--tag=v1"], ["second", "me/tiny", TOKEN]]))
    assert contents(tmp_path) == before
    commits = [commit for commit, _ in server.commits["me/tiny"][1:]]
    assert len(set(commits)) == 2
    assert server.tags == {"me/tiny": {"v1": commits[0]}}
    for name, (commit, files) in zip(("first", "second"), server.commits["me/tiny"][1:], strict=True):
        assert f'"{name}": ("me/tiny", "{commit}"),' in output
        assert 'zoo.load("me/tiny")' in files.pop("README.md").decode()
        assert files == {file: data for file, data in before[name].items() if file != "README.md"}

    assert json.loads(client(LOAD, commits[0])) == [expected[1], *[expected[0]] * 3]

    # A pinned commit that is in the cache asks the Hub for nothing, and needs none.
    server.requests.clear()
    assert json.loads(client(LOAD_BY_NAME, commits[0])) == expected[0]
    assert server.requests == []
    server.stop()
    assert json.loads(client(LOAD_BY_NAME, commits[0], HF_HUB_OFFLINE="1")) == expected[0]


SCORE = """
    import json, sys, zoo
    print(json.dumps(zoo.load("me/tuned").score(sys.argv[1]).nats))
"""


def test_a_fine_tuned_model_scores_the_same_to_the_last_bit_where_it_is_loaded_by_name(server, client, tmp_path):
    make_published(tmp_path / "base")
    text = "a rose b fell c\nthe bank rose b\n"
    (tmp_path / "mine.txt").write_text(text * 40)
    options = {"epochs": 1, "batch_size": 2, "bptt": 5, "progress": False}
    finetune(str(tmp_path / "base"), corpus=str(tmp_path / "mine.txt"), output=str(tmp_path / "tuned"), **options)
    client(PUBLISH, json.dumps([["tuned", "me/tuned", TOKEN]]))
    scored = zoo.load(str(tmp_path / "tuned")).score(text).nats
    assert len(set(scored)) > 5
    shutil.rmtree(tmp_path / "tuned")
    assert json.loads(client(SCORE, text)) == scored


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


def test_what_the_hub_refuses_or_alters_is_said(server, client, tmp_path):
    make_published(tmp_path / "tiny")
    server.put("me/tiny", tmp_path / "tiny")
    server.put("other/tiny", tmp_path / "tiny")
    server.tags["me/tiny"] = {"v1": server.commits["me/tiny"][-1][0]}
    server.spoilt = {"me/by-lfs": "model.safetensors", "me/by-commit": "SHA256SUMS"}
    before = {repository: list(commits) for repository, commits in server.commits.items()}
    wanted = [
        ["tiny", "me/tiny", TOKEN, "--tag=v1"],
        ["tiny", "me/tiny", TOKEN, "--private=true"],
        ["tiny", "me/new", "another token"],
        ["tiny", "me/new", ""],
        ["tiny", "other/new", TOKEN],
        ["tiny", "other/tiny", TOKEN],
        *(["tiny", repository, TOKEN, "--tag=v1", "--private=true"] for repository in server.spoilt),
    ]
    tag, public, unknown, none, *rest = client(PUBLISH, json.dumps(wanted), stream="stderr").splitlines()
    assert tag == "error: me/tiny has a tag or branch 'v1': give another tag; nothing was uploaded"
    assert public.startswith("error: private is true, and me/tiny exists and is public")
    assert unknown.startswith("error: me/new could not be written: the Hub does not accept the token")
    assert none == "error: publishing needs a Hub token: 'hf auth login', or HF_TOKEN; nothing was uploaded"
    for repository, error in zip(("other/new", "other/tiny"), rest[:2], strict=True):
        assert error.startswith(f"error: {repository} could not be written: the token may not write there")
    for (repository, file), error in zip(server.spoilt.items(), rest[2:], strict=True):
        sent = (tmp_path / "tiny" / file).read_bytes()
        came, went = (hashlib.sha256(data).hexdigest() for data in (sent[:-1], sent))
        commit = server.commits[repository][-1][0]
        assert error.startswith(
            f"error: {repository} was written at commit {commit}, but {file} comes back with the sha256 {came}, {went} was"
        )
    spoilt = server.spoilt.keys()
    assert {name: commits for name, commits in server.commits.items() if name not in spoilt} == before
    assert server.tags.keys() == {"me/tiny"}
    assert server.private == spoilt


def test_a_dry_run_shows_files_and_front_matter_without_network_and_token(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(hub.PUBLISHED, "base", ("me/base", "0" * 40))
    make_published(tmp_path / "tiny", training={"started_from": "base"})
    before = contents(tmp_path)
    options = ["--repo_id=me/tiny", "--tag=v1", "--license=apache-2.0", "--dry_run=true"]
    main(["publish", str(tmp_path / "tiny"), *options])
    listed, matter = capsys.readouterr().out.split("README.md begins:\n")
    assert "publish tiny as me/tiny, tagged v1" in listed
    sizes = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listed.splitlines()[1:]}
    assert sizes.keys() == before["tiny"].keys()
    assert all(sizes[name] == len(data) for name, data in before["tiny"].items() if name != "README.md")
    stated = yaml.safe_load(matter)
    assert (stated["license"], stated["language"], stated["base_model"]) == ("apache-2.0", "en", "me/base")
    assert (stated["datasets"], stated["model-index"][0]["name"]) == (["Salesforce/wikitext"], "tiny")
    assert contents(tmp_path) == before


class TestWhatIsNotPublished:
    @pytest.fixture
    def tiny(self, tmp_path):
        make_published(tmp_path / "tiny")
        return tmp_path / "tiny"

    def test_a_partial_run_unawares(self, tmp_path):
        make_published(tmp_path / "tiny", finished=False)
        with pytest.raises(UserError, match="a run that was cut short; partial=true publishes it nevertheless"):
            hub.prepare(str(tmp_path / "tiny"), "me/tiny")
        assert "Cut short" in hub.prepare(str(tmp_path / "tiny"), "me/tiny", partial=True).files["README.md"].decode()

    def test_a_recipe_without_weights(self, tiny):
        for name in ("model.safetensors", "SHA256SUMS"):
            (tiny / name).unlink()
        with pytest.raises(UserError, match="tiny is a recipe without weights"):
            hub.prepare(str(tiny), "me/tiny")

    def test_a_model_without_a_licence(self, tiny):
        (tiny / "config.yaml").write_text(RECIPE)
        seal(tiny)
        with pytest.raises(UserError, match=r"card\.license is not set in .*config\.yaml"):
            hub.prepare(str(tiny), "me/tiny")
        assert "\nlicense: mit\n" in hub.prepare(str(tiny), "me/tiny", license="mit").files["README.md"].decode()

    def test_a_model_without_a_card(self, tiny):
        (tiny / "README.md").unlink()
        with pytest.raises(UserError, match=r"README\.md says nothing of the training"):
            hub.prepare(str(tiny), "me/tiny")

    @pytest.mark.parametrize("repo_id", ["me//tiny", "tiny", "me/a b"])
    def test_where_no_repository_can_be(self, tiny, repo_id):
        with pytest.raises(UserError, match=f"repo_id is '{repo_id}'; owner/name is expected"):
            hub.prepare(str(tiny), repo_id)

    def test_under_a_tag_that_cannot_be(self, tiny):
        with pytest.raises(UserError, match="tag is 'v 1'"):
            hub.prepare(str(tiny), "me/tiny", tag="v 1")


class TestNames:
    def test_the_checkouts_models_are_known(self):
        assert {"zaremba-small-ptb", "zaremba-medium-ptb", "zaremba-large-ptb"} <= set(zoo.names())

    def test_those_with_weights(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ZOO_CHECKPOINTS", str(tmp_path))
        for name in ("bare", "whole"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.yaml").touch()
        (tmp_path / "whole" / "model.safetensors").touch()
        assert {"bare", "whole"} <= set(zoo.names())
        assert set(zoo.names(pretrained=True)) & {"bare", "whole"} == {"whole"}

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

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("", "name is empty; known are"),
            (None, "name is None, a NoneType; expected a str or Path"),
            (torch.nn.ReLU(), "ReLU"),
        ],
    )
    def test_what_is_no_name(self, name, said):
        with pytest.raises(UserError, match=said):
            zoo.load(name)

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
