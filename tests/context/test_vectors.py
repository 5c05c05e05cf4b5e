"""The vectors' file, and the PEFT adapter that gives the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llms
import torch

from limbeck.context.host import Host
from limbeck.context.reading import Reading
from limbeck.context.vectors import Vectors
from limbeck.core.check import LimbeckError
from limbeck.core.save import save_tensors
from limbeck.data.stream import lengths_mask, pad
from limbeck.sources.views import compressed_context

QUERIES = [[20, 21], [22, 23, 24, 25, 26], [27, 28, 29]]


def make(kind: str = "gpt2", **reading: object) -> Vectors:
    host = Host.of(tiny_llms.build(kind), "somewhere")
    tensor = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    return Vectors(tensor, host, Reading(length=5, limit=20, budget=40, context=60, **reading), 7, 33)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    vectors = make(layout="metaicl")
    vectors.save(tmp_path / "v.safetensors")
    again = Vectors.load(tmp_path / "v.safetensors")
    assert torch.equal(again.tensor, vectors.tensor)
    assert (again.host, again.reading, again.demonstrations, again.tokens) == (vectors.host, vectors.reading, 7, 33)


def test_broken_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(LimbeckError, match=r"v\.safetensors is not a whole safetensors file"):
        Vectors.load(path)
    save_tensors(path, {"vectors": torch.ones(2, 2)})
    with pytest.raises(LimbeckError, match="the file holds something else"):
        Vectors.load(path)
    save_tensors(path, {"vectors": torch.ones(2, 2)}, {"kind": "limbeck-vectors", "about": "{}"})
    with pytest.raises(LimbeckError, match="another version of limbeck"):
        Vectors.load(path)
    with pytest.raises(LimbeckError, match="there is no such file"):
        Vectors.load(tmp_path / "none.safetensors")
    with pytest.raises(LimbeckError, match=r"saved as \.safetensors"):
        make().save(tmp_path / "v.bin")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_peft_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lm, vectors = tiny_llms.build(kind), make(kind)
    ids, mask = pad(QUERIES), lengths_mask(QUERIES)
    with torch.no_grad():
        ours = compressed_context(lm, lambda _: vectors.tensor[None])({"ids": ids, "mask": mask}).logits_at(mask)
        vectors.to_peft(tmp_path)
        adapted = peft.PeftModel.from_pretrained(lm, str(tmp_path)).eval()
        theirs = adapted(input_ids=ids, attention_mask=mask.long()).logits[:, 5:][mask]
    assert peft.PeftConfig.from_pretrained(str(tmp_path)).peft_type == "PROMPT_TUNING"
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [0, 3])
def test_peft_gives_the_same_logits_for_an_encoder_decoder(size: int, tmp_path: Path) -> None:
    """With the query in the decoder alone (``size`` 0), and with ``size`` tokens of it in the encoder."""
    peft = pytest.importorskip("peft")
    lm, vectors = tiny_llms.build("t5"), make("t5")
    ids, mask, inputs = pad(QUERIES), lengths_mask(QUERIES), torch.tensor([[30, 31, 32]] * 3)[:, :size]
    batch = {"ids": ids, "mask": mask, "encoder_ids": inputs, "encoder_mask": torch.ones_like(inputs)}
    with torch.no_grad():
        ours = compressed_context(lm, lambda _: vectors.tensor[None])(batch).logits_at(mask)
        vectors.to_peft(tmp_path)
        adapted = peft.PeftModel.from_pretrained(lm, str(tmp_path)).eval()
        args = {"attention_mask": batch["encoder_mask"], "decoder_attention_mask": mask.long()}
        theirs = adapted(input_ids=inputs, decoder_input_ids=ids, **args).logits[mask]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_encoder_states_are_no_prompt(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="in place of its outputs"):
        make("t5", enter="states").to_peft(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_another_llm_is_refused() -> None:
    vectors = make("gpt2")
    lm = tiny_llms.build("gpt2")
    vectors.host.check(lm, "these vectors")
    vectors.host.check(lm.to(torch.bfloat16), "these vectors")  # a copy in another precision is the same model
    with pytest.raises(LimbeckError, match=r"these vectors: made for somewhere, but .* other weights"):
        vectors.host.check(tiny_llms.build("gpt2", seed=3), "these vectors")
    with pytest.raises(LimbeckError, match="hidden_size 16, but this one has 32"):
        vectors.score("good film", ["good", "bad"], llm=tiny_llms.build("gpt2", width=32))
