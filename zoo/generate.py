"""Text from a language model, token by token: drawn, or the likeliest by beam search."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.arguments import check_counts, check_type
from zoo.batches import WINDOW
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.score import first_context, tokenizer_of
from zoo.tokenizer import UNK, Tokenizer

if TYPE_CHECKING:
    from zoo.tasks.language import LanguageModel, State

_ROWS = 64
"""How many prompts are continued at once."""

_COLDEST = 1e-6


@dataclass(frozen=True)
class Decoding:
    """How a text of so many `tokens` is found.

    Each is drawn from softmax(logits / temperature), of the `top_k` likeliest tokens and of the nucleus that they leave: the
    smallest set of likeliest tokens whose probability reaches `top_p` (Holtzman, Buys, Du, Forbes and Choi 2020, "The
    curious case of neural text degeneration", arXiv 1904.09751, section 3.1). temperature 0 takes the likeliest token.

    A `seed` gives a prompt the same text each time on the same machine, whatever its neighbours: all prompts share the
    draws, so equal ones get equal texts. Without one the draws come from torch's global generator, each text's its own.

    A text ends before the token `stop`, where that comes first; "\\n" is the end of a line.

    `beams` draws nothing: the continuation with the largest sum of log-probabilities that a search finds which keeps the
    best `beams` of each length.

    Raises `UserError` for what is out of range.
    """

    tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    beams: int | None
    seed: int | None
    stop: str | None

    def __post_init__(self) -> None:
        check_type("tokens", self.tokens, int)
        if self.tokens < 0:
            raise UserError(f"tokens is {self.tokens}; it must be 0 or more")
        check_counts(top_k=self.top_k, beams=self.beams)
        check_type("temperature", self.temperature, Real)
        if self.temperature != 0 and not _COLDEST <= self.temperature < math.inf:
            raise UserError(
                f"temperature is {self.temperature}; it must be {_COLDEST:f} or more and finite, or 0, which takes the "
                "likeliest token"
            )
        if self.top_p is not None:
            check_type("top_p", self.top_p, Real)
            if not 0 < self.top_p <= 1:
                raise UserError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.seed is not None:
            check_type("seed", self.seed, Integral)
            if not -(2**63) <= self.seed < 2**64:
                raise UserError(f"seed is {self.seed}; it must be a number of 64 bits")
        if self.stop is not None:
            check_type("stop", self.stop, str)
        drawing = {"top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}
        given = [name for name, value in drawing.items() if value is not None]
        given += ["temperature"] if self.temperature != 1 else []
        if self.beams is not None and given:
            raise UserError(f"beams is {self.beams}, and a beam search draws nothing: leave out {' and '.join(given)}")
        if self.beams is not None and self.stop is not None:
            raise UserError(f"beams is {self.beams}, and a beam search compares texts of one length: leave out stop")


def generate(model: "LanguageModel", prompts: Sequence[str], how: Decoding) -> list[str]:
    """Every prompt as the model reads it, continued; `<unk>` is never added."""
    tokenizer = tokenizer_of(model)
    before, stop = _encode_all(tokenizer, prompts), _stop_id(tokenizer, how.stop)
    after: list[list[int]] = []
    with evaluating(model):
        for first in range(0, len(before), _ROWS):
            after += _texts(model, before[first : first + _ROWS], how, stop)
    return [tokenizer.decode([*prompt, *text]) for prompt, text in zip(before, after, strict=True)]


def stream(model: "LanguageModel", prompt: str, how: Decoding) -> Iterator[str]:
    """`generate`'s text for one prompt in pieces: the prompt, then each token as it comes, those of beams at the end."""
    tokenizer = tokenizer_of(model)
    return _pieces(model, tokenizer, _encode(tokenizer, prompt), how, _stop_id(tokenizer, how.stop))


@torch.no_grad()
def start(model: "LanguageModel", prompt: str | Sequence[str]) -> tuple[Tensor, "State"]:
    """Prompts -> logits of the token after each (B, vocab_size), state. Each is read by itself, from a zero state."""
    tokenizer = tokenizer_of(model)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts:
        raise UserError("prompt holds no text; give one or more")
    return _side_by_side([_read(model, ids) for ids in _encode_all(tokenizer, prompts)])


@torch.no_grad()
def step(model: "LanguageModel", tokens: Tensor, state: "State") -> tuple[Tensor, "State"]:
    """Token ids (B,) and the state before them -> logits of the tokens after them (B, vocab_size), state."""
    check_type("tokens", tokens, Tensor)
    if tokens.ndim != 1:
        raise UserError(f"tokens have shape {tuple(tokens.shape)}; expected (B,), the id of each text's next token")
    with evaluating(model):
        logits, state = model(tokens.unsqueeze(0), state)
    return logits[0], state


def join(states: Sequence["State"]) -> "State":
    """The states of several batches as that of one, in their order.

    `UserError` where they differ in something else than tensors, such as how many steps went before.
    """
    first, *others = map(_counts, states)
    for counts in others:
        if counts != first:
            raise UserError(
                f"the states count {first} and {counts} steps of their texts: go on with texts of one length together, "
                "and with others apart"
            )
    return _map(lambda parts: torch.cat(list(parts), 1), states)


def select(state: "State", texts: Tensor) -> "State":
    """The state of the batch that has these of the texts, by their numbers (N,), in this order, any of them repeated."""
    return _map(lambda parts: parts[0].index_select(1, texts), [state])


def _encode_all(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Each prompt's ids; of several the `UserError` says which it was, counted from 1."""
    check_type("prompt", prompts, str, list, tuple)
    names = [f"prompt {number}" if len(prompts) > 1 else "prompt" for number in range(1, len(prompts) + 1)]
    return [_encode(tokenizer, prompt, name) for prompt, name in zip(prompts, names, strict=True)]


def _encode(tokenizer: Tokenizer, prompt: str, name: str = "prompt") -> list[int]:
    """The prompt's ids; `UserError` where there are words and the model knows none."""
    check_type(name, prompt, str)
    ids: list[int] = tokenizer.encode(prompt).tolist()
    if {tokenizer.unk_id} == {*ids} - {tokenizer.end_of_line_id} and UNK not in prompt:
        unknown = list(dict.fromkeys(prompt.split() if tokenizer.level == "word" else prompt))
        names = ", ".join([*map(repr, unknown[:10]), *(["..."] if len(unknown) > 10 else [])])
        raise UserError(
            f"{name}: none of its {tokenizer.level}s ({names}) is among the {tokenizer.vocab_size:,} that the model knows; "
            "give one that is"
        )
    return ids


def _stop_id(tokenizer: Tokenizer, stop: str | None) -> int | None:
    """The token to stop at; `UserError` where the text of `stop` is none."""
    if stop is None:
        return None
    ids: list[int] = tokenizer.encode(stop).tolist()
    if len(ids) != 1 or ids[0] == tokenizer.unk_id:
        raise UserError(f'stop is {stop!r}; one {tokenizer.level} that the model knows is expected, or "\\n"')
    return ids[0]


def _read(model: "LanguageModel", prompt: list[int]) -> tuple[Tensor, "State"]:
    """The logits (1, vocab_size) and the state after a prompt, which follows the end of a line."""
    ids = torch.tensor([first_context(model), *prompt], device=model.device).unsqueeze(1)
    state = None
    with evaluating(model):
        for first in range(0, len(ids), WINDOW):
            logits, state = model(ids[first : first + WINDOW], state)
    last: Tensor = logits[-1]
    if last.isnan().any():
        raise UserError("the model's logits are not numbers (nan): its weights have diverged, load others")
    return last, state


@torch.inference_mode()
def _texts(model: "LanguageModel", prompts: list[list[int]], how: Decoding, stop: int | None) -> list[list[int]]:
    """The tokens to add to each prompt; those whose states count alike go on together."""
    if how.beams is not None:
        return [list(_tokens(model, prompt, how, stop)) for prompt in prompts]
    read = [_read(model, prompt) for prompt in prompts]
    together: dict[tuple[Any, ...], list[int]] = {}
    for row, (_, state) in enumerate(read):
        together.setdefault(_counts(state), []).append(row)
    texts: list[list[int]] = [[] for _ in prompts]
    for rows in together.values():
        for tokens in _draws(model, *_side_by_side([read[row] for row in rows]), how, stop):
            for row, token in zip(rows, tokens, strict=True):
                if token is not None:
                    texts[row].append(token)
    return texts


@torch.inference_mode()
def _tokens(model: "LanguageModel", prompt: list[int], how: Decoding, stop: int | None) -> Iterator[int]:
    """The tokens to add to one prompt, as they come."""
    logits, state = _read(model, prompt)
    if how.beams is not None:
        yield from _search(model, logits, state, how.tokens, how.beams)
    else:
        for (token,) in _draws(model, logits, state, how, stop):
            if token is not None:
                yield token


def _pieces(
    model: "LanguageModel", tokenizer: Tokenizer, prompt: list[int], how: Decoding, stop: int | None
) -> Iterator[str]:
    if prompt:
        yield tokenizer.decode(prompt)
    last = prompt[-1:]
    for token in _tokens(model, prompt, how, stop):
        yield tokenizer.decode([*last, token])[len(tokenizer.decode(last)) :]  # a token looks no further back than one
        last = [token]


@torch.inference_mode()
def _draws(
    model: "LanguageModel", logits: Tensor, state: "State", how: Decoding, stop: int | None
) -> Iterator[list[int | None]]:
    """Yields a token for every text, `how.tokens` times or until all have come to `stop`; None for one that has."""
    unk = tokenizer_of(model).unk_id
    stopped = [False] * len(logits)
    generator = None if how.seed is None else torch.Generator(model.device).manual_seed(how.seed)
    token = None
    for _ in range(how.tokens):
        if token is not None:
            logits, state = step(model, token, state)
        logits = logits.float()
        if unk is not None:
            logits[:, unk] = -torch.inf
        token = _draw(logits, how, generator)
        tokens = token.tolist()
        stopped = [before or one == stop for before, one in zip(stopped, tokens, strict=True)]
        if all(stopped):
            return
        yield [None if ended else one for ended, one in zip(stopped, tokens, strict=True)]


def _draw(logits: Tensor, how: Decoding, generator: torch.Generator | None) -> Tensor:
    """Logits (B, V) -> a token for each (B,).

    The first to arrive in a race at the rates p is i with probability p_i; with a seed all texts share the runners, so that
    what a text gets depends on no other. For one text it is what `torch.multinomial` does.
    """
    if how.temperature == 0:
        return logits.argmax(-1)
    if how.top_k is not None and how.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(how.top_k).values[:, -1:], -torch.inf)
    p = (logits / how.temperature).softmax(-1)
    if how.top_p is not None and how.top_p < 1:
        p = _nucleus(p, how.top_p)
    runners = p.new_empty(p.shape if generator is None else p.shape[-1:]).exponential_(generator=generator)
    return (p / runners).argmax(-1)


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """Probabilities (B, V) -> the same, 0 outside the smallest set of the likeliest that reaches `top_p`."""
    falling, order = p.sort(dim=-1, descending=True, stable=True)
    likelier = falling.cumsum(-1, dtype=torch.float64) - falling
    return torch.zeros_like(p).scatter_(-1, order, falling.masked_fill(likelier >= top_p, 0))


def _search(model: "LanguageModel", logits: Tensor, state: "State", tokens: int, beams: int) -> list[int]:
    """The continuation of one text with the largest sum of log-probabilities among those that the beams come to."""
    unk = tokenizer_of(model).unk_id
    total = torch.zeros(1, dtype=torch.float64, device=logits.device)
    texts = torch.zeros(0, 1, dtype=torch.int64, device=logits.device)
    for length in range(tokens):
        if length:
            logits, state = step(model, texts[-1], state)
        log_p = logits.double().log_softmax(-1)
        if unk is not None:
            log_p[:, unk] = -torch.inf
        sums = total.unsqueeze(1) + log_p
        total, best = sums.flatten().topk(min(beams, sums.numel() - len(sums) * (unk is not None)))
        parents = best // sums.shape[1]
        texts = torch.cat([texts[:, parents], (best % sums.shape[1]).unsqueeze(0)])
        state = select(state, parents)
    return texts[:, 0].tolist()


def _side_by_side(read: Sequence[tuple[Tensor, "State"]]) -> tuple[Tensor, "State"]:
    return torch.cat([logits for logits, _ in read]), join([state for _, state in read])


def _map(function: Callable[[Sequence[Tensor]], Tensor], states: Sequence["State"]) -> "State":
    """The function of the states' tensors at each place; what is no tensor stays."""
    if isinstance(states[0], Tensor):
        return function(states)
    if isinstance(states[0], tuple | list):
        return tuple(_map(function, parts) for parts in zip(*states, strict=True))
    return states[0]


def _counts(state: "State") -> tuple[Any, ...]:
    """What a state holds beside tensors."""
    if isinstance(state, tuple | list):
        return tuple(count for part in state for count in _counts(part))
    return () if isinstance(state, Tensor) else (state,)
