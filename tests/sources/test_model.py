"""Any Hugging Face model as a source: logits, hidden states, q/k/v, pooled, positions, and no traces left behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.objectives.relations import relation
from limbeck.objectives.weighted import weighted
from limbeck.sources import readout as readouts
from limbeck.sources.model import model_source

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
OLD = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
}
CAUSAL = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**OLD)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=16)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=2.0)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED, logit_scale=0.3)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**GROUPED, logits_scaling=5.0)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**GROUPED)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48)
    ),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)),
}
MASKED = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SMALL | {"pad_token_id": 1})),
    "distilbert": lambda: hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(vocab_size=61, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
    ),
    "modernbert": lambda: hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2, reference_compile=False)
    ),
}
SEQ2SEQ = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5_untied": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, tie_word_embeddings=False)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
}
LANGUAGE_MODELS = CAUSAL | MASKED | SEQ2SEQ
MADE = {}


def make(name):
    """The model of that name, made once, with weights and biases large enough for every mistake to show."""
    if name not in MADE:
        torch.manual_seed(0)
        model = LANGUAGE_MODELS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if name == "bart":
                model.final_logits_bias.normal_()
        MADE[name] = model
    return MADE[name]


def batch(seed=0, rows=3, length=6):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[1:2, 4:] = False
    ids = torch.randint(3, 61, (rows, length), generator=generator).where(mask, 0)
    encoder_ids = torch.randint(3, 61, (rows, 5), generator=generator)
    return {"ids": ids, "mask": mask, "encoder_ids": encoder_ids, "encoder_mask": torch.ones(rows, 5, dtype=torch.bool)}


def plain(model, data, **extra):
    """The model called by hand."""
    if model.config.is_encoder_decoder:
        extra |= {"decoder_input_ids": data["ids"], "decoder_attention_mask": data["mask"].long()}
        return model(input_ids=data["encoder_ids"], attention_mask=data["encoder_mask"].long(), **extra)
    return model(input_ids=data["ids"], attention_mask=data["mask"].long(), **extra)


def hooks(model):
    """Hooks on the model (transformers keeps some of its own for good once hidden states were asked for)."""
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if hook.__module__.startswith("limbeck")
    ]


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_readout_gives_the_models_own_logits(name):
    model, data = make(name), batch()
    with torch.no_grad():
        said, expected = model_source(model)(data), plain(model, data).logits
    assert said.logits is None, "the output layer must not compute all logits"
    torch.testing.assert_close(said.logits_at(data["mask"]), expected[data["mask"]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(said.logits_at()[data["mask"]], expected[data["mask"]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_gradients_through_the_readout_are_the_models_own(name):
    model, data = make(name), batch()
    results = []
    for logits in (model_source(model)(data).logits_at(data["mask"]), plain(model, data).logits[data["mask"]]):
        model.zero_grad()
        logits.log_softmax(-1)[:, 7].sum().backward()
        results.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for key, gradient in results[1].items():
        torch.testing.assert_close(results[0][key], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()) + 1e-7)


def test_logits_are_never_computed_for_all_positions():
    model, data, sizes = make("llama"), batch(), []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    source = model_source(model)
    source(data)
    source(data)
    handle.remove()
    assert sizes == [len(readouts.PROBE_SIZES), 0, 0]  # one trial, then nothing


class Twisted(hf.GPT2LMHeadModel):
    """A model that does something to its logits which nobody could know."""

    twist = staticmethod(lambda logits: logits)

    def forward(self, *args, **kwargs):
        said = super().forward(*args, **kwargs)
        said.logits = self.twist(said.logits)
        return said


@pytest.mark.parametrize(
    "twist", [lambda z: z * 1.5, lambda z: z + 0.3, lambda z: 30 * torch.tanh(z / 30), lambda z: z.clamp(-40, 40)]
)
def test_falls_back_to_the_models_logits_where_the_readout_would_be_wrong(twist):
    torch.manual_seed(0)
    model, data = Twisted(hf.GPT2Config(**OLD)).eval(), batch()
    model.twist = twist
    said = model_source(model)(data)
    assert said.readout is None
    torch.testing.assert_close(said.logits[data["mask"]], plain(model, data).logits[data["mask"]])


def test_falls_back_for_adapted_output_layers():
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    torch.manual_seed(0)
    model, data = hf.GPT2LMHeadModel(hf.GPT2Config(**OLD, tie_word_embeddings=False)).eval(), batch()
    model.lm_head = Adapted(32, 61)
    said = model_source(model)(data)
    assert said.readout is None
    torch.testing.assert_close(said.logits[data["mask"]], plain(model, data).logits[data["mask"]])


def test_the_trial_draws_no_random_numbers():
    torch.manual_seed(0)
    model, data = hf.GPT2LMHeadModel(hf.GPT2Config(**OLD)).train(), batch()
    source, states = model_source(model), []
    for _ in range(2):  # with the trial, without it
        torch.manual_seed(1)
        states.append((source(data).readout.hidden, torch.get_rng_state()))
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


def test_a_new_output_layer_is_noticed():
    torch.manual_seed(0)
    model, data = hf.GPT2LMHeadModel(hf.GPT2Config(**OLD)).eval(), batch()
    source = model_source(model)
    assert source(data).logits_at().shape[-1] == 61
    model.resize_token_embeddings(64)
    said = source(data)
    got, expected = said.logits_at(data["mask"]), plain(model, data).logits[data["mask"]]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert got.shape[-1] == 64


def test_classifier_gives_logits_per_row():
    torch.manual_seed(0)
    model, data = hf.BertForSequenceClassification(hf.BertConfig(**SMALL, num_labels=3)).eval(), batch()
    said = model_source(model)(data)
    assert said.present() == ["logits"]
    torch.testing.assert_close(said.logits, plain(model, data).logits)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "distilbert", "t5", "bart"])
def test_hidden_states_by_number(name):
    model, data = make(name), batch()
    said = model_source(model, hidden=[0, -1, 1])(data)
    out = plain(model, data, output_hidden_states=True)
    expected = out.decoder_hidden_states if model.config.is_encoder_decoder else out.hidden_states
    assert sorted(said.hidden) == [0, 1, 2]
    for number, states in said.hidden.items():
        torch.testing.assert_close(states[data["mask"]], expected[number][data["mask"]], rtol=1e-5, atol=1e-5)


def test_stack_chooses_the_side_of_an_encoder_decoder():
    model, data = make("t5"), batch()
    out = plain(model, data, output_hidden_states=True)
    said = model_source(model, hidden=[-1], qkv=[1], pooled="mean", stack="encoder")(data)
    torch.testing.assert_close(said.hidden[2], out.encoder_hidden_states[2])
    torch.testing.assert_close(said.pooled, out.encoder_hidden_states[2].mean(1))
    assert said.qkv[1][0].shape == (3, 4, 5, 8)
    assert model_source(model, qkv=[1])(data).qkv[1][0].shape == (3, 4, 6, 8)


@pytest.mark.parametrize("pooled", ["cls", "mean"])
@pytest.mark.parametrize("left", [False, True])
def test_pooled(pooled, left):
    model, data = make("llama"), batch()
    if left:
        data = {key: value.flip(1) if key in ("ids", "mask") else value for key, value in data.items()}
    said = model_source(model, hidden=[-1], pooled=pooled)(data)
    states = said.hidden[2]
    for row in range(3):
        real = states[row][data["mask"][row]]
        torch.testing.assert_close(said.pooled[row], real[0] if pooled == "cls" else real.mean(0))


def rotated(name, model, q, k, positions):
    """q and k turned by the model's own rotary embedding."""
    module = __import__(type(model).__module__, fromlist=["apply_rotary_pos_emb"])
    rotary = next(m for key, m in model.named_modules() if key.endswith("rotary_emb"))
    cos, sin = rotary(q, positions)
    return module.apply_rotary_pos_emb(q, k, cos, sin)


