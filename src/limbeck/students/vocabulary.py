"""Vocabulary trimming: a model and its tokenizer without the tokens that a corpus does not use (arXiv 2305.15020).

Rows of the tables are deleted and nothing else is touched. A text whose pieces were all kept is cut as before, and the
model says the same about every kept token, bit for bit. ::

    keep = frequent_tokens(tokenizer, texts, size=30_000)
    small, small_tokenizer = trim_vocabulary(model, tokenizer, keep)
    check_same_logits(model, tokenizer, small, small_tokenizer, texts)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, islice
from typing import Any

from limbeck.core.check import require
from limbeck.students.rows import ids_below_padding, named_ids, table_rows, vocabulary_tensors, with_rows
from limbeck.students.tokenizers import backend, trim_tokenizer


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
    tokens = _tokens_to_keep(model, tokenizer, {int(i) for i in keep})
    small_tokenizer, order = trim_tokenizer(tokenizer, tokens, alphabet)
    rows = [*order, *rows_without_token(model, tokenizer)]
    require(
        len(rows) < table_rows(model),
        f"nothing to trim: all {len(rows)} rows of the model's table would stay; keep fewer tokens",
    )
    return with_rows(model, rows), small_tokenizer


def _tokens_to_keep(model: Any, tokenizer: Any, keep: set[int]) -> set[int]:
    engine, rows = backend(tokenizer), table_rows(model)
    size = engine.get_vocab_size(with_added_tokens=True)
    require(
        size <= rows,
        f"the tokenizer has {size} tokens, but the model's table only {rows} rows; give this model's tokenizer",
    )
    strange = next((i for i in keep if not 0 <= i < rows), None)
    require(strange is None, f"keep: expected ids from 0 to {rows - 1}, but got {strange}")
    wanted = keep | named_ids(model) | ids_below_padding(model)
    return {i for i in wanted if engine.id_to_token(i) is not None}


def rows_without_token(model: Any, tokenizer: Any) -> list[int]:
    """Rows that the model's configuration names though the tokenizer has no token there; they are kept at the end."""
    return sorted(i for i in named_ids(model) if backend(tokenizer).id_to_token(i) is None)


def kept_rows(model: Any, tokenizer: Any, small_tokenizer: Any) -> list[int]:
    """For every row of the trimmed model, the row of ``model`` that it was."""
    new, old = backend(small_tokenizer).get_vocab(), backend(tokenizer)
    rows = {place: old.token_to_id(token) for token, place in new.items()}
    strange = next((token for token, place in new.items() if rows[place] is None), None)
    require(strange is None, f"{strange!r} is in the small tokenizer, but not in the one it should be trimmed from")
    return [rows[place] for place in sorted(rows)] + rows_without_token(model, tokenizer)


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


def coverage_curve(counts: Mapping[int, float], weigh: Callable[[int], float]) -> tuple[list[int], list[float]]:
    """Share of running tokens that are among the n weightiest tokens, for about 40 sizes n from 1 to all."""
    ranked = sorted(counts, key=weigh, reverse=True)
    covered, total = list(accumulate(counts[i] for i in ranked)), sum(counts.values())
    sizes = sorted({round(len(ranked) ** (step / 39)) for step in range(40)})
    return sizes, [covered[n - 1] / total for n in sizes]


def mean_share(counts: Iterable[Mapping[int, float]]) -> Callable[[int], float]:
    """The mean share of a token in corpora that weigh alike, whatever their sizes."""
    sized = [(count, sum(count.values())) for count in counts]
    return lambda token: sum(count.get(token, 0) / size for count, size in sized) / len(sized)
