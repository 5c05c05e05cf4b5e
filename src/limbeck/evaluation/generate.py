"""Writing answers under a prefix, greedily, with the prefix read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import require
from limbeck.evaluation.cache import quiet, repeated
from limbeck.evaluation.model import check_ids, encoder_output, ones, start_token
from limbeck.evaluation.prefix import Prefix, read_prefix


def generate(
    lm: Any,
    tokenizer: Any,
    prefix: Tensor | Prefix | None,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int = 32,
    stop: Sequence[str] = ("\n",),
    batch: int = 32,
    enter: str = "embeddings",
    query: str = "decoder",
) -> list[str]:
    """The greedy continuation of every prompt as text, stripped, up to ``new_tokens`` tokens.

    It ends at the model's end-of-text token or before the first of the ``stop`` texts. ``prefix``, ``enter`` and
    ``query`` are those of ``score_options``. Prompts of one length are continued together, so nothing is padded.

    Raises for an empty prompt and where prompt and answer would not fit the model's positions.
    """
    read = prefix if isinstance(prefix, Prefix) else read_prefix(lm, prefix, enter=enter, query=query)
    groups: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        require(len(prompt), f"prompt {number + 1} is empty; a query needs at least one token")
        check_ids(lm, prompt)
        read.check_room(len(prompt), new_tokens)
        groups[len(prompt)].append(number)
    out = [""] * len(prompts)
    size = read.at_once(batch)
    for same in groups.values():
        for chosen in (same[i : i + size] for i in range(0, len(same), size)):
            same_length = torch.tensor([list(prompts[i]) for i in chosen])
            ids = _continue(read, same_length, new_tokens, tokenizer, stop)
            for i, text in zip(chosen, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                out[i] = _until(text, stop)
    return out


def _continue(read: Prefix, prompts: Tensor, new_tokens: int, tokenizer: Any, stop: Sequence[str]) -> Tensor:
    """New ids b n behind prompts b t of one length."""
    lm, prompts = read.lm, prompts.to(read.lm.device)
    end = lm.generation_config.eos_token_id
    pad = end[0] if isinstance(end, list) else end or 0  # stands only behind an end, where it is cut
    with quiet(lm):
        args = (_seq2seq if read.seq2seq else _decoder)(read, prompts)
        given = next((args[name].shape[1] for name in ("input_ids", "decoder_input_ids") if name in args), 0)

        def stopped(ids: Tensor, scores: Any, **settings: Any) -> Tensor:
            texts = tokenizer.batch_decode(ids[:, given:], skip_special_tokens=True)
            return torch.tensor([any(mark in text.lstrip() for mark in stop) for text in texts], device=ids.device)

        settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": new_tokens, "pad_token_id": pad}
        return lm.generate(**args, **settings, stopping_criteria=[stopped])[:, given:]


def _decoder(read: Prefix, prompts: Tensor) -> dict[str, Any]:
    """Arguments of ``generate`` for a decoder: what is in the cache has stand-in ids, which nobody reads."""
    size = len(prompts)
    if read.cache is None and read.embeds is not None:
        embeds = torch.cat([read.embeds.expand(size, -1, -1), read.lm.get_input_embeddings()(prompts)], dim=1)
        return {"inputs_embeds": embeds, "attention_mask": ones(embeds)}
    ids = torch.cat([prompts.new_zeros(size, read.length), prompts], dim=1)
    cache = {} if read.cache is None else {"past_key_values": repeated(read.cache, size)}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **cache}


def _seq2seq(read: Prefix, prompts: Tensor) -> dict[str, Any]:
    """Arguments of ``generate`` for an encoder-decoder."""
    states, seen = read.encoder_states(prompts.tolist())
    start = prompts.new_full((len(prompts), 1), start_token(read.lm))
    ids = start if read.query == "encoder" else torch.cat([start, prompts], dim=1)
    cache = {} if read.cache is None else {"past_key_values": repeated(read.cache, len(prompts))}
    # the decoder's mask tells transformers that ids hold what is cached too, so that it leaves that out
    decoder = {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids), **cache}
    return {"encoder_outputs": encoder_output(states), "attention_mask": seen, **decoder}


def _until(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text, stripped; a stop text at the very start is passed over."""
    text = text.lstrip()
    cuts = [place for mark in stop if (place := text.find(mark)) >= 0]
    return text[: min(cuts, default=len(text))].strip()
