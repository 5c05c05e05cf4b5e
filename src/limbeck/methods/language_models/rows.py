"""The rows that a language model learns from: the user's data, or English text of the atlas."""

from __future__ import annotations

from typing import Any

from limbeck.atlas import corpora
from limbeck.core.check import require
from limbeck.crossing import Across
from limbeck.data.pairs import causal_batches, seq2seq_batches
from limbeck.data.stream import Batches, lm_batches

DOCUMENTS = 1500


def rows(cfg: Any, tokenizer: Any, config: Any) -> Batches:
    """What ``cfg`` names by ``data length batch seed``, in batches for models of ``config``."""
    settings = tokenizer, cfg.length, cfg.batch
    if config.is_encoder_decoder:
        require(cfg.data, "--data: an encoder-decoder learns from rows with prompt and completion; name a file of them")
        return seq2seq_batches(str(cfg.data), *settings, config.decoder_start_token_id, cfg.seed)
    if cfg.data is None:
        return lm_batches(corpora.documents("en", DOCUMENTS, cfg.seed), *settings, cfg.seed)
    return causal_batches(cfg.data, *settings, cfg.seed)


def rows_across(cfg: Any, pair: Across, config: Any) -> Batches:
    """The same for a student and a teacher, cut in both ways where their tokenizers differ."""
    if pair.kind != "different":
        return rows(cfg, pair.tokenizers[0], config)
    if cfg.data is None:
        return pair.text_batches(corpora.documents("en", DOCUMENTS, cfg.seed), cfg.length, cfg.batch, cfg.seed)
    return pair.batches(cfg.data, cfg.length, cfg.batch, cfg.seed)
