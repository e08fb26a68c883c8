"""The README and the cards say what the recipes and the stored files say."""

import json
import re

import pytest
import yaml

import zoo
from tests.conftest import ROOT, sentences
from zoo import bundle, card
from zoo.errors import UserError


def test_every_generated_text_is_up_to_date():
    stale = [str(file) for file, text in card.written(ROOT).items() if file.read_text(encoding="utf-8") != text]
    assert not stale, f"run 'make cards': {stale}"


def test_the_table_has_every_model_and_begins_with_those_that_have_weights():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| \[([\w-]+)\]\(checkpoints/", readme, re.MULTILINE)
    assert names == sorted(names, key=lambda name: (not bundle.has_weights(ROOT / "checkpoints" / name), name))
    for folder in (ROOT / "checkpoints").iterdir():
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| [{folder.name}]("))
        assert row.endswith("| yes |" if bundle.has_weights(folder) else "| not yet |")
        described = card.read(folder).card
        published = card.as_published(described.published.get("test"))
        page = described.source_link or described.arxiv
        assert f"| [{published}](http" in row if published and page else f"| {published} |" in row
        assert (row in readme.partition("<details>")[0]) == bundle.has_weights(folder)


def test_what_is_rendered_is_read_back(tmp_path):
    chosen = card.Card(
        "A title", "Someone 2014", "1409.2329", published={"test": 114.5}, source="Table 1", notes=["a note"]
    )
    measured = card.Measured(
        "owner/data",
        "Data",
        "perplexity per word",
        [card.Result("validation", 119.7, 73_759), card.Result("test", 113.8, 82_429)],
        {"seed": 1, "epochs": 13},
        evaluations=[
            card.Evaluated(
                "cache", "--evaluation zoo.evaluation.Cache", [card.Result("test", 99.5, 82_429)], "a remark"
            )
        ],
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"card": vars(chosen)}))
    (tmp_path / "README.md").write_text(card.render(tmp_path.name, chosen, measured))
    entry = card.read(tmp_path)
    assert (entry.card, entry.measured, entry.weights) == (chosen, measured, False)
    assert entry.ours() == 113.8
    text = (tmp_path / "README.md").read_text()
    assert "| test | 114.5 | 113.8 | -0.70 | 82,429 |" in text
    assert "| validation |  | 119.7 |  | 73,759 |" in text
    assert "| cache |  | 99.50 |" in text
    assert f"python cli.py test {tmp_path.name} --evaluation zoo.evaluation.Cache" in text
    assert "- cache: a remark" in text


def test_the_front_matter_is_the_hubs(tmp_path):
    from huggingface_hub import ModelCard

    folder = ROOT / "checkpoints" / "zaremba-small-ptb"
    hub_card = ModelCard.load(folder / "README.md")
    results = {result.dataset_split: result for result in hub_card.data.eval_results}
    measured = {result.split: result for result in card.read(folder).measured.results}
    assert results["test"].metric_value == measured["test"].value
    assert results["test"].metric_type == "perplexity"
    assert hub_card.data.library_name == "recurrent-zoo"


def test_a_card_for_the_hub_says_how_to_use_the_model_from_there():
    measured = card.Measured("owner/data", "Data", "perplexity per word", training={"started_from": "me/base"})
    here = card.render("x", card.Card(), measured)
    there = card.render("x", card.Card(), measured, repo_id="me/y", base_model="me/base", picture=False)
    for text, model in ((here, "x"), (there, "me/y")):
        commands = [f'zoo.load("{model}")', f"python cli.py test {model}\n", f"python cli.py fit {model}\n"]
        assert all(command in text for command in commands)
        assert "- data: [Data](https://huggingface.co/datasets/owner/data)" in text
    assert [card.front_matter(text).get("base_model") for text in (here, there)] == [None, "me/base"]
    assert ["![learning curve](curve.png)" in text for text in (here, there)] == [True, False]


@pytest.mark.parametrize(
    ("dataset", "expected"), [("afmck/text8", ("en", ["afmck/text8"])), ("own text", (None, None))]
)
def test_language_and_data_set_are_said_where_they_are_known(dataset, expected):
    matter = card.front_matter(card.render("x", card.Card(), card.Measured(dataset, "Text", "perplexity per word")))
    assert (matter.get("language"), matter.get("datasets")) == expected


def test_the_example_is_in_the_models_language():
    for dataset, shown in (
        ("ptb-text-only/ptb_text_only", 'generate("the company said"'),
        ("own text", "generate(tokens=30"),
    ):
        assert shown in card.render("one", card.Card(), card.Measured(dataset, "Data", "perplexity per word"))


def test_a_partial_run_is_called_one():
    measured = card.Measured("owner/data", "Data", "perplexity per word", finished=False)
    assert "Cut short" in card.render("x", card.Card(), measured)


def test_a_card_of_another_make_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    (tmp_path / "README.md").write_text("---\nmeasured: {}\n---\n")
    with pytest.raises(UserError, match=r"README.md: the front matter is not a card's"):
        card.read(tmp_path)


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_readmes_python_runs_and_uses_the_public_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_text").mkdir()
    (tmp_path / "my_text" / "tale.txt").write_text("once upon a time there was a bank\n" * 300)
    (tmp_path / "reviews").mkdir()
    for seed, split in enumerate(("train", "validation", "test")):
        reviews = [{"text": f"{sentence} .", "stars": len(sentence) % 2} for sentence in sentences(40, seed)]
        (tmp_path / "reviews" / f"{split}.jsonl").write_text("".join(json.dumps(review) + "\n" for review in reviews))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    shown = set(re.findall(r"zoo\.(\w+)\(", readme))
    assert shown == {*zoo.__all__} - {"UserError"}
