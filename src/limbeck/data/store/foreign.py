"""What other programs have written down of a teacher's log-probabilities: one ``Spoken`` for each text.

Three formats. All name the tokens of a text, and for some of its tokens the best candidates in their place with
log-probabilities. They differ in whether a list stands at the token that it predicts or one before it; that is decided
by counting in which of the two ways the text's own tokens are among the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.check import LimbeckError, require
from limbeck.data.read import read_rows
from limbeck.data.store.distillkit import Scheme, read_scheme

Candidates = tuple[np.ndarray, np.ndarray]
"""Token ids k and their log-probabilities k."""


class Spoken(NamedTuple):
    """A text's token ``ids`` t, and the candidates for the token *after* each position that has them."""

    where: str
    ids: np.ndarray
    after: Mapping[int, Candidates]


def read_vllm(path: Path, top: int) -> Iterator[Spoken]:
    """vLLM's answers, one JSON object per line: of its server (completions and chats) or ``RequestOutput``s as objects.

    Read are ``prompt_token_ids`` with ``prompt_logprobs`` (a list of null or ``{id: {"logprob": ...}}``, one for each
    token of the prompt), and, of what was generated, ``token_ids`` with ``logprobs`` in any of three forms:
    ``[{id: {"logprob": ...}}]``, ``{"top_logprobs": [{token: number}]}`` or ``{"content": [{"top_logprobs": ...}]}``.
    Tokens have to be named by number, which the server does when asked for ``return_token_ids`` and
    ``return_tokens_as_token_ids``. Field names are those of vLLM 0.10 to 0.15's documentation; a file of a real server
    has not been tried.
    """
    for where, row in read_rows(path):
        choices = row.get("choices") or row.get("outputs") or [{}]
        for choice in choices:
            yield _vllm_choice(row | choice if "choices" in row else row | {"spoken": choice}, choice, where, top)


def _vllm_choice(row: Mapping[str, Any], choice: Mapping[str, Any], where: str, top: int) -> Spoken:
    prompt = _ids(row.get("prompt_token_ids"), f"{where}: prompt_token_ids", "ask the server for return_token_ids")
    listed = row.get("prompt_logprobs") or []
    require(
        len(listed) in (0, len(prompt)),
        f"{where}: {len(prompt)} prompt_token_ids, but {len(listed)} prompt_logprobs; each token needs its own",
    )
    after = {i - 1: _named(entry, where, top) for i, entry in enumerate(listed) if i and entry}
    generated = _generated(choice.get("logprobs"))
    said = _ids(choice.get("token_ids") or [], f"{where}: token_ids", "ask the server for return_token_ids")
    if generated:
        require(
            len(generated) == len(said),
            f"{where}: {len(said)} token_ids were generated, but {len(generated)} have log-probabilities",
        )
        after |= {len(prompt) - 1 + i: _named(entry, where, top) for i, entry in enumerate(generated) if entry}
    return Spoken(where, np.concatenate([prompt, said]), after)


def _generated(logprobs: Any) -> list[Mapping[str, Any]]:
    """Candidates by name for each generated token."""
    if isinstance(logprobs, Mapping) and logprobs.get("content") is not None:
        return [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in logprobs["content"]]
    return list(logprobs["top_logprobs"] if isinstance(logprobs, Mapping) else logprobs or [])


def _named(entry: Mapping[str, Any], where: str, top: int) -> Candidates:
    """The best candidates of ``{"17": {"logprob": -0.1}}`` or ``{"token_id:17": -0.1}``."""
    try:
        ids = [int(str(name).removeprefix("token_id:")) for name in entry]
        log_p = [float(value["logprob"] if isinstance(value, Mapping) else value) for value in entry.values()]
    except (ValueError, KeyError, TypeError):
        raise LimbeckError(
            f"{where}: expected tokens by number with log-probabilities, but got {str(dict(entry))[:60]}; ask the "
            "server for return_tokens_as_token_ids"
        ) from None
    return _first(np.asarray(ids), np.asarray(log_p), top)


def _first(ids: np.ndarray, log_p: np.ndarray, top: int) -> Candidates:
    """The ``top`` best of finite ones; a token named twice is taken once."""
    _, firsts = np.unique(ids, return_index=True)
    best = firsts[np.argsort(-log_p[firsts], kind="stable")][:top]
    best = best[log_p[best] > -1e4]  # some write -9999 or so for nothing
    return ids[best].astype(np.int64), log_p[best].astype(np.float64)


