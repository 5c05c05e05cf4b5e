"""MiniLM against a public re-implementation (golden arrays), through real encoders, and its rules."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.stage import distill_step
from limbeck.core.terms import Clock
from limbeck.methods.encoders.minilm import (
    Config,
    main,
    minilm,
    reads_backwards_only,
    relations,
    sources,
    wants_assistant,
)
from limbeck.objectives.relations import relation
from limbeck.objectives.weighted import weighted
from limbeck.sources.model import model_source
from limbeck.students.layers import shape

GOLDEN = Path(__file__).parents[2] / "golden" / "minilm"
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
START = Clock(0, 1)


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def split(array: np.ndarray, heads: int) -> torch.Tensor:
    """b t d -> b h t d."""
    return torch.from_numpy(array.copy()).unflatten(-1, (heads, -1)).transpose(1, 2)


def side(case: dict, who: str, heads: int) -> list[torch.Tensor]:
    return [split(case[f"in_{who}_{x}"], heads) for x in "qkv"]


def totals(goal, student, teacher, mask):
    batch = {"mask": torch.from_numpy(mask).bool()}
    return goal(Signals(qkv={2: student}), Signals(qkv={3: teacher}), batch, START)


@pytest.mark.parametrize(("version", "expected"), [(1, "v1"), (2, "v2")])
def test_golden_totals_and_gradients(version, expected):
    case = golden("relations")
    heads = int(case["hp_heads"])
    student = [x.clone().requires_grad_() for x in side(case, "student", heads)]
    goal = relations(version, int(case["hp_relation_heads"]))
    terms = totals(goal, student, side(case, "teacher", heads), case["in_mask"])
    loss = terms.total({"row": len(case["in_mask"])})
    np.testing.assert_allclose(loss.item(), case[f"out_{expected}_total"], **CLOSE)
    loss.backward()
    for x, name in zip(student, "qkv", strict=True):
        gradient = torch.zeros_like(x) if x.grad is None else x.grad
        expected_gradient = split(case[f"out_grad_{expected}_student_{name}"], heads)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)


def test_golden_terms():
    case = golden("relations")
    heads = int(case["hp_heads"])
    student, teacher = side(case, "student", heads), side(case, "teacher", heads)
    rows = len(case["in_mask"])
    one = totals(relations(1, 0), student, teacher, case["in_mask"])
    two = totals(relations(2, int(case["hp_relation_heads"])), student, teacher, case["in_mask"])
    expected = [(one, {"attention": "att", "values": "vr"}), (two, {"queries": "qq", "keys": "kk", "values": "vv"})]
    for terms, names in expected:
        for name, out in names.items():
            np.testing.assert_allclose(terms[name].sum.item() / rows, case[f"out_{out}"], **CLOSE)


def test_golden_left_padding_compares_the_real_tokens():
    case = golden("relations")
    heads = int(case["hp_heads"])
    terms = totals(relations(1, 0), side(case, "student", heads), side(case, "teacher", heads), case["in_mask_left"])
    found = terms["attention"].sum.item() / len(case["in_mask"])
    np.testing.assert_allclose(found, case["fix_att_leftpad"], **CLOSE)
    assert abs(found - case["bad_att_leftpad"]) > 1e-4


def bert(case: dict, who: str) -> BertModel:
    weights = {k.removeprefix(f"w_{who}."): torch.from_numpy(v) for k, v in case.items() if k.startswith(f"w_{who}.")}
    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=int(case[f"hp_{who}_layers"]),
        num_attention_heads=int(case[f"hp_{who}_heads"]),
        intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=weights["embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=weights["embeddings.token_type_embeddings.weight"].shape[0],
        layer_norm_eps=float(case["hp_ln_eps"]),
    )
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(weights)
    return model.eval()


def test_golden_through_two_berts():
    case = golden("bert_model")
    student, teacher, heads = bert(case, "student"), bert(case, "teacher"), int(case["hp_relation_heads"])
    batch = {
        "ids": torch.from_numpy(case["in_input_ids"]),
        "mask": torch.from_numpy(case["in_attention_mask"]).bool(),
        "types": torch.from_numpy(case["in_token_type_ids"]),
    }
    cfg = Config(version=2, relation_heads=heads, teacher_layer=int(case["hp_teacher_layer"]))
    compare = distill_step(*sources(student, teacher, cfg))
    loss = compare(batch, START).total({"row": len(batch["ids"])})
    np.testing.assert_allclose(loss.item(), case["out_loss_qq_kk_vv"], rtol=1e-6, atol=5e-6)
    loss.backward()
    parameters = dict(student.named_parameters())
    wanted = [key for key in case if key.startswith("out_grad_")]
    assert len(wanted) == 2
    for key in wanted:
        gradient = parameters[key.removeprefix("out_grad_")].grad.numpy()
        np.testing.assert_allclose(gradient, case[key], rtol=1e-6, atol=5e-6)
    pair = weighted(qk=(0.5, relation("q", "k", heads=heads)), vv=(1.0, relation("v", "v", heads=heads)))
    mixed = distill_step(model_source(student, qkv=[-1]), model_source(teacher, qkv=[3]), pair)(batch, START)
    np.testing.assert_allclose(
        mixed.total({"row": len(batch["ids"])}).item(), case["out_loss_half_qk_plus_vv"], rtol=1e-6, atol=5e-6
    )


SIZES = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
MAKERS = {
    "bert": lambda size: BertModel(BertConfig(**size, max_position_embeddings=32), add_pooling_layer=False),
    "llama": lambda size: LlamaModel(LlamaConfig(**size, num_key_value_heads=1)),
    "gpt2": lambda size: GPT2Model(
        GPT2Config(
            vocab_size=31,
            n_embd=size["hidden_size"],
            n_layer=size["num_hidden_layers"],
            n_head=size["num_attention_heads"],
            n_positions=32,
        )
    ),
}


def make(name: str = "bert", seed: int = 0, **changes: int):
    """A tiny model whose relations are far from uniform (the usual initialisation hides every mistake)."""
    torch.manual_seed(seed)
    model = MAKERS[name](SIZES | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return model.eval()


def stream(batches: int = 6) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(31, (batches, 4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(batches, 4, 7, dtype=torch.bool)
    mask[:, 0, 5:] = False
    return [{"ids": row, "mask": real} for row, real in zip(ids, mask, strict=True)]


def loss_of(student, teacher, cfg, batch) -> float:
    return distill_step(*sources(student, teacher, cfg))(batch, START).total({"row": 4}).item()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("version", [1, 2])
def test_a_student_learns_and_the_teacher_stays(name, version):
    teacher, student = make(name), make(name, 1, hidden_size=8, num_hidden_layers=3)
    before = [p.clone() for p in teacher.parameters()]
    cfg = Config(version=version, relation_heads=4, steps=30, lr=1e-2, assistant="never")
    first = loss_of(student, teacher, cfg, stream()[0])
    said = minilm(student, teacher, stream(), cfg)
    assert loss_of(student, teacher, cfg, stream()[0]) < 0.8 * first
    assert set(said) == {"student"}
    assert math.isfinite(said["student"]["loss"])
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_equal_models_have_no_loss():
    model = make()
    for version in (1, 2):
        assert loss_of(model, model, Config(version=version, relation_heads=4), stream()[0]) == pytest.approx(
            0, abs=1e-6
        )


def test_a_middle_layer_teaches_as_the_last_of_a_cut_teacher_does():
    """The layers above the compared one are not run, and that changes nothing."""
    teacher, cfg = make(), Config(version=2, relation_heads=4, teacher_layer=2, steps=3, assistant="never")
    students = [make(seed=1, hidden_size=8, num_hidden_layers=2) for _ in range(2)]
    minilm(students[0], teacher, stream(), cfg)
    with torch.no_grad():
        for parameter in [p for layer in teacher.encoder.layer[2:] for p in layer.parameters()]:
            parameter.fill_(7.0)
    minilm(students[1], teacher, stream(), cfg)
    assert all(torch.equal(a, b) for a, b in zip(students[0].parameters(), students[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("rule", "layers", "width", "expected"),
    [
        ("auto", 2, 8, True),
        ("auto", 3, 8, False),
        ("auto", 2, 12, False),
        ("never", 1, 4, False),
        ("always", 4, 12, True),
    ],
)
def test_the_assistant_rule(rule, layers, width, expected):
    assert wants_assistant(rule, make(hidden_size=width, num_hidden_layers=layers), make()) is expected


def test_the_assistant_has_the_teachers_depth_and_the_students_width(tmp_path):
    student = make(seed=1, hidden_size=8, num_hidden_layers=2)
    cfg = Config(steps=2, teacher_layer=3)
    said = minilm(student, make(), stream(), cfg, tmp_path)
    assert list(said) == ["assistant", "student"]
    from safetensors.torch import load_file

    (path,) = (tmp_path / "assistant").rglob("weights.safetensors")
    weights = load_file(path)
    layers = {key.split("encoder.layer.")[1].split(".")[0] for key in weights if "encoder.layer." in key}
    assert layers == {"0", "1", "2", "3"}
    (words,) = (value for key, value in weights.items() if key.endswith("word_embeddings.weight"))
    assert words.shape == (31, 8)


@pytest.mark.parametrize(("name", "expected"), [("bert", False), ("llama", True), ("gpt2", True)])
def test_reading_direction_is_found_out(name, expected):
    model = make(name).train()
    assert reads_backwards_only(model) is expected
    assert model.training


def test_attention_of_decoders_is_compared_under_the_causal_mask():
    """A student that differs only where a decoder may not look has no attention loss."""
    _, _, goal = sources(make("llama", 1, hidden_size=8), make("llama"), Config())
    q, k, v = (torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    other = k.clone()
    other[:, :, 2] += 5.0  # the last key is seen by the last query only
    batch = {"mask": torch.ones(1, 3, dtype=torch.bool)}
    shown = goal(Signals(qkv={1: (q, other, v)}), Signals(qkv={1: (q, k, v)}), batch, START)
    last = relation("q", "k")(Signals(qkv={1: (q, other, v)}), Signals(qkv={1: (q, k, v)}), batch, START)
    assert 0 < shown["attention"].sum.item() < last["relation"].sum.item()


@pytest.mark.parametrize(
    ("student", "teacher", "cfg", "message"),
    [
        ({"num_attention_heads": 4}, {}, Config(), "student has 4 and the teacher 2; use --version 2"),
        ({}, {}, Config(teacher_layer=5), "--teacher-layer 5: the teacher has layers 1 to 4"),
        ({"hidden_size": 12}, {}, Config(version=2, relation_heads=8), "--relation-heads 8: has to divide .* 12 and"),
        ({}, {}, Config(version=2), "--relation-heads 48: has to divide"),
        ({}, {}, Config(version=2, relation_heads=0), "--relation-heads 0: expected"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(student, teacher, cfg, message):
    with pytest.raises(LimbeckError, match=message):
        minilm(make(**student), make(**teacher), stream(), cfg)


def test_encoder_decoders_are_refused():
    t5 = T5Model(T5Config(vocab_size=31, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    with pytest.raises(LimbeckError, match="not encoder-decoders"):
        minilm(make(), t5, stream(), Config())


@pytest.fixture
def files(tmp_path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(26))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")
    for name in ("bert", "llama"):
        make(name).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rng = np.random.default_rng(0)
    rows = [" ".join(f"w{i}" for i in rng.integers(26, size=int(n))) for n in rng.integers(2, 9, size=40)]
    (tmp_path / "text.txt").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize(("name", "dtype"), [("bert", "float32"), ("llama", "bfloat16")])
def test_the_command_on_a_model_and_text_of_the_user(files, name, dtype):
    settings = {"teacher": str(files / name), "teacher_dtype": dtype, "data": str(files / "text.txt")}
    cfg = Config(files / "run", **settings, steps=2, batch=4, length=10)
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"assistant", "student", "held_out", "before"} <= set(metrics)
    assert set(metrics["held_out"]) == {"attention", "values"}
    student = AutoModel.from_pretrained(out)
    assert (shape(student), student.dtype) == ((2, 8, 2), torch.float32)
    assert "Relations of student and teacher" in (out / "report.html").read_text()


def test_mistakes_of_the_user_leave_nothing_behind(files):
    cfg = Config(
        files / "run", teacher=str(files / "bert"), data=str(files / "text.txt"), version=2, length=10, batch=4
    )
    with pytest.raises(LimbeckError, match="--relation-heads 48: has to divide"):
        main(cfg)
    with pytest.raises(LimbeckError, match=r"--warmup -0\.5: expected a number of steps or a share"):
        main(replace(cfg, version=1, warmup=-0.5))
    assert not (files / "run").exists()
