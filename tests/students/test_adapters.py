"""Adapters: nothing changes at first, they alone learn and are saved, merged they say the same."""

from __future__ import annotations

import builtins

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.fit import fit
from limbeck.core.save import load_tensors
from limbeck.core.stage import Optim, Stage, distill_step
from limbeck.objectives.tokens import soft
from limbeck.sources.model import model_source
from limbeck.students.adapters import learning, merged, with_lora

peft = pytest.importorskip("peft")

MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=17, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=True,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=17, n_embd=16, n_layer=2, n_head=2, n_positions=16)),
}  # fmt: skip
IDS = torch.arange(32).view(4, 8) % 17
BATCH = next_token_batch(IDS, torch.ones_like(IDS, dtype=torch.bool))


@pytest.mark.parametrize("name", MODELS)
def test_adapters_learn_are_saved_and_merge(name, tmp_path):
    torch.manual_seed(0)
    base, teacher = MODELS[name]().eval(), MODELS[name]().eval()
    start = {key: value.clone() for key, value in base.state_dict().items()}
    before = base(IDS).logits
    student = with_lora(base, rank=2)
    torch.testing.assert_close(student(IDS).logits, before, msg="an adapter is nothing to begin with")
    step = distill_step(model_source(student), model_source(teacher), soft())
    stage = Stage("lora", step, {"student": learning(student)}, [BATCH], 3, Optim(1e-2), frozen={"teacher": teacher})
    fit(stage, tmp_path)
    saved, _ = load_tensors(next((tmp_path / "lora").glob("step-*")) / "weights.safetensors")
    assert all("lora" in key for key in saved), "the checkpoint holds adapters alone"
    after = student.eval()(IDS).logits
    assert (after - before).abs().max() > 1e-3
    student.save_pretrained(tmp_path / "adapter")
    whole = merged(student)
    torch.testing.assert_close(whole(IDS).logits, after, atol=1e-5, rtol=1e-4)
    again = MODELS[name]()
    again.load_state_dict(start)
    adapted = peft.PeftModel.from_pretrained(again, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(adapted(IDS).logits, after, atol=1e-5, rtol=1e-4)


def test_the_base_keeps_its_weights_and_the_head_is_not_adapted():
    student = with_lora(MODELS["llama"](), rank=2)
    trained = [name for name, p in student.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    assert sum(p.numel() for p in learning(student).parameters()) == sum(
        p.numel() for p in student.parameters() if p.requires_grad
    )


def test_an_encoder_decoder_too():
    sizes = {"vocab_size": 17, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    student = with_lora(T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)), rank=1)
    assert student.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert len(list(learning(student).parameters())) > 0


def test_a_model_without_adapters_is_left_alone():
    model = MODELS["gpt2"]()
    assert learning(model) is model
    assert merged(model) is model


def test_refusals(monkeypatch):
    with pytest.raises(LimbeckError, match="--lora 0: expected a rank"):
        with_lora(MODELS["gpt2"](), 0)
    student = with_lora(MODELS["gpt2"](), 1)
    student.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(LimbeckError, match="is no part of an adapter"):
        learning(student)
    ordinary = builtins.__import__

    def without(name, *rest, **more):
        if name == "peft":
            raise ImportError
        return ordinary(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LimbeckError, match=r"pip install 'limbeck\[peft\]'"):
        with_lora(MODELS["gpt2"](), 1)
