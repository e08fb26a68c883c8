"""The tour behind `make demo`: offline, about two minutes on two cores."""

from pathlib import Path

from rich.console import Console

from zoo import cli, hub
from zoo.datamodules import TINY_SHAKESPEARE
from zoo.finetuning import finetune
from zoo.runs import hush
from zoo.score import Score
from zoo.tasks import LanguageModel
from zoo.tokenizer import UNK

NAME = "zaremba-small-ptb"
SENTENCES = (
    "Shares of the airline fell after the union refused to vote on the new contract.",
    "Shares of the piano fell after the union refused to vote on the new contract.",
    "Colorless green ideas sleep furiously.",
)
PROMPT = "the president of the company"
ANOTHER_PROMPT = "my lord"
OUTPUT = Path("logs", "demo", "shakespeare")
VOCABULARY = 10_000
BITS_OF_A_FULL_BAR = 20


def run(epochs: int = 2) -> None:
    """Lists, loads, scores, generates, and fine-tunes for so many epochs."""
    hush()
    console = Console(highlight=False, soft_wrap=True)
    console.rule("the models at hand: recurrent-zoo list")
    cli.list_models()

    console.rule(f'zoo.load("{NAME}")')
    model = hub.load(NAME)
    assert isinstance(model, LanguageModel)
    for sentence in SENTENCES:
        result = model.score(sentence)
        console.print(f"[bold]{sentence}[/bold]")
        console.print(_bars(result))
        console.print(f"{result}\n")

    console.rule(f'model.generate("{PROMPT}")')
    console.print(model.generate(PROMPT, tokens=60, seed=1))

    console.rule("Tiny Shakespeare, a text from another world")
    text = TINY_SHAKESPEARE.read_text(encoding="utf-8")
    result = model.score(text)
    console.print(f"{result}")
    console.print(f"{UNK} stands for every word outside the newspaper's 10,000, and is one more word to guess.")

    console.rule(f'zoo.finetune("{NAME}", corpus="{TINY_SHAKESPEARE.name}", ...): the model learns to read it')
    text_file, output = str(TINY_SHAKESPEARE), str(OUTPUT)
    tuned = finetune(NAME, corpus=text_file, output=output, max_vocabulary=VOCABULARY, epochs=epochs, overwrite=True)
    console.print(f"{tuned}\n")
    shakespearean = hub.load(output)
    assert isinstance(shakespearean, LanguageModel)
    for name, reader in ((NAME, model), (OUTPUT.name, shakespearean)):
        console.print(f"{name}: {reader.generate(ANOTHER_PROMPT, tokens=40, temperature=0.8, seed=1)}\n")

    console.rule("next")
    console.print(
        f"  python cli.py score {NAME} my_text.txt --format table\n"
        f"  python cli.py score {NAME} my_text.txt --compare {OUTPUT}\n"
        f"  python cli.py finetune {NAME} --corpus my_text.txt --output my-model\n"
        f'  python cli.py generate {NAME} --prompt "the federal reserve" --temperature 0.8\n'
        "  python cli.py fit zaremba-medium-ptb      (Penn Treebank itself: see the README)\n"
        "  python cli.py --help"
    )


def _bars(result: Score) -> str:
    width = max(map(len, result.tokens))
    lines = []
    for token, bits in zip(result.tokens, result.bits, strict=True):
        bar = "█" * round(min(bits / BITS_OF_A_FULL_BAR, 1) * 40)
        lines.append(f"  {token:>{width}} {bits:5.1f} bits {bar}")
    return "\n".join(lines)
