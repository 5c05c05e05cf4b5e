"""Rows of a model's vocabulary tables: which tensors have a row per token, which ids the model itself names, and a copy
of the model with some rows only.

Tensors are found through the model's input and output embeddings, never by name, so that tied tables, T5's shared one,
biases of the output and mBART's ``final_logits_bias`` are cut alike, and what was one tensor stays one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.check import LimbeckError, require

ID_FIELDS = ("_token_id", "_token_index")  # how transformers ends the name of a setting that holds token ids
LISTS = ("suppress_tokens", "begin_suppress_tokens")


def table_rows(model: Any) -> int:
    """Rows of the input embedding, which may exceed the number of tokens."""
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise LimbeckError(f"trimming needs a model that reads tokens through a table, but got {type(model).__name__}")
    return table.weight.shape[0]


def vocabulary_tensors(model: Any) -> list[Tensor]:
    """Parameters and buffers of ``model`` with one entry per token, each once: v d, v or 1 v."""
    rows = table_rows(model)
    found: list[Tensor] = []
    for part in _models(model):
        table = _ask(part, "get_input_embeddings")
        if isinstance(table, nn.Embedding):
            found.append(_same_rows(table.weight, rows))
        head = _ask(part, "get_output_embeddings")
        if isinstance(head, nn.Linear | nn.Embedding):
            found += [_same_rows(head.weight, rows), *_biases(model, head, rows)]
    wide = (b for b in model.buffers() if b.shape == (1, rows) and b.is_floating_point())
    return list({id(tensor): tensor for tensor in chain(found, wide)}.values())


def _models(model: Any) -> Iterator[Any]:
    from transformers import PreTrainedModel

    return (module for module in model.modules() if isinstance(module, PreTrainedModel))


def _ask(part: Any, name: str) -> Any:
    try:
        return getattr(part, name)()
    except (NotImplementedError, AttributeError):  # an inner part without tokens, such as a vision tower
        return None


def _same_rows(weight: Tensor, rows: int) -> Tensor:
    require(
        weight.shape[0] == rows,
        f"the model has vocabularies of {rows} and {weight.shape[0]} tokens; trimming needs one that reads and writes",
    )
    return weight


def _biases(model: Any, head: nn.Module, rows: int) -> list[Tensor]:
    """Biases of the output, also where the module around the head holds them (BERT's ``predictions.bias``)."""
    holders = [module for module in model.modules() if any(child is head for child in module.children())]
    own = chain.from_iterable(module.parameters(recurse=False) for module in [head, *holders])
    return [bias for bias in own if bias.shape == (rows,)]


def named_ids(model: Any) -> set[int]:
    """Ids that the model's settings name (pad, eos, decoder start, ...), of those that the table has."""
    rows, found = table_rows(model), set[int]()
    for config in _settings(model):
        for name, value in vars(config).items():
            if name.endswith(ID_FIELDS):
                found |= {i for i in (value if isinstance(value, list) else [value]) if _is_id(i, rows)}
    return found


def ids_below_padding(model: Any) -> set[int]:
    """Ids that must stay where positions are counted from the padding id (RoBERTa, XLM-R, M2M-100): all below it."""
    tables = {id(tensor) for tensor in vocabulary_tensors(model)}
    below = 0
    for module in model.modules():
        positions = isinstance(module, nn.Embedding) and id(module.weight) not in tables
        if positions or hasattr(module, "make_weights"):  # the latter: sinusoidal tables in fairseq's manner
            below = max(below, getattr(module, "padding_idx", None) or 0)
    return set(range(below))


def with_rows(model: Any, rows: Sequence[int]) -> Any:
    """A copy of ``model`` whose vocabulary tables have the rows ``rows`` (old ids, in new order) only.

    All other parameters are shared with ``model``, which is not changed: the copy costs the new tables and no more. Ids
    in its configuration are renumbered; each must be among ``rows``.
    """
    count, old = len(rows), table_rows(model)
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    index = torch.tensor(list(rows))
    shared |= {id(tensor): _cut(tensor, index) for tensor in vocabulary_tensors(model)}
    small = copy.deepcopy(model, shared)
    new = {row: place for place, row in enumerate(rows)}
    for module in small.modules():
        _renumber_module(module, new, old, count)
    for config in _settings(small):
        _renumber_settings(config, new, old, count)
    return small


def _cut(tensor: Tensor, index: Tensor) -> Tensor:
    axis = 1 if tensor.shape[0] == 1 else 0
    cut = tensor.detach().index_select(axis, index.to(tensor.device))
    return nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut


def _renumber_module(module: nn.Module, new: Mapping[int, int], old: int, count: int) -> None:
    """Keep the numbers that a module remembers true: its sizes, and the ids of its padding and special tokens."""
    cut = isinstance(module, nn.Embedding | nn.Linear) and module.weight.shape[0] == count
    for name in ("num_embeddings", "out_features") if cut else ("vocab_size",):
        if module.__dict__.get(name) == old:
            setattr(module, name, count)
    for name, value in list(module.__dict__.items()):
        if (name == "padding_idx" or name.endswith(ID_FIELDS)) and _is_id(value, old):
            setattr(module, name, new.get(value, value))


def _renumber_settings(config: Any, new: Mapping[int, int], old: int, count: int) -> None:
    for name, value in list(vars(config).items()):
        if name in ("vocab_size", "decoder_vocab_size") and value == old:
            setattr(config, name, count)
        elif name.endswith(ID_FIELDS) and value is not None:
            many = isinstance(value, list)
            changed = [new[i] if _is_id(i, old) else i for i in (value if many else [value])]
            setattr(config, name, changed if many else changed[0])
        elif name in LISTS and value:
            setattr(config, name, [new[i] for i in value if i in new])
        elif name == "bad_words_ids" and value:
            setattr(config, name, [[new[i] for i in word] for word in value if new.keys() >= set(word)] or None)


def _settings(model: Any) -> list[Any]:
    """Every configuration in the model, each once: its own, those of its parts, and how it generates."""
    from transformers import PreTrainedConfig

    waiting = [getattr(module, name, None) for module in model.modules() for name in ("config", "generation_config")]
    found: dict[int, Any] = {}
    while waiting:
        config = waiting.pop()
        if config is not None and id(config) not in found:
            found[id(config)] = config
            waiting += [inner for inner in vars(config).values() if isinstance(inner, PreTrainedConfig)]
    return list(found.values())


def _is_id(value: Any, rows: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows
