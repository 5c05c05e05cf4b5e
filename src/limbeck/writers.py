"""A teacher that writes, by name: a model in a folder or on the Hub, or one behind an API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from limbeck.core.check import one_of, require
from limbeck.core.stage import freeze
from limbeck.data.model_writer import Decode, Decoding, ModelWriter
from limbeck.data.named import Listed, Names
from limbeck.data.written import (
    CHUNK,
    ROWS,
    Filter,
    Near,
    Prompt,
    Text,
    Write,
    distinct,
    finished,
    put_together,
    write_down,
)
from limbeck.data.written import length as fitting
from limbeck.sources.replies import Request, echo_request, write_request
from limbeck.sources.served import Server, Service
from limbeck.sources.wire import is_url

AT_ONCE = 16  # prompts that a model here writes for together
T = TypeVar("T")
SERVED_CHUNK = 512  # prompts; a server's replies are kept one by one, so a kill loses none of them


@dataclass(frozen=True, kw_only=True)
class Writing(Service):
    """How a teacher writes; the Config of a method that learns from its text inherits these settings."""

    decode: Decode | None = None
    """How the teacher writes; None: beam where it is a model here, sample behind an API."""
    beams: int = 5
    """Beams of --decode beam; Kim and Rush, 2016."""
    temperature: float = 1.0
    """Of --decode sample; a choice: the teacher's own distribution."""
    top_p: float = 1.0
    """Of --decode sample: draw among the likeliest tokens of so much probability; a choice: all."""
    samples: int = 1
    """Texts per prompt; Kim and Rush: 1."""
    new_tokens: int = 64
    """Most tokens of a text; a choice."""
    stop: tuple[str, ...] = ()
    """Texts that end what the teacher writes; a choice: none."""
    choose: Literal["all", "nearest"] = "all"
    """All texts, or of beams or samples the one nearest to the data's own in BLEU (Kim and Rush, section 3.3)."""
    unfinished: Literal["keep", "drop"] = "keep"
    """What becomes of texts cut at the limit of tokens; a choice. Unfinished answers to messages are dropped."""


def decoding(cfg: Any) -> Decoding:
    """How the teacher of ``cfg``, a ``Writing`` with ``teacher`` and ``seed``, writes; nonsense is refused."""
    served = is_url(cfg.teacher)
    one_of(cfg.choose, ("all", "nearest"), "--choose")
    one_of(cfg.unfinished, ("keep", "drop"), "--unfinished")
    decode: Decode = cfg.decode or ("sample" if served else "beam")
    count = cfg.samples
    if cfg.choose == "nearest":
        require(decode != "greedy", "--choose nearest needs several texts to choose from: --decode beam or sample")
        count = max(count, cfg.beams)
    how = Decoding(decode, cfg.new_tokens, count, cfg.beams, cfg.temperature, cfg.top_p, tuple(cfg.stop), cfg.seed)
    if served:
        how.protocol()
    return how


def writer(cfg: Any, model: Any = None, tokenizer: Any = None) -> tuple[Write, Server | None]:
    """Who writes as ``cfg`` says: ``model``, or else the server at ``cfg.teacher``, which is given too."""
    how = decoding(cfg)
    if model is not None:
        return ModelWriter(freeze(model), tokenizer, how, AT_ONCE), None
    server = Server(cfg.teacher, cfg, Path(cfg.out) / "responses.sqlite")
    return (lambda prompts, number: server.texts(prompts, how.protocol())), server


def written(
    prompts: Sequence[Prompt], write: Write, cfg: Any, filters: Sequence[Filter], near: Near, out: Path, engine: Any
) -> Path:
    """The file of rows that ``write`` writes for ``prompts`` below ``out``; each process writes a share of the text.

    ``near`` compares texts for ``cfg.choose`` "nearest"; ``engine`` is Accelerate's, or None for a process alone.
    """
    settings = {"teacher": cfg.teacher, "served_model": cfg.served_model, "api": cfg.api, **asdict(decoding(cfg))}
    chunk = SERVED_CHUNK if is_url(cfg.teacher) else CHUNK
    share = (0, 1) if engine is None else (engine.process_index, engine.num_processes)
    wait = engine.wait_for_everyone if engine is not None else lambda: None
    write_down(prompts, write, out, settings, chunk, share)
    wait()
    if share[0] == 0:
        put_together(prompts, out, filters, near if cfg.choose == "nearest" else None)
    wait()
    return out / ROWS


def listed(
    server: Server, texts: Iterable[tuple[Sequence[int], Sequence[int]]], names: Names, top: int
) -> Iterator[Listed]:
    """The likeliest ``top`` tokens at positions of texts, as the server says in the completions API (``echo``).

    A text is its token ids by the student's tokenizer (that of ``names``) and the positions asked about; position p
    predicts id p + 1. In the order of ``texts``, of which a few more are read than are given back.
    """
    sent: dict[int, tuple[Sequence[int], Sequence[int]]] = {}

    def requests() -> Iterator[Request]:
        for number, text in enumerate(texts):
            sent[number] = text
            yield echo_request(server.model, [int(token) for token in text[0]], top)

    for number, heard in ordered(server.answers(requests())):
        ids, positions = sent.pop(number)
        yield names.listed(ids, heard, positions)


def spoken(
    server: Server, prompts: Sequence[Text], names: Names, how: Decoding, top: int
) -> Iterator[list[tuple[str, bool, Listed]]]:
    """What a served teacher writes for every prompt, with its likeliest ``top`` tokens in each place (the chat API).

    For every prompt its texts, whether each is finished, and a ``Listed`` whose first id is of no text (0, for the
    prompt's last token), so that position p tells of the text's token p.
    """
    requests = (write_request(server.model, prompt, "chat", how.protocol(), top) for prompt in prompts)
    for _, choices in ordered(server.answers(requests)):
        found = []
        for said, heard in choices:
            ids = names.spoken(heard, said.text)
            found.append((*said, names.listed([0, *ids], [None, *heard], range(len(ids)))))
        yield found


def ordered(pairs: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
    """Numbered things in the order of their numbers, which begin with 0; those that come early wait."""
    waiting: dict[int, T] = {}
    following = 0
    for number, value in pairs:
        waiting[number] = value
        while following in waiting:
            yield following, waiting.pop(following)
            following += 1


def usual_filters(cfg: Any, tokenizer: Any, most: int) -> list[Filter]:
    """Leave out texts of more than ``most`` tokens, unfinished ones as ``cfg`` says, and rows that come again.

    An answer to messages that is cut is left out whatever ``cfg`` says: chats are learned with their end.
    """

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def unfinished(row: Mapping[str, Any]) -> str | None:
        return finished(row) if cfg.unfinished == "drop" or "messages" in row else None

    again = [distinct()] if cfg.samples == 1 else []  # of several samples, the same twice says how likely it is
    return [unfinished, fitting(most=most, size=tokens), *again]
