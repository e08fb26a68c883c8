"""Scores as text: a line, a table, JSON lines or a page of HTML, each written as the text is read."""

import json
import math
from collections.abc import Iterable, Iterator
from html import escape
from typing import Literal

from zoo.errors import UserError
from zoo.score import Comparison, Sentence, Stream, visible
from zoo.tokenizer import UNK

Format = Literal["summary", "table", "jsonl", "html"]

_SHADES = 16
_FULL = {"word": 16, "character": 8}
"""The bits that have the darkest shade, by level."""

_FULL_DIFFERENCE = 8

_WARM, _COLD = "225 70 30", "30 110 235"


def of_stream(stream: Stream, format: Format, name: str) -> Iterator[str]:
    """The surprisals of a text under the model `name`, in bits.

    - summary: the totals in a line.
    - table: a row for each token, and the totals.
    - jsonl: an object for each token, with `token`, `bits`, `line` and `position` in it, both from 1; no totals.
    - html: a page with every token on a shade of its surprisal, needing nothing from elsewhere.
    """
    if format == "html":
        yield from _page(name, _spans(stream), _shades(stream))
        return
    for token in stream:
        if format == "table":
            yield f"{token.bits:8.3f}  {visible(token.token)}\n"
        elif format == "jsonl":
            yield _object(token=token.token, bits=token.bits, line=token.line, position=token.position)
    if format != "jsonl":
        yield f"{stream.totals}\n"


def of_comparison(comparison: Comparison, format: Format, names: tuple[str, str]) -> Iterator[str]:
    """The surprisals of a text under two models, in bits: token by token, or by lines where they read other tokens.

    As `of_stream`; a difference is the first model's surprisal less the other's. `UserError` for a page of HTML where the
    tokens are not the same.
    """
    if format == "html":
        if not comparison.same_tokens:
            raise UserError(
                f"{' and '.join(names)} cut a text into different tokens: html shows tokens, take table or jsonl"
            )
        yield from _page(" and ".join(names), _compared_spans(comparison, names), _difference_shades(names))
        return
    rows = _compared_tokens(comparison, format) if comparison.same_tokens else _compared_lines(comparison, format)
    yield from rows
    if format != "jsonl":
        yield compared(comparison, names)


def of_sentences(sentences: Iterable[Sentence], format: Format) -> Iterator[str]:
    """Each line's log-probability in nats, its number of tokens and of unknown words, and itself.

    table: separated by tabs, without a header, a row a line; jsonl: `log_probability`, `tokens`, `unknown`, `sentence`.
    """
    if format not in ("table", "jsonl"):
        raise UserError(f"format is {format!r}; sentences are written as table or jsonl")
    for text, log_probability, tokens, unknown in sentences:
        if format == "table":
            yield f"{log_probability:.4f}\t{tokens}\t{unknown}\t{text}\n"
        else:
            yield _object(log_probability=log_probability, tokens=tokens, unknown=unknown, sentence=text)


def compared(comparison: Comparison, names: tuple[str, str]) -> str:
    """The totals of both models, their difference, and the types that each finds easier."""
    lines = [f"{name}: {totals}" for name, totals in zip(names, comparison.totals, strict=True)]
    difference = comparison.difference
    better = names[0] if difference < 0 else names[1]
    lines.append(f"{better} needs {abs(difference):,.1f} bits less" if difference else "both need the same bits")
    if not comparison.same_tokens:
        lines.append(
            f"they cut a text into different tokens, and so were compared by lines; an unknown word is {UNK} and no more"
        )
    for name, types in zip(names, comparison.easier(), strict=True):
        if types:
            lines.append(f"easier for {name}, bits over all occurrences:")
            lines += [f"{bits:10.1f}  {visible(token)}" for token, bits in types]
    return "\n".join(lines) + "\n"


