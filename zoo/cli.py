"""The command line: `python cli.py COMMAND` in a checkout, `recurrent-zoo COMMAND` where the package is installed.

Nothing heavy is imported before a command needs it.
"""

import codecs
import ctypes
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO

from zoo import card, hub
from zoo.errors import UserError, in_one_line

if TYPE_CHECKING:
    from zoo.evaluation import Evaluation

_TRAINER_COMMANDS = {
    "fit": "train a recipe: fit NAME, or fit --config FILE",
    "validate": "measure a model on the validation text: validate NAME",
    "test": "measure a model on the test text: test NAME",
    "predict": "write the surprisal of every token of the test text but the first: predict NAME",
}

_FINETUNE = "train a pretrained model on your own text, or to classify texts: finetune NAME --corpus PATH --output DIR"

_BLOCK = 1 << 14

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


def list_models() -> None:
    """The models at hand: the published test number, ours, and whether there are weights."""
    rows = [("model", "metric (test)", "published", "ours", "weights")]
    for name, folder in hub.folders().items():
        try:
            entry = card.read(folder)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        published = card.as_published(entry.card.published.get("test"))
        rows.append((name, entry.card.metric, published, card.number(entry.ours()), "yes" if entry.weights else "no"))
    rows += [(name, "", "", "", "on the Hub") for name in hub.PUBLISHED if name not in hub.folders()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def score(
    name: str,
    file: str,
    format: Literal["summary", "table", "jsonl", "html"] | None = None,
    output: str | None = None,
    overwrite: bool = False,
    compare: str | None = None,
    sentences: bool = False,
    evaluation: "Evaluation | None" = None,
    device: str = "cpu",
) -> None:
    """How well a model predicts a text.

    Args:
        name: A model's name, folder or Hub repository.
        file: A UTF-8 text file, or - for standard input.
        format: A line; or every token with its surprisal in bits: a table, JSON lines, or a page of HTML.
        output: Write to this file, and the line to standard output.
        overwrite: Replace the output file if it exists.
        compare: Another model, to be measured on the same text.
        sentences: Give each line's log-probability in nats by itself, its number of tokens and of unknown words.
        evaluation: How the text is scored, a class of zoo.evaluation (default: by the model's own probabilities).
        device: Where the model runs, such as cuda.
    """
    if sentences and not (compare is None and evaluation is None):
        raise UserError(
            "sentences are scored by one model and its own probabilities: leave out --compare and --evaluation"
        )
    if evaluation is not None and evaluation.training_windows is not None:
        raise UserError(
            f"{type(evaluation).__name__} wants to see the training text, which score does not have: test NAME --evaluation "
            "... has it; or give --evaluation.statistics none and --evaluation.learning_rate"
        )
    for wanted in (name, compare):
        if wanted is not None:
            hub.find(wanted)  # before anything slow
    with _opened(file) as source, _writing(output, overwrite) as target:
        model = _language_model(name, device)
        other = None if compare is None else _language_model(compare, device)
        from zoo import report
        from zoo.score import Comparison, Stream, lines_of, score_sentences

        blocks = _read(source, file)
        line = ""
        if sentences:
            target.writelines(report.of_sentences(score_sentences(model, lines_of(blocks)), format or "table"))
        elif other is None:
            stream = Stream(model, blocks, evaluation)
            target.writelines(report.of_stream(stream, format or "summary", name))
            line = f"{stream.totals}\n"
        else:
            names = name, str(compare)
            comparison = Comparison(model, other, blocks, evaluation)
            target.writelines(report.of_comparison(comparison, format or "summary", names))
            line = report.compared(comparison, names)
    if output is not None:
        sys.stdout.write(line)


def generate(
    name: str,
    prompt: str = "",
    prompts_file: str | None = None,
    tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beams: int | None = None,
    seed: int | None = None,
    stop: str | None = None,
    device: str = "cpu",
) -> None:
    """Continues a prompt, printed as it comes, or each of a file.

    Args:
        name: A model's name, folder or Hub repository.
        prompt: The text to go on from; none begins a line.
        prompts_file: A UTF-8 file, a prompt a line, or - for standard input; prints a text a line, its line breaks as \\n.
        tokens: How many words or characters to add.
        temperature: Divides the logits; 0 takes the likeliest token each time.
        top_k: Draw among this many likeliest tokens.
        top_p: Draw among the fewest likeliest tokens whose probability reaches this.
        beams: Draw nothing: search for the likeliest text, with so many candidates.
        seed: Makes the text repeatable.
        stop: End before this token, such as \\n, the end of the line.
        device: Where the model runs, such as cuda.
    """
    how: dict[str, Any] = {
        "tokens": tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "beams": beams,
        "seed": seed,
        "stop": stop and stop.replace("\\n", "\n"),
    }
    if prompts_file is None:
        for piece in _language_model(name, device).stream(prompt, **how):
            print(piece, end="", flush=True)
        print()
        return
    if prompt:
        raise UserError("prompt and prompts_file are both given; leave out one")
    hub.find(name)  # before a long file is read in vain
    with _opened(prompts_file) as source:
        prompts = "".join(_read(source, prompts_file))
    if not prompts:
        raise UserError(f"{prompts_file} is empty; a prompt a line is expected")
    for text in _language_model(name, device).generate(prompts.removesuffix("\n").split("\n"), **how):
        print(text.replace("\n", "\\n"))


def publish(
    name: str,
    *,
    repo_id: str,
    tag: str | None = None,
    license: str | None = None,
    private: bool = False,
    partial: bool = False,
    dry_run: bool = False,
) -> None:
    """Uploads a model's folder to the Hugging Face Hub, and reads it back.

    Args:
        name: A model's name or folder; it must have weights.
        repo_id: The Hub repository, owner/name; created where there is none.
        tag: Name the commit, such as v1.
        license: What the card says, by the Hub's abbreviation (default: the recipe's card.license).
        private: Create the repository as a private one.
        partial: Publish a run that was cut short, too.
        dry_run: Check everything and say what would be uploaded; needs neither network nor token.
    """
    if dry_run:
        planned = hub.prepare(name, repo_id, tag=tag, license=license, partial=partial)
        print(f"checked, and nothing uploaded; this would publish {planned}", end="")
        return
    commit = hub.publish(name, repo_id, tag=tag, license=license, private=private, partial=partial)
    name, tagged = hub.find(name).name, f", tagged {tag}" if tag else ""
    print(f"published {name} as {repo_id} at commit {commit}{tagged}; every file was read back")
    print(f'to load it by its short name, add to PUBLISHED in zoo/hub.py: "{name}": ("{repo_id}", "{commit}"),')


def demo() -> None:
    """Two minutes of everything: models, scores, generated text, and one model fine-tuned."""
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
    prepare_memory()
    arguments = sys.argv[1:] if argv is None else argv
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    prog = f"{Path(sys.argv[0]).name} {command}"
    try:
        if command in _TRAINER_COMMANDS:
            from zoo.lightning_cli import run

            run(command, rest)
        elif command == "finetune":
            from jsonargparse import auto_cli

            from zoo.finetuning import finetune, finetune_classifier
            from zoo.runs import hush

            chosen: dict[str, Callable[..., object]] = {"language": finetune, "classification": finetune_classifier}
            task, rest = _task(rest, chosen)
            hush()
            others = " and ".join(f"--task {other}" for other in chosen if other != task)
            epilog = f"These are the options of {prog} --task {task}; those of {others} have a --help of their own."
            print(auto_cli(chosen[task], args=rest, prog=f"{prog} --task {task}", epilog=epilog, allow_abbrev=False))
        elif command in _COMMANDS:
            from jsonargparse import auto_cli

            auto_cli(_COMMANDS[command], args=rest, prog=prog, allow_abbrev=False)
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


def prepare_memory() -> None:
    """Memory new from the system is cleared first, which takes time: so ours comes in huge pages, and what is freed is kept
    for the next update."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch
    keep = (
        getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    )  # glibc has it, musl has not
    if keep is not None:
        keep(_MMAP_MAX, 0)
        keep(_TRIM_THRESHOLD, -1)


def _task(arguments: list[str], tasks: Iterable[str]) -> tuple[str, list[str]]:
    """What `--task` says, language where it is not there, and the other arguments: each task has options of its own."""
    task, rest = "language", []
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, value = argument.partition("=")
        if option == "--task":
            task = value if equals else next(remaining, "")
        else:
            rest.append(argument)
    if task not in tasks:
        raise UserError(f"task is {task!r}; it must be {' or '.join(tasks)}")
    return task, rest


def _usage() -> str:
    plain = {name: (function.__doc__ or "").splitlines()[0].rstrip(".") for name, function in _COMMANDS.items()}
    every = {**_TRAINER_COMMANDS, "finetune": _FINETUNE, **plain}
    lines = [f"  {name:<10}{text}" for name, text in every.items()]
    return "\n".join(
        [
            f"usage: {Path(sys.argv[0]).name} COMMAND [--help] ...",
            "",
            *lines,
            "",
            "A model's name ('list' shows them) stands for its recipe and its weights alike.",
        ]
    )


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115  # closed below
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    with source:
        yield source


def _read(source: BinaryIO, file: str) -> Iterator[str]:
    """The text in blocks: UTF-8, without a byte-order mark, a line ending with \\n wherever it ended with \\r\\n or \\r."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    offset, begun = 0, False
    while True:
        data = source.read(_BLOCK)
        undecoded = len(decoder.getstate()[0])
        try:
            text = line_ends.decode(decoder.decode(data, final=not data), final=not data)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset - undecoded + error.start}"
            ) from error
        yield text if begun else text.removeprefix("\ufeff")
        begun = begun or text != ""
        offset += len(data)
        if not data:
            return


@contextmanager
def _writing(output: str | None, overwrite: bool) -> Iterator[TextIO]:
    """Standard output, or a file that is there when all of it is written."""
    if output is None:
        yield sys.stdout
        return
    file = Path(output)
    is_file = os.path.isfile(file)  # Path.is_file raises for a name too long
    if os.path.exists(file) and not (overwrite and is_file):
        instead = ", or give --overwrite true" if is_file else ""
        raise UserError(f"{output} exists: name another file{instead}")
    part = file.with_name(f"{file.name}.part")
    try:
        target = part.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error
    try:
        with target:
            yield target
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _language_model(name: str, device: str):  # type: ignore[no-untyped-def]  # a LanguageModel; importing it imports torch
    model = hub.load(name)
    if not hasattr(model, "score"):
        raise UserError(f"{name} is a {type(model).__name__}, not a language model")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without it
        raise UserError(f"device is {device!r}: {in_one_line(error)}") from error
