"""The check after vocabulary surgery: on covered text a trimmed model says what its original says, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from limbeck.core.check import LimbeckError, require
from limbeck.students.rows import table_rows, vocabulary_tensors
from limbeck.students.vocabulary import kept_rows

CHUNK = 1024  # rows that are compared at a time, so that a check costs little memory


@torch.no_grad()
def check_same_logits(
    model: Any, tokenizer: Any, small: Any, small_tokenizer: Any, texts: Iterable[str], most: int = 8, length: int = 8
) -> int:
    """Verify a trimmed model against its original: bit-equal on kept tokens, or ``LimbeckError``.

    Compared are all rows of all vocabulary tables; the first ``most`` of ``texts`` that are covered (every piece kept;
    for WordPiece, no unknown word): their ids, and for the first ``length`` of these what the models say; and what they
    say to one text of kept tokens from all over the table. Returns how many texts were covered.

    Bit-equal means: the same numbers multiplied in the same order. A matrix product may sum the last few columns of a
    matrix in another order than the rest, so the original's kept columns are computed by a product of the kept rows.
    """
    rows = kept_rows(model, tokenizer, small_tokenizer)
    _compare_tables(model, small, rows)
    new = {row: place for place, row in enumerate(rows)}
    spread = torch.linspace(0, len(rows) - 1, length).long().tolist()
    end = [new[i] for i in [getattr(model.config, "eos_token_id", None)] if isinstance(i, int) and i in new]
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


def _compare_tables(model: Any, small: Any, rows: Sequence[int]) -> None:
    for old, new in zip(vocabulary_tensors(model), vocabulary_tensors(small), strict=True):
        old, new = (tensor[0] if tensor.shape[0] == 1 else tensor for tensor in (old, new))  # mBART's bias is 1 v
        for at in range(0, len(rows), CHUNK):
            same = torch.equal(new[at : at + CHUNK], old[list(rows[at : at + CHUNK])])
            require(
                same, f"rows {at} to {at + CHUNK} of the trimmed {type(small).__name__} are not those of its original"
            )


def _compare(model: Any, small: Any, rows: Sequence[int], ids: Sequence[int], where: str) -> None:
    said = _said(small, torch.tensor([ids]))
    with _KeptColumns(model, small, rows):
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
    """While entered, the kept columns of the model's output are a product of the kept rows alone.

    The small model's table is taken for them: it holds the same numbers, as ``_compare_tables`` has seen.
    """

    def __init__(self, model: Any, small: Any, rows: Sequence[int]) -> None:
        head: Any = model.get_output_embeddings()
        self.head, self.kept = head if isinstance(head, nn.Linear) else None, small.get_output_embeddings()
        self.rows = torch.tensor(list(rows))

    def __enter__(self) -> None:
        if self.head is not None:
            self.handle = self.head.register_forward_hook(self._again)

    def __exit__(self, *_: object) -> None:
        if self.head is not None:
            self.handle.remove()

    def _again(self, head: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        alone = linear(inputs[0], self.kept.weight, self.kept.bias)
        return output.index_copy_(-1, self.rows.to(output.device), alone)
