"""A model here as the one who writes: texts for prompts, by beam search, greedily or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.core.check import LimbeckError, one_of, require
from limbeck.data.stream import lengths_mask, pad
from limbeck.data.turns import use_template
from limbeck.data.writer import end_tokens, silent, without_defaults
from limbeck.data.written import Text

Decode = Literal["beam", "greedy", "sample"]


@dataclass(frozen=True)
class Decoding:
    """How a teacher writes: ``samples`` texts per prompt of at most ``new_tokens`` tokens.

    "beam" gives the best ``samples`` of ``beams`` beams; "greedy" the likeliest token each time; "sample" draws at
    ``temperature`` among the likeliest tokens that hold ``top_p`` of the probability. A text ends before the first of
    ``stop``. What is drawn depends on ``seed``, the weights and the prompt's place alone.
    """

    decode: Decode = "sample"
    new_tokens: int = 256
    samples: int = 1
    beams: int = 5
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(self.decode, ("beam", "greedy", "sample"), "--decode")
        require(self.new_tokens >= 1, f"--new-tokens {self.new_tokens}: expected at least 1 token")
        most = {"beam": self.beams, "greedy": 1}.get(self.decode, 1 << 20)
        hint = {"beam": "raise --beams", "greedy": "a greedy text is always the same"}.get(self.decode, "")
        require(1 <= self.samples <= most, f"--samples {self.samples}: expected 1 to {most} texts per prompt; {hint}")
        require(
            self.decode != "beam" or self.beams > 1, f"--beams {self.beams}: expected 2 or more, or --decode greedy"
        )
        require(self.temperature > 0, f"--temperature {self.temperature}: expected above 0; or --decode greedy")
        require(0 < self.top_p <= 1, f"--top-p {self.top_p}: expected above 0 and at most 1")

    def protocol(self) -> dict[str, Any]:
        """The same as fields of a request in OpenAI's protocol, which knows no beams."""
        require(self.decode != "beam", "a served teacher cannot search with beams; choose --decode greedy or sample")
        how: dict[str, Any] = {"max_tokens": self.new_tokens, "temperature": 0.0}
        if self.decode == "sample":
            how |= {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return (
            how | ({"n": self.samples} if self.samples > 1 else {}) | ({"stop": list(self.stop)} if self.stop else {})
        )


class ModelWriter:
    """Writes with ``model`` (causal, or an encoder-decoder that reads the prompts), ``batch`` prompts at a time.

    A ``data.written.Write``. The model is to be in eval mode; messages go through the tokenizer's chat template (see
    ``data.turns.use_template``).
    """

    def __init__(self, model: Any, tokenizer: Any, how: Decoding, batch: int = 16) -> None:
        self.model, self.tokenizer, self.how, self.batch = model, tokenizer, how, batch
        self.seq2seq = bool(model.config.is_encoder_decoder)
        marks = [tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in how.stop]
        ends = {*end_tokens(model, tokenizer), *(mark[0] for mark in marks if len(mark) == 1)}
        self.ends = sorted(ends)  # beams stop at tokens alone
        starts = (getattr(part, "decoder_start_token_id", None) for part in (model.generation_config, model.config))
        self.start = next((start for start in starts if start is not None), None)

    def __call__(self, prompts: Sequence[Text], number: int) -> list[list[tuple[str, bool]]]:
        """Texts for every prompt of chunk ``number``; prompts of like length share a batch."""
        ids = [self._ids(prompt) for prompt in prompts]
        out: list[list[tuple[str, bool]]] = [[] for _ in ids]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        device = next(self.model.parameters()).device
        apart = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with silent(self.model), without_defaults(self.model), apart:
            torch.manual_seed(int(np.random.default_rng([self.how.seed, number]).integers(2**62)))
            for chosen in (order[i : i + self.batch] for i in range(0, len(order), self.batch)):
                written = self._write([ids[i] for i in chosen])
                for place, i in enumerate(chosen):
                    new = written[place * self.how.samples : (place + 1) * self.how.samples]
                    out[i] = [self._text(ids[i], each) for each in new]
        return out

    def _ids(self, prompt: Text) -> list[int]:
        if isinstance(prompt, str):
            ids = list(self.tokenizer(prompt)["input_ids"])
            if ids and ids[-1] in self.ends and not self.seq2seq:
                ids.pop()
        else:
            use_template(self.tokenizer)
            chat = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            ids = list(self.tokenizer(chat, add_special_tokens=False)["input_ids"])
        require(ids, "a prompt is empty; the first token needs something to follow")
        self._check_room(len(ids))
        return ids

    def _check_room(self, tokens: int) -> None:
        config = self.model.config
        relative = getattr(config, "relative_attention_num_buckets", None)
        most = None if relative else getattr(config, "max_position_embeddings", None)
        need = max(tokens, self.how.new_tokens) if self.seq2seq else tokens + self.how.new_tokens
        if most is not None and need > most:
            raise LimbeckError(
                f"a prompt of {tokens} tokens and {self.how.new_tokens} new ones exceed the {most} positions that the "
                "teacher can read; shorten the prompts or lower --new-tokens"
            )

    def _write(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """New ids, ``samples`` rows per prompt; padded on the left, so that all go on at the same place."""
        ids = pad(prompts) if self.seq2seq else pad([prompt[::-1] for prompt in prompts]).flip(1)
        mask = lengths_mask(prompts) if self.seq2seq else lengths_mask(prompts).flip(1)
        given = 1 if self.seq2seq else ids.shape[1]
        device = next(self.model.parameters()).device
        said = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            generation_config=self._settings(),
            stopping_criteria=[self._stopper(given)] if self.how.stop and self.how.decode != "beam" else None,
        )
        return said[:, given:].tolist()

    def _settings(self) -> Any:
        """What ``generate`` is told; the model's own settings do not count (``without_defaults``)."""
        from transformers import GenerationConfig

        how = self.how
        drawn = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
        beams = {"num_beams": how.beams, "early_stopping": True}
        ways: dict[str, dict[str, Any]] = {"sample": drawn, "beam": beams, "greedy": {"do_sample": False}}
        ends = {"eos_token_id": self.ends or None, "pad_token_id": self.ends[0] if self.ends else 0}
        start = {"decoder_start_token_id": self.start} if self.seq2seq else {}
        many = {"num_return_sequences": how.samples, "max_new_tokens": how.new_tokens}
        return GenerationConfig(**ways[how.decode], **ends, **start, **many)

    def _stopper(self, given: int) -> Any:
        def stopped(ids: Tensor, scores: Any, **rest: Any) -> Tensor:
            texts = self.tokenizer.batch_decode(ids[:, given:], skip_special_tokens=True)
            return torch.tensor([any(mark in text for mark in self.how.stop) for text in texts], device=ids.device)

        return stopped

    def _text(self, prompt: list[int], ids: list[int]) -> tuple[str, bool]:
        """What was written after ``prompt``, and whether it was ended rather than cut."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        text = self._decoded(prompt, ids[:end])
        cuts = [text.find(mark) for mark in self.how.stop if mark in text]
        return text[: min(cuts, default=len(text))], end is not None or bool(cuts)

    def _decoded(self, prompt: list[int], ids: list[int]) -> str:
        """The text of ``ids``; after a prompt, because some tokenizers drop the space that a text begins with."""
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        if self.seq2seq:
            return str(self.tokenizer.decode(ids, **plain))
        head, whole = (self.tokenizer.decode(part, **plain) for part in (prompt, [*prompt, *ids]))
        return str(whole[len(head) :] if whole.startswith(head) else self.tokenizer.decode(ids, **plain))
