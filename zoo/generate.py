"""Text from a language model, token by token."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.score import first_context, tokenizer_of

if TYPE_CHECKING:
    from zoo.tasks.language import LanguageModel


def generate(
    model: "LanguageModel",
    prompt: str = "",
    *,
    tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> str:
    """`prompt` as the model reads it, followed by `tokens` sampled tokens; `<unk>` is never sampled."""
    tokenizer = tokenizer_of(model)
    sampled = sample(model, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)
    return tokenizer.decode([*tokenizer.encode(prompt).tolist(), *sampled])


@torch.inference_mode()
def sample(
    model: "LanguageModel",
    prompt: str,
    *,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
) -> Iterator[int]:
    """Yields `tokens` ids, each drawn from softmax(logits / temperature), of the `top_k` likeliest tokens if given.

    temperature 0 takes the likeliest token. The same seed gives the same text on the same machine; without one the draw
    comes from torch's global generator.
    """
    for name, value, least in (("tokens", tokens, 0), ("temperature", temperature, 0), ("top_k", top_k, 1)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; it must be {least} or more")
    tokenizer = tokenizer_of(model)
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    training = model.training
    model.eval()
    try:
        ids = [first_context(model), *tokenizer.encode(prompt).tolist()]
        logits, state = model(torch.tensor(ids, device=model.device).unsqueeze(1), None)
        for _ in range(tokens):
            last = logits[-1, 0].float()
            if tokenizer.unk_id is not None:
                last[tokenizer.unk_id] = -torch.inf
            token = _draw(last, temperature, top_k, generator)
            yield int(token)
            logits, state = model(token.view(1, 1), state)
    finally:
        model.train(training)


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax()
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