def _ids(value: Any, what: str, hint: str) -> np.ndarray:
    fine = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, int) for one in value)
    require(fine, f"{what}: expected a list of token ids, but got {str(value)[:40]}; {hint}")
    return np.asarray(value, np.int64)


def read_axolotl(path: Path, top: int) -> Iterator[Spoken]:
    """Rows as axolotl's plugin prepares them (jsonl or parquet): ``input_ids`` t, and ``target_token_ids``,
    ``target_logprobs`` and ``target_mask``, t lists of k each.

    Its lists hold the top tokens alone, made to sum to 1 (at ``kd_temperature``): what the others had is lost. Its
    plugin sets a list beside the token that it predicts, other writers one before; see ``aligned``.
    """
    for where, row in read_rows(path):
        ids = _ids(row.get("input_ids"), f"{where}: input_ids", "axolotl's prepared rows have it")
        parts = [row.get(f"target_{name}") for name in ("token_ids", "logprobs", "mask")]
        require(
            all(isinstance(part, list) and len(part) == len(ids) for part in parts),
            f"{where}: expected target_token_ids, target_logprobs and target_mask, one list for each of {len(ids)} ids",
        )
        after = {}
        for index, (names, values, mask) in enumerate(zip(*parts, strict=True)):
            real = np.asarray(mask, bool)
            if real.any():
                after[index] = _first(np.asarray(names)[real], np.asarray(values, float)[real], top)
        yield Spoken(where, ids, after)


def read_distillkit(path: Path, top: int) -> Iterator[Spoken]:
    """DistillKit's parquet files: ``input_ids`` t and, for each but the last, ``compressed_logprobs`` and
    ``bytepacked_indices`` as bytes; or uncompressed ``token_ids`` and ``top_values``.

    How they were compressed is read from ``compression_config.yaml`` beside them. As its sampler writes them, list i
    predicts token i + 1. Its older format (``packed_indices``) holds logits instead of log-probabilities and is
    refused.
    """
    scheme: Scheme | None = None
    for where, row in read_rows(path):
        ids = _ids(row.get("input_ids"), f"{where}: input_ids", "DistillKit's sampler writes it")
        if "compressed_logprobs" in row and "bytepacked_indices" in row:
            scheme = scheme or read_scheme(path if path.is_dir() else path.parent)
            names, values = scheme.unpack(row["compressed_logprobs"], row["bytepacked_indices"], where)
        elif "token_ids" in row and "top_values" in row:
            names, values = np.asarray(row["token_ids"]), np.asarray(row["top_values"], float)
        else:
            raise LimbeckError(
                f"{where}: expected compressed_logprobs and bytepacked_indices, or token_ids and top_values, but the "
                f"row has {', '.join(map(repr, row))}"
            )
        yield Spoken(where, ids, {i: _first(names[i], values[i], top) for i in range(min(len(names), len(ids)))})


FORMATS: dict[str, Callable[[Path, int], Iterator[Spoken]]] = {
    "vllm": read_vllm,
    "axolotl": read_axolotl,
    "distillkit": read_distillkit,
}


def aligned(rows: Callable[[], Iterator[Spoken]], where: str, sample: int = 200) -> Callable[[], Iterator[Spoken]]:
    """``rows`` with every list of candidates at the position whose next token it predicts.

    Decided on the first ``sample`` texts by where the text's own tokens are candidates more often. Raises
    ``LimbeckError`` if that is neither way: the texts and the candidates then are of two tokenizers.
    """
    hits = np.zeros(2)
    lists = 0
    for _, one in zip(range(sample), rows(), strict=False):
        for at, (ids, _) in one.after.items():
            lists += 1
            hits += [at + 1 < len(one.ids) and one.ids[at + 1] in ids, one.ids[at] in ids]
    require(lists, f"{where}: holds no log-probabilities")
    if hits.max() < 0.3 * lists or abs(hits[0] - hits[1]) < 0.05 * lists:
        raise LimbeckError(
            f"{where}: the texts' own tokens are among the candidates for the next place in {hits[0] / lists:.0%} of "
            f"the cases, and for their own place in {hits[1] / lists:.0%}; give a file in which one of the two is usual"
        )
    step = 0 if hits[0] > hits[1] else 1
    return lambda: (_moved(one, step) for one in rows())


def _moved(one: Spoken, step: int) -> Spoken:
    """Lists ``step`` earlier; without empty ones and those for a token that the text does not have."""
    moved = {at - step: said for at, said in one.after.items() if len(said[0])}
    return one._replace(after={at: said for at, said in moved.items() if 0 <= at < len(one.ids) - 1})
