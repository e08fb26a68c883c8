"""The tour behind `make demo`: offline, under two minutes on two cores."""

from datetime import timedelta

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from datamodules import TINY_SHAKESPEARE, Corpus
from zoo import cli, hub
from zoo.lightning_cli import hush
from zoo.models import Zaremba
from zoo.score import Score
from zoo.tasks import LanguageModel
from zoo.tokenizer import UNK

NAME = "zaremba-small-ptb"
SENTENCES = (
    "The company said it expects to report a loss for the third quarter.",
    "The company said it expects to report a banana for the third quarter.",
    "Colorless green ideas sleep furiously.",
)
PROMPT = "the president of the company"
BITS_OF_A_FULL_BAR = 20


def run(seconds: float = 30.0, updates: int = -1) -> None:
    """Lists, loads, scores, generates, evaluates, and trains for `seconds`, or so many updates if they take less."""
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

    console.rule(f"a character model of Tiny Shakespeare, trained here for {seconds:.0f} seconds")
    _train(console, seconds, updates)

    console.rule("next")
    console.print(
        f"  python cli.py score {NAME} my_text.txt --format table\n"
        f'  python cli.py generate {NAME} --prompt "the federal reserve" --temperature 0.8\n'
        "  python cli.py fit --config zaremba-medium-ptb      (Penn Treebank itself: see the README)\n"
        "  python cli.py --help"
    )


def _bars(result: Score) -> str:
    width = max(map(len, result.tokens))
    lines = []
    for token, bits in zip(result.tokens, result.bits, strict=True):
        bar = "█" * round(min(bits / BITS_OF_A_FULL_BAR, 1) * 40)
        lines.append(f"  {token:>{width}} {bits:5.1f} bits {bar}")
    return "\n".join(lines)


def _train(console: Console, seconds: float, updates: int) -> None:
    seed_everything(1, verbose=False)
    data = Corpus(str(TINY_SHAKESPEARE), level="character", batch_size=32, bptt=50)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=160, num_layers=1, constant_epochs=0)
    model.tokenizer = data.tokenizer
    console.print("before:", repr(model.generate("ROMEO:", tokens=100, seed=1)))
    trainer = Trainer(
        max_time=timedelta(seconds=seconds),
        max_epochs=100,
        max_steps=updates,
        callbacks=[RichProgressBar(refresh_rate=10)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        accelerator="cpu",
    )
    trainer.fit(model, datamodule=data)
    console.print("after:\n" + model.generate("ROMEO:\n", tokens=300, temperature=0.7, seed=1))
    trainer.test(model, datamodule=data, verbose=False)
    bits, characters = model.measured["test"]
    after = f"after {trainer.global_step:,} updates"
    console.print(f"{bits:.3f} bits per character over {characters:,} held-out characters {after}")
