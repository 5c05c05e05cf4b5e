"""The artefact: a few vectors that stand in for demonstrations, and what they were made for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.context.host import Host
from limbeck.context.reading import Reading
from limbeck.core.check import LimbeckError, require
from limbeck.core.save import load_tensors, save_tensors, write_json

KIND = "limbeck-vectors"


@dataclass(frozen=True)
class Vectors:
    """What ``host`` reads before a query: ``tensor`` s+l d, the embeddings of its start tokens, then the vectors.

    ``reading`` is how demonstrations were laid out and queries have to be, and says which are the start tokens (none,
    for many models); ``demonstrations`` were read, of ``tokens`` tokens in all. ``tokenizer`` is not saved with the
    vectors: it stands beside the LLM.
    """

    tensor: Tensor
    host: Host
    reading: Reading
    demonstrations: int
    tokens: int
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        size = f"{self.length} x {self.tensor.shape[1]}{' behind a start' if self.reading.start else ''}"
        return (
            f"Vectors({size} for {self.host.llm}, in place of {self.demonstrations} demonstrations, "
            f"{self.tokens} tokens)"
        )

    @property
    def length(self) -> int:
        """How many vectors there are, the start tokens not counted."""
        return len(self.tensor) - len(self.reading.start)

    def save(self, path: str | Path) -> None:
        """Write a ``.safetensors`` file with everything but the tokenizer."""
        require(Path(path).suffix == ".safetensors", f"{path}: vectors are saved as .safetensors; change the ending")
        about: dict[str, Any] = {"host": asdict(self.host), "reading": asdict(self.reading)}
        about |= {"demonstrations": self.demonstrations, "tokens": self.tokens}
        said = {"kind": KIND, "about": json.dumps(about, ensure_ascii=False)}
        save_tensors(Path(path), {"vectors": self.tensor}, said)

    @classmethod
    def load(cls, path: str | Path) -> Vectors:
        """Vectors from a file that ``save`` wrote."""
        tensors, said = load_tensors(Path(path))
        require(
            said.get("kind") == KIND and "vectors" in tensors,
            f"{path}: expected vectors made by 'limbeck context distill', but the file holds something else",
        )
        try:
            about = json.loads(said["about"])
            host, reading = Host(**about["host"]), Reading(**about["reading"])
            return cls(tensors["vectors"], host, reading, about["demonstrations"], about["tokens"])
        except (KeyError, TypeError, json.JSONDecodeError):
            raise LimbeckError(f"{path}: was written by another version of limbeck; distil it again") from None

    def to_peft(self, folder: str | Path) -> None:
        """Write a PEFT prompt-tuning adapter; ``PeftModel.from_pretrained(llm, folder)`` then reads the vectors first.

        The LLM's start tokens are among PEFT's virtual tokens, before the vectors, for PEFT puts nothing before those:
        so tokenize queries with ``add_special_tokens=False``, or the LLM reads its start a second time. For an
        encoder-decoder the vectors stand before what its encoder reads.
        """
        require(
            not self.host.seq2seq or self.reading.enter == "embeddings",
            "PEFT's prompt tuning puts vectors among the encoder's inputs, but these stand in place of its outputs",
        )
        folder = Path(folder)
        length, width = self.tensor.shape
        save_tensors(folder / "adapter_model.safetensors", {"prompt_embeddings": self.tensor}, {"format": "pt"})
        write_json(
            folder / "adapter_config.json",
            {
                "peft_type": "PROMPT_TUNING",
                "task_type": "SEQ_2_SEQ_LM" if self.host.seq2seq else "CAUSAL_LM",
                "base_model_name_or_path": self.host.llm,
                "inference_mode": True,
                "num_virtual_tokens": length,
                "token_dim": width,
                "num_transformer_submodules": 1,
                "prompt_tuning_init": "RANDOM",
            },
        )

    def score(self, text: str, options: Sequence[str], llm: Any = None) -> dict[str, float]:
        """Mean log-probability per token, in nats, of each option as an answer to ``text``.

        The LLM that the vectors were made for is loaded unless ``llm`` is given.
        """
        from limbeck.context.answer import behind_vectors

        return behind_vectors(self, llm).score(text, options)

    def complete(self, text: str, options: Sequence[str] = (), llm: Any = None, tokens: int = 32) -> str:
        """The best option as an answer to ``text``; without options, what the LLM writes, at most ``tokens`` tokens."""
        from limbeck.context.answer import behind_vectors

        return behind_vectors(self, llm).complete(text, options, tokens)
