"""The host: the frozen LLM that reads the vectors. Loading it, and knowing it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.core.check import require
from limbeck.core.device import pick
from limbeck.models.load import Dtype, load_model
from limbeck.sources.views import positions

ARCHITECTURE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
PROBES, PROBE_VALUES = 4, 8


@dataclass(frozen=True)
class Host:
    """What a distiller and its vectors remember of the LLM that they were made for.

    ``llm`` folder, Hub id or ``limbeck:<folder>``; ``width`` of its embeddings; ``positions`` it can read (None: no
    limit); ``start`` the first token of an encoder-decoder's decoder; ``fingerprint`` its architecture and a few of its
    weights.
    """

    llm: str
    width: int
    seq2seq: bool = False
    positions: int | None = None
    start: int | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @staticmethod
    def of(model: Any, name: str | Path) -> Host:
        """The host that ``model``, loaded from ``name``, is."""
        config, seq2seq = model.config, bool(model.config.is_encoder_decoder)
        embedding = model.get_input_embeddings()
        require(
            isinstance(getattr(embedding, "weight", None), torch.Tensor),
            f"{type(model).__name__} has no table of input embeddings, so vectors cannot stand among them",
        )
        start = getattr(config, "decoder_start_token_id", None) if seq2seq else None
        require(
            start is not None or not seq2seq,
            f"{name}: an encoder-decoder needs decoder_start_token_id in its configuration, but there is none",
        )
        where = str(Path(name).resolve()) if Path(name).is_dir() else str(name)
        return Host(where, embedding.weight.shape[1], seq2seq, positions(config), start, fingerprint(model))

    def load(self, what: str, llm: str | None = None, device: torch.device | None = None) -> tuple[Any, Any]:
        """The frozen LLM on ``device``, by default an accelerator if there is one, and its tokenizer.

        ``what`` was made for it; ``llm`` is where it is, if it has moved. Refuses another LLM.
        """
        require(
            llm or not Path(self.llm).is_absolute() or Path(self.llm).is_dir(),
            f"{what}: made for the LLM in {self.llm}, but there is no such folder any more; say where it is with --llm",
        )
        model, tokenizer = load_llm(llm or self.llm)
        self.check(model, what)
        return model.to(device or pick()), tokenizer

    def check(self, model: Any, what: str) -> None:
        """Refuse ``model`` unless it is this host; ``what`` was made for it. Copies in another precision pass."""
        for name in ARCHITECTURE:
            expected, ours = self.fingerprint.get(name), getattr(model.config, name, None)
            require(
                ours == expected,
                f"{what}: made for an LLM with {name} {expected}, but this one has {ours}; give {self.llm}",
            )
        weights = dict(model.named_parameters())
        for name, values in self.fingerprint.get("probes", {}).items():
            found = weights.get(name)
            require(
                found is None or not found.is_floating_point() or _close(_values(found), values),
                f"{what}: made for {self.llm}, but this LLM of the same architecture has other weights ({name}); "
                "give it the one that it was made for",
            )


def load_llm(name: str | Path, dtype: Dtype = "float32") -> tuple[Any, Any]:
    """The frozen LLM, causal or encoder-decoder as its configuration says, and its tokenizer."""
    model, tokenizer = load_model(name, "language", dtype)
    return model.requires_grad_(False), tokenizer


def fingerprint(model: Any) -> dict[str, Any]:
    """Architecture, and a few values of weight matrices spread over the model (quantised ones are passed over)."""
    matrices = [(name, p) for name, p in model.named_parameters() if p.is_floating_point() and p.dim() > 1]
    chosen = {round(i * (len(matrices) - 1) / (PROBES - 1)) for i in range(PROBES)}
    probes = {name: _values(p) for name, p in (matrices[i] for i in sorted(chosen))}
    return {name: getattr(model.config, name, None) for name in ARCHITECTURE} | {"probes": probes}


def _values(parameter: nn.Parameter) -> list[float]:
    flat = parameter.detach().reshape(-1)
    count = min(PROBE_VALUES, flat.numel())
    where = [i * (flat.numel() - 1) // max(count - 1, 1) for i in range(count)]
    return [round(value, 6) for value in flat[torch.tensor(where, device=flat.device)].float().tolist()]


def _close(ours: list[float], theirs: list[float]) -> bool:
    """Equal up to the rounding of half precision."""
    scale = max((abs(value) for value in theirs), default=0.0)
    return len(ours) == len(theirs) and all(
        abs(a - b) <= 0.01 * scale + 1e-6 for a, b in zip(ours, theirs, strict=True)
    )