@pytest.mark.parametrize(
    "name",
    ["gpt2", "opt", "llama", "qwen2", "qwen3", "olmo2", "phi3", "gpt_neox", "granite", "bert", "roberta", "distilbert"],
)
def test_q_k_v_are_those_of_the_models_attention(name):
    """Attention recomputed from the recorded vectors is the attention that the model reports."""
    model, data = make(name), batch()
    q, k, v = model_source(model, qkv=[2])(data).qkv[2]
    assert q.shape[:3] == (3, 4, 6)
    assert k.shape == v.shape
    if name in CAUSAL and name not in ("gpt2", "opt"):
        q, k = rotated(name, model, q, k, torch.arange(6)[None].expand(3, -1))
    k = k.repeat_interleave(4 // k.shape[1], 1)
    scores = q @ k.transpose(-1, -2) * getattr(model.config, "attention_multiplier", q.shape[-1] ** -0.5)
    allowed = data["mask"][:, None, None, :].expand(-1, 4, 6, -1)
    allowed = allowed.tril() if name in CAUSAL else allowed
    got = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    expected = plain(model, data, output_attentions=True).attentions[1]
    model.set_attn_implementation(implementation)
    real = data["mask"][:, None, :, None].expand_as(got)
    torch.testing.assert_close(got[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bloom", "t5", "bart", "modernbert", "gemma2"])
def test_values_are_those_that_attention_mixes(name):
    """Values weighted by the model's attention and sent through its output projection are the attention's output."""
    model, data, outputs = make(name), batch(), []
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    root = model.get_decoder() if model.config.is_encoder_decoder else model
    last = [
        m
        for m in root.modules()
        if any(hasattr(m, n) for n in ("o_proj", "out_proj", "o", "Wo", "dense"))
        and any(hasattr(m, n) for n in ("v_proj", "v", "Wqkv", "query_key_value"))
    ]
    attention = last[1] if not model.config.is_encoder_decoder else last[2]  # self-attention of the second block
    project = next(getattr(attention, n) for n in ("o_proj", "out_proj", "o", "Wo", "dense") if hasattr(attention, n))
    handle = project.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    said = model_source(model, qkv=[2])(data)
    out = plain(model, data, output_attentions=True)
    handle.remove()
    model.set_attn_implementation(implementation)
    weights = (out.decoder_attentions if model.config.is_encoder_decoder else out.attentions)[1]
    v = said.qkv[2][2]
    mixed = (weights @ v.repeat_interleave(4 // v.shape[1], 1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed[data["mask"]], outputs[-1][data["mask"]], rtol=1e-4, atol=1e-5)


def test_recording_leaves_attention_and_logits_as_they_are():
    model, data = make("llama"), batch()
    assert model.config._attn_implementation == "sdpa"
    quiet, recording = model_source(model)(data), model_source(model, hidden=[1], qkv=[1, 2], pooled="mean")(data)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(quiet.logits_at(), recording.logits_at())


def test_two_sources_on_one_model_do_not_disturb_each_other():
    model, data = make("gpt2"), batch()
    one, two = model_source(model, qkv=[1]), model_source(model, qkv=[2])
    first = one(data).qkv
    assert list(two(data).qkv) == [2]
    assert list(first) == [1]
    assert torch.equal(one(data).qkv[1][0], first[1][0])
    assert not hooks(model)


def test_hooks_are_gone_after_a_failure():
    model = make("gpt2")
    source = model_source(model, qkv=[1])
    source(batch())
    with pytest.raises(IndexError):
        source({"ids": torch.full((1, 3), 1000), "mask": torch.ones(1, 3).bool()})
    assert not hooks(model)


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_may_stand_on_either_side(name):
    model, data = make(name), batch()
    left = {key: data[key].flip(1).clone() for key in ("ids", "mask")}
    left["ids"][left["mask"]] = data["ids"][data["mask"]]  # the same tokens in the same order, padding before them
    results = [model_source(model)(given).logits_at(given["mask"]) for given in (data, left)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_positions_and_types_are_handed_on():
    data = batch()
    moved = data | {"positions": torch.arange(5, 11)[None].expand(3, -1)}
    gpt2 = model_source(make("gpt2"))
    assert not torch.allclose(gpt2(data).logits_at(), gpt2(moved).logits_at())
    bert = model_source(make("bert"))
    assert not torch.allclose(bert(data).logits_at(), bert(data | {"types": torch.ones_like(data["ids"])}).logits_at())
    t5 = model_source(make("t5"))
    t5(moved | {"types": torch.ones_like(data["ids"])})  # takes neither: not an error


def test_mask_may_be_left_out():
    data = batch(rows=1)
    for name in ("gpt2", "t5"):
        bare = {key: data[key] for key in ("ids", "encoder_ids")}
        assert torch.equal(*(model_source(make(name), pooled="mean")(given).pooled for given in (data, bare)))


def test_dtype_runs_under_autocast():
    model, data = make("llama"), batch()
    exact, half = model_source(model)(data), model_source(model, dtype=torch.bfloat16)(data)
    got, expected = half.logits_at(data["mask"]).detach(), exact.logits_at(data["mask"]).detach()
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        assert model_source(model)(data).logits_at(data["mask"]).isfinite().all()


def test_bfloat16_weights():
    torch.manual_seed(0)
    model, data = hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, head_dim=8)).eval().bfloat16(), batch()
    said = model_source(model)(data)
    assert said.readout is not None
    torch.testing.assert_close(said.logits_at(data["mask"]), plain(model, data).logits[data["mask"]])


def test_models_that_read_no_ids_are_refused():
    class Vision(torch.nn.Module):
        config = hf.ViTConfig()

        def forward(self, pixel_values):
            return pixel_values

    with pytest.raises(LimbeckError, match="Vision takes no input_ids"):
        model_source(Vision())(batch())


def test_refusals():
    model, data = make("gpt2"), batch()
    with pytest.raises(LimbeckError, match="qkv of layer 3: the model has layers 1 to 2"):
        model_source(model, qkv=[3])(data)
    with pytest.raises(LimbeckError, match="qkv of layer 0"):
        model_source(model, qkv=[0])(data)
    with pytest.raises(LimbeckError, match="hidden of layer -4"):
        model_source(model, hidden=[-4])(data)
    with pytest.raises(LimbeckError, match="pooled: expected one of cls, mean"):
        model_source(model, pooled="max")
    with pytest.raises(LimbeckError, match="did you mean 'encoder'"):
        model_source(model, stack="encodr")
    with pytest.raises(LimbeckError, match="reads 'encoder_ids'"):
        model_source(make("t5"))({"ids": data["ids"], "mask": data["mask"]})
    with pytest.raises(LimbeckError, match="reads 'ids'"):
        model_source(model)({"mask": data["mask"]})


def test_attention_that_cannot_be_recorded_is_refused():
    mamba = hf.MambaForCausalLM(hf.MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(LimbeckError, match="cannot tell the layers of MambaForCausalLM"):
        model_source(mamba, qkv=[-1])(batch())
    settings = {"num_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    gated = hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**GROUPED, **settings))
    with pytest.raises(LimbeckError, match="holds more than queries"):
        model_source(gated, qkv=[-1])(batch())


def test_prints_what_was_asked():
    assert repr(model_source(make("gpt2"), qkv=[-1])) == "model_source(GPT2LMHeadModel, qkv=(-1,))"
    assert repr(model_source(make("bert"))) == "model_source(BertForMaskedLM)"


def golden_bert(data, side):
    layers, heads = int(data[f"hp_{side}_layers"]), int(data[f"hp_{side}_heads"])
    weights = {
        key.removeprefix(f"w_{side}."): torch.tensor(x) for key, x in data.items() if key.startswith(f"w_{side}.")
    }
    width, inner = (
        weights["encoder.layer.0.attention.self.query.weight"].shape[0],
        weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
    )
    config = hf.BertConfig(
        vocab_size=len(weights["embeddings.word_embeddings.weight"]),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=len(weights["embeddings.position_embeddings.weight"]),
        type_vocab_size=len(weights["embeddings.token_type_embeddings.weight"]),
    )
    model = hf.BertModel(config, add_pooling_layer=False).eval()
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all("position_ids" in key or "token_type_ids" in key for key in missing.missing_keys)
    return model


def test_golden_minilm_on_whole_models():
    path = Path(__file__).parents[1] / "golden" / "minilm" / "bert_model.npz"
    data = dict(np.load(path))
    student, teacher = golden_bert(data, "student"), golden_bert(data, "teacher")
    given = {
        "ids": torch.tensor(data["in_input_ids"]),
        "mask": torch.tensor(data["in_attention_mask"]).bool(),
        "types": torch.tensor(data["in_token_type_ids"]),
    }
    said: list[Signals] = [
        model_source(student, qkv=[int(data["hp_student_layer"])])(given),
        model_source(teacher, qkv=[int(data["hp_teacher_layer"])])(given),
    ]
    for side, signals in zip(("student", "teacher"), said, strict=True):
        for name, got in zip("qkv", next(iter(signals.qkv.values())), strict=True):
            expected = data[f"out_{side}_{name}"]
            joined = got.detach().transpose(1, 2).flatten(2).numpy()
            np.testing.assert_allclose(joined, expected, rtol=1e-6, atol=5e-6)
    heads = int(data["hp_relation_heads"])
    qkv = weighted(**{x: (1.0, relation(x, x, heads=heads)) for x in "qkv"})
    half = weighted(qk=(0.5, relation("q", "k", heads=heads)), vv=(1.0, relation("v", "v", heads=heads)))
    for goal, name in ((half, "out_loss_half_qk_plus_vv"), (qkv, "out_loss_qq_kk_vv")):
        total = goal(*said, given, Clock(0, 1)).total({"row": 3})
        assert total.item() == pytest.approx(float(data[name]), rel=1e-6, abs=1e-6)
    total.backward()
    named = dict(student.named_parameters())
    for key in [key for key in data if key.startswith("out_grad_")]:
        np.testing.assert_allclose(named[key.removeprefix("out_grad_")].grad.numpy(), data[key], rtol=1e-5, atol=1e-6)
