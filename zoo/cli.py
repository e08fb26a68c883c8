"""The command line: `python cli.py COMMAND` in a checkout, `recurrent-zoo COMMAND` where the package is installed.

Nothing heavy is imported before a command needs it.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from zoo import card, hub
from zoo.errors import UserError

_TRAINER_COMMANDS = {
    "fit": "train a recipe: fit NAME, or fit --config FILE",
    "validate": "measure a model on the validation text: validate NAME",
    "test": "measure a model on the test text: test NAME",
    "predict": "write the surprisal of every token of the test text: predict NAME",
}


def list_models() -> None:
    """The models at hand: the paper's test number, ours, and whether there are weights."""
    rows = [("model", "metric (test)", "paper", "ours", "weights")]
    for name, folder in hub.folders().items():
        try:
            entry = card.read(folder)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        paper = card.as_published(entry.card.published.get("test"))
        rows.append((name, entry.card.metric, paper, card.number(entry.ours()), "yes" if entry.weights else "no"))
    if len(rows) == 1 and not hub.PUBLISHED:
        raise UserError(
            f"no models here: run this in a checkout, or name a folder of models in {hub.CHECKPOINTS_VARIABLE}"
        )
    rows += [(name, "", "", "", "on the Hub") for name in hub.PUBLISHED if name not in hub.folders()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def score(name: str, file: str, format: Literal["summary", "table"] = "summary") -> None:
    """How well a model predicts a text.

    Args:
        name: A model's name, folder or Hub repository.
        file: A UTF-8 text file, or - for standard input.
        format: A line, or a table of every token with its surprisal in bits before it.
    """
    hub.find(name)  # before a long text is read in vain
    text = _read(file)
    result = _language_model(name).score(text)
    if format == "table":
        from zoo.score import visible

        for token, bits in zip(result.tokens, result.bits, strict=True):
            print(f"{bits:8.3f}  {visible(token)}")
    print(result)


def generate(
    name: str,
    prompt: str = "",
    tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> None:
    """Continues a prompt.

    Args:
        name: A model's name, folder or Hub repository.
        prompt: The text to go on from.
        tokens: How many words or characters to add.
        temperature: Divides the logits; 0 takes the likeliest token each time.
        top_k: Draw among this many likeliest tokens.
        seed: Makes the text repeatable.
    """
    model = _language_model(name)
    print(model.generate(prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed))


def publish(name: str, *, repo_id: str, private: bool = False, partial: bool = False) -> None:
    """Uploads a model's folder to the Hugging Face Hub.

    Args:
        name: A model's name or folder; it must have weights.
        repo_id: The Hub repository, owner/name; created where there is none.
        private: Create it as a private one.
        partial: Publish a run that was cut short, too.
    """
    commit = hub.publish(name, repo_id, private=private, partial=partial)
    name = hub.find(name).name
    print(f"published {name} as {repo_id} at commit {commit}")
    print(f'to load it by its short name, add to PUBLISHED in zoo/hub.py: "{name}": ("{repo_id}", "{commit}"),')


def demo() -> None:
    """Two minutes of everything: models, scores, generated text, a small training run."""
    from zoo.demo import run

    run()


_COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_models,
    "score": score,
    "generate": generate,
    "publish": publish,
    "demo": demo,
}


def main(argv: list[str] | None = None) -> None:
    """Runs one command; bad input ends with one line on standard error and exit code 2."""
    arguments = sys.argv[1:] if argv is None else argv
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    try:
        if command in _TRAINER_COMMANDS:
            from zoo.lightning_cli import run

            run(command, rest)
        elif command in _COMMANDS:
            from jsonargparse import auto_cli

            auto_cli(_COMMANDS[command], args=rest, prog=f"{Path(sys.argv[0]).name} {command}")
        elif command in ("-h", "--help"):
            print(_usage())
        else:
            raise UserError(f"no command {command!r}\n\n{_usage()}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except BrokenPipeError as error:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from error


def _usage() -> str:
    plain = {name: (function.__doc__ or "").splitlines()[0].rstrip(".") for name, function in _COMMANDS.items()}
    lines = [f"  {name:<10}{text}" for name, text in {**_TRAINER_COMMANDS, **plain}.items()]
    return "\n".join(
        [
            f"usage: {Path(sys.argv[0]).name} COMMAND [--help] ...",
            "",
            *lines,
            "",
            "A model's name ('list' shows them) stands for its recipe and its weights alike.",
        ]
    )


def _read(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from error


def _language_model(name: str):  # type: ignore[no-untyped-def]  # a LanguageModel, whose import waits for torch
    model = hub.load(name)
    if not hasattr(model, "score"):
        raise UserError(f"{name} is a {type(model).__name__}, not a language model")
    return model
