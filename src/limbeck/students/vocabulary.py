"""Vocabulary trimming: a model and its tokenizer without the tokens that a corpus does not use (arXiv 2305.15020).

Rows of the tables are deleted and nothing else is touched. A text whose pieces were all kept is cut as before, and the
model says the same about every kept token, bit for bit. ::

    keep = frequent_tokens(tokenizer, texts, size=30_000)
    small, small_tokenizer = trim_vocabulary(model, tokenizer, keep)
    check_same_logits(model, tokenizer, small, small_tokenizer, texts)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from limbeck.core.check import LimbeckError, require
from limbeck.students.rows import ids_below_padding, named_ids, table_rows, vocabulary_tensors, with_rows
from limbeck.students.tokenizers import backend_state, trim_tokenizer


def count_tokens(
    tokenizer: Any, texts: Iterable[str], chunk: int = 1000, tell: Callable[[int], None] | None = None
) -> Counter[int]:
    """How often every token id occurs in ``texts``, special tokens of each text included; ids in order of appearance.

    Texts are read ``chunk`` at a time and not kept; ``tell`` is called with the number of texts read so far.
    """
    counts: Counter[int] = Counter()
    source, read = iter(texts), 0
    plain = {"verbose": False, "return_attention_mask": False, "return_token_type_ids": False}
    while part := list(islice(source, chunk)):
        for ids in tokenizer(part, **plain)["input_ids"]:
            counts.update(ids)
        read += len(part)
        if tell is not None:
            tell(read)
    require(counts, "the corpus holds no text, so there is nothing to count; give a file with at least one line")
    return counts


def frequent_tokens(
    tokenizer: Any,
    texts: Iterable[str],
    size: int | None = None,
    min_count: int = 2,
    always: Iterable[int] = (),
) -> list[int]:
    """Ids of the ``size`` most frequent tokens of ``texts``, special tokens and those in ``always``, ascending.

    Tokens that occur less than ``min_count`` times are left out; of equally frequent ones the earlier in the corpus
    counts more; ``size=None`` keeps all. ``size`` counts the frequent tokens, as in the authors' code, so the result is
    longer by the special tokens that the corpus did not show. Raises ``LimbeckError`` where ``size`` cannot be had.
    """
    return most_frequent(tokenizer, count_tokens(tokenizer, texts), size, min_count, always)


def most_frequent(
    tokenizer: Any,
    counts: Mapping[int, float],
    size: int | None = None,
    min_count: int = 2,
    always: Iterable[int] = (),
    weigh: Callable[[int], float] | None = None,
) -> list[int]:
    """``frequent_tokens`` from ``counts``; ``weigh`` orders them by another number than their count."""
    special = set(tokenizer.all_special_ids)
    candidates = [i for i, n in counts.items() if n >= min_count]
    if size is not None:
        require(
            size > len(special),
            f"size {size}: the tokenizer has {len(special)} special tokens, which stay; ask for more",
        )
        require(
            size < len(candidates),
            f"size {size}: only {len(candidates)} tokens occur {min_count} times or more; leave size out to keep all "
            "of them, or give more text",
        )
    ranked = sorted(candidates, key=weigh or counts.__getitem__, reverse=True)  # stable: ties by appearance
    return sorted({*ranked[:size], *special, *always})


def trim_vocabulary(model: Any, tokenizer: Any, keep: Iterable[int], alphabet: bool = True) -> tuple[Any, Any]:
    """The model and tokenizer with the tokens ``keep`` (ids) only, renumbered without gaps.

    Kept as well: special and added tokens, ids that the model's configuration names, what the BPE merges of kept
    pieces pass through, and with ``alphabet`` what lets a byte-level or byte-fallback tokenizer encode any text. Rows
    without a token (tables padded to a round size) go. Tied tables stay tied; output biases keep their rows.

    Nothing is changed in ``model`` and ``tokenizer``. The small model shares all its other parameters with ``model``:
    trimming costs the memory of the new tables, and ``copy.deepcopy(small)`` parts them before one is trained.

    Raises ``LimbeckError`` if the two do not fit, the tokenizer cannot be edited, or nothing would be removed.
    """
    tokens = _tokens_to_keep(model, tokenizer, set(keep))
    small_tokenizer, order = trim_tokenizer(tokenizer, tokens, alphabet)
    rows = [*order, *rows_without_token(model, tokenizer)]
    require(
        len(rows) < table_rows(model),
        f"nothing to trim: all {len(rows)} rows of the model's table would stay; keep fewer tokens",
    )
    return with_rows(model, rows), small_tokenizer


def _tokens_to_keep(model: Any, tokenizer: Any, keep: set[int]) -> set[int]:
    backend_state(tokenizer)  # refuses one that cannot be edited
    rows, ids = table_rows(model), set(tokenizer.get_vocab().values())
    require(
        max(ids) < rows,
        f"the tokenizer has {max(ids) + 1} tokens, but the model's table only {rows} rows; give this model's tokenizer",
    )
    strange = next((i for i in keep if not 0 <= i < rows), None)
    require(strange is None, f"keep: expected ids from 0 to {rows - 1}, but got {strange}")
    return (keep | named_ids(model) | ids_below_padding(model)) & ids


def rows_without_token(model: Any, tokenizer: Any) -> list[int]:
    """Rows that the model's configuration names though the tokenizer has no token there; they are kept at the end."""
    return sorted(named_ids(model) - set(tokenizer.get_vocab().values()))