def _compared_tokens(comparison: Comparison, format: Format) -> Iterator[str]:
    for mine, other in comparison.tokens():
        if format == "table":
            yield f"{mine.bits:8.3f} {other.bits:8.3f} {mine.bits - other.bits:+8.3f}  {visible(mine.token)}\n"
        elif format == "jsonl":
            yield _object(
                token=mine.token, bits=mine.bits, other_bits=other.bits, line=mine.line, position=mine.position
            )


def _compared_lines(comparison: Comparison, format: Format) -> Iterator[str]:
    for mine, other in comparison.lines():
        if format == "table":
            yield f"{mine.bits:10.3f} {other.bits:10.3f} {mine.bits - other.bits:+10.3f}  line {mine.line}\n"
        elif format == "jsonl":
            yield _object(line=mine.line, bits=mine.bits, other_bits=other.bits)


def _object(**fields: str | float) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _page(title: str, body: Iterable[str], legend: str) -> Iterator[str]:
    """A page whose totals come last in the file and stand first on the screen."""
    shades = "\n".join(
        f".{letter}{shade} {{ background: rgb({colour} / {0.75 * shade / _SHADES:.2f}) }}"
        for letter, colour in (("w", _WARM), ("c", _COLD))
        for shade in range(1, _SHADES + 1)
    )
    yield f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ display: flex; flex-direction: column; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  font: 1rem/1.7 system-ui, sans-serif; background: Canvas; color: CanvasText }}
main {{ order: 1; white-space: pre-wrap; overflow-wrap: anywhere }}
footer {{ white-space: pre-wrap }}
.e::before {{ content: "\\21b5" }}
{shades}
</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{legend}</p>
</header>
<main>"""
    yield from body
    yield "</body>\n</html>\n"


def _footer(totals: str) -> str:
    return f"</main>\n<footer>{escape(totals.rstrip())}</footer>\n"


def _spans(stream: Stream) -> Iterator[str]:
    step = _FULL[stream.tokenizer.level] / _SHADES
    for token in stream:
        tip = f"{token.bits:.2f} bits, p = {math.exp(-token.nats):.3g}"
        yield _span(stream, token.token, f"w{_shade(token.bits, step)}", tip)
    yield _footer(f"{stream.totals}")


def _compared_spans(comparison: Comparison, names: tuple[str, str]) -> Iterator[str]:
    for mine, other in comparison.tokens():
        difference = mine.bits - other.bits
        colour = f"{'w' if difference > 0 else 'c'}{_shade(abs(difference), _FULL_DIFFERENCE / _SHADES)}"
        tip = f"{names[0]} {mine.bits:.2f} bits, {names[1]} {other.bits:.2f} bits"
        yield _span(comparison.streams[0], mine.token, colour, tip)
    yield _footer(compared(comparison, names))


def _span(stream: Stream, token: str, colour: str, tip: str) -> str:
    """A token; a word is followed by a blank or its line's break, and a character that breaks a line shows itself."""
    words = stream.tokenizer.level == "word"
    ends = token == stream.tokenizer.end_of_line
    after = ("\n" if ends else " ") if words else ""
    marked = f"{colour} e" if ends and not words else colour
    return f'<span class="{marked}" title="{escape(tip)}">{escape(token)}</span>{after}'


def _shade(bits: float, step: float) -> int:
    return round(min(bits / step, _SHADES))


def _shades(stream: Stream) -> str:
    full = _FULL[stream.tokenizer.level]
    return "Surprisal in bits: " + " ".join(
        f'<b class="w{_shade(bits, full / _SHADES)}">&nbsp;{bits}{" or more" if bits == full else ""}&nbsp;</b>'
        for bits in range(0, full + 1, full // 4)
    )


def _difference_shades(names: tuple[str, str]) -> str:
    parts = [
        f'easier for {escape(name)}, in bits: <b class="{letter}{_SHADES // 2}">&nbsp;{_FULL_DIFFERENCE // 2}&nbsp;</b> '
        f'<b class="{letter}{_SHADES}">&nbsp;{_FULL_DIFFERENCE} or more&nbsp;</b>'
        for letter, name in zip("cw", names, strict=True)
    ]
    return "; ".join(parts)