def kept_rows(model: Any, tokenizer: Any, small_tokenizer: Any) -> list[int]:
    """For every row of the trimmed model, the row of ``model`` that it was."""
    old, new = tokenizer.get_vocab(), small_tokenizer.get_vocab()
    strange = next((token for token in new if token not in old), None)
    require(strange is None, f"{strange!r} is in the small tokenizer, but not in the one it should be trimmed from")
    return [old[token] for token in sorted(new, key=new.__getitem__)] + rows_without_token(model, tokenizer)


def table_sizes(model: Any) -> dict[str, int]:
    """Parameters of ``model``: all, those in vocabulary tables (v d, each tensor once), rows, and bytes of all."""
    own = list(model.parameters())
    tables = [tensor for tensor in vocabulary_tensors(model) if tensor.ndim == 2 and tensor.shape[0] > 1]
    return {
        "parameters": sum(p.numel() for p in own),
        "embedding": sum(t.numel() for t in tables),
        "rows": table_rows(model),
        "bytes": sum(p.numel() * p.element_size() for p in own),
    }


def coverage(counts: Mapping[int, float], keep: Iterable[int]) -> float:
    """Share of the running tokens of a corpus that are kept."""
    return sum(counts.get(i, 0) for i in set(keep)) / sum(counts.values())


@torch.no_grad()
def check_same_logits(
    model: Any, tokenizer: Any, small: Any, small_tokenizer: Any, texts: Iterable[str], most: int = 8, length: int = 32
) -> int:
    """Verify a trimmed model against its original: bit-equal on kept tokens, or ``LimbeckError``.

    Compared are the first ``most`` of ``texts`` that are covered (every piece kept; for WordPiece, no unknown word):
    their ids, and for the first ``length`` of these what the models say; and one row of kept tokens from all over the
    table. Returns how many texts were covered.

    Bit-equal means: the same numbers multiplied in the same order. A matrix product may sum the last few columns of a
    matrix in another order than the rest, so the original's kept columns are computed by a product of the kept rows.
    """
    rows = kept_rows(model, tokenizer, small_tokenizer)
    new = {row: place for place, row in enumerate(rows)}
    spread = torch.linspace(0, len(rows) - 1, length).long().tolist()
    end = [new[i] for i in [model.config.eos_token_id] if isinstance(i, int) and i in new]
    _compare(model, small, rows, spread + end, "a row of kept tokens")
    covered = 0
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        if not ids or not _is_covered(ids, new, tokenizer):
            continue
        renumbered, got = [new[i] for i in ids], small_tokenizer(text, verbose=False)["input_ids"]
        require(
            got == renumbered,
            f"trimming changed how {text[:60]!r} is cut: expected {renumbered[:12]}, but got {got[:12]}",
        )
        _compare(model, small, rows, got[:length], repr(text[:60]))
        covered += 1
        if covered == most:
            break
    return covered


def _is_covered(ids: Sequence[int], new: Mapping[int, int], tokenizer: Any) -> bool:
    greedy = tokenizer.backend_tokenizer.model.__class__.__name__ == "WordPiece"
    return all(i in new for i in ids) and not (greedy and tokenizer.unk_token_id in ids)


def _compare(model: Any, small: Any, rows: Sequence[int], ids: Sequence[int], where: str) -> None:
    said = _said(small, torch.tensor([ids]))
    with _KeptColumns(model, rows):
        expected = _said(model, torch.tensor([[rows[i] for i in ids]]))
    if expected.shape[-1] == table_rows(model) and said.shape[-1] == len(rows):
        expected = expected[..., list(rows)]
    if not torch.equal(said, expected):
        gap = (said - expected).abs().max().item() if said.shape == expected.shape else "of shape"
        raise LimbeckError(
            f"the trimmed {type(small).__name__} differs from its original by {gap} on {where}; keep the original"
        )


def _said(model: Any, ids: Tensor) -> Tensor:
    """The model's first output for one row of ids, in eval mode: logits, or the last hidden states."""
    ids, training = ids.to(model.get_input_embeddings().weight.device), model.training
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    said = model.eval()(**inputs)
    model.train(training)
    logits = getattr(said, "logits", None)
    return said[0] if logits is None else logits


class _KeptColumns:
    """While entered, the kept columns of the model's output are a product of the kept rows alone."""

    def __init__(self, model: Any, rows: Sequence[int]) -> None:
        head = model.get_output_embeddings()
        self.head = head if isinstance(head, nn.Linear) else None
        self.rows = torch.tensor(list(rows))

    def __enter__(self) -> None:
        if self.head is not None:
            self.handle = self.head.register_forward_hook(self._again)

    def __exit__(self, *_: object) -> None:
        if self.head is not None:
            self.handle.remove()

    def _again(self, head: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = self.rows.to(output.device)
        bias = None if head.bias is None else head.bias[rows]
        return output.index_copy(-1, rows, linear(inputs[0], head.weight[rows], bias))
