"""Plain distillation: its objective, its recipe, and the command on models and data of the user's own."""

import json
import math

import numpy as np
import pytest
import torch
from chats_of import FAMILIES, make_files, sizes
from cutters import cutter
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, LlamaForCausalLM

from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock, count
from limbeck.methods.language_models import distill as module
from limbeck.methods.language_models.distill import Config, distill, main, objective


def logits(seed):
    return torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BATCH = next_token_batch(torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4, dtype=torch.bool))


def value(cfg):
    terms = objective(cfg)(Signals(logits=logits(0)), Signals(logits=logits(1)), BATCH, Clock(0, 1))
    return terms.total({"answer": count(BATCH, "answer")}).item()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_hintons(temperature):
    q, p = ((logits(seed)[0, :3] / temperature).softmax(-1) for seed in (0, 1))
    near = (p * (p / q).log()).sum(-1).mean() * temperature**2
    told = -logits(0)[0, :3].log_softmax(-1)[range(3), [2, 3, 4]].mean()
    assert value(Config(temperature=temperature, hard=0.25)) == pytest.approx(
        float(0.75 * near + 0.25 * told), abs=1e-6
    )
    assert value(Config(temperature=temperature, hard=0.0)) == pytest.approx(float(near), abs=1e-6)
    assert value(Config(objective="sft", hard=0.25)) == pytest.approx(float(told), abs=1e-6)


@pytest.mark.parametrize("name", module.DIVERGENCES)
def test_every_objective_is_zero_for_a_student_that_agrees(name):
    terms = objective(Config(objective=name, hard=0.0))(
        Signals(logits=logits(1)), Signals(logits=logits(1)), BATCH, Clock(0, 1)
    )
    assert terms["soft"].sum.item() == pytest.approx(0, abs=1e-6)
    assert value(Config(objective=name, hard=0.0)) > 0.01


def llama(seed, **size):
    torch.manual_seed(seed)
    return FAMILIES["llama"](**{"vocabulary": 17} | size)


def stream():
    ids = torch.randint(17, (6, 4, 8), generator=torch.Generator().manual_seed(0))
    return [next_token_batch(row, torch.ones_like(row, dtype=torch.bool)) for row in ids]


def test_sft_does_not_ask_the_teacher():
    asked = []
    teacher = llama(1)
    teacher.register_forward_hook(lambda *_: asked.append(1))
    distill(llama(0), teacher, stream(), Config(objective="sft", steps=2))
    assert not asked
    distill(llama(0), teacher, stream(), Config(steps=2))
    assert asked


def test_checkpointing_changes_nothing_but_memory():
    ends = []
    for on in (False, True):
        student = llama(0, layers=2)
        if on:
            module._recompute(student)
            assert student.model.gradient_checkpointing
        distill(student, llama(1), stream(), Config(steps=3, lr=1e-2))
        ends.append(student.state_dict())
    for name, expected in ends[0].items():
        torch.testing.assert_close(ends[1][name], expected, atol=1e-6, rtol=1e-5)


def test_a_teacher_that_has_its_place_is_not_moved():
    teacher = llama(1)
    teacher.is_quantized = True
    teacher.to = None  # whoever calls it fails
    distill(llama(0), teacher, stream(), Config(steps=1))
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("distill"))


def run(files, out, family="llama", **settings):
    given = {"teacher": str(files / family), "data": str(files / "chats.jsonl"), "steps": 3, "batch": 4, "length": 96}
    folder = main(Config(out, **given | settings))
    return folder, json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("family", "data"),
    [
        ("llama", "chats.jsonl"),
        ("gpt2", "sharegpt.json"),
        ("gpt2", "pairs.jsonl"),
        ("llama", "text.txt"),
        ("t5", "pairs.jsonl"),
    ],
)
def test_the_command_on_models_and_data_of_the_user(files, tmp_path, family, data):
    folder, metrics = run(files, tmp_path / "run", family, data=str(files / data), length=24 if "text" in data else 96)
    measured = metrics["held_out"]
    assert set(measured) == {"teacher", "before", "distilled"}
    assert set(measured["distilled"]) == {"nll", "kl", "top1"}
    assert (
        measured["distilled"]["kl"]["low"] <= measured["distilled"]["kl"]["mean"] <= measured["distilled"]["kl"]["high"]
    )
    assert metrics["cost"]["teacher"]["parameters"] > metrics["cost"]["distilled"]["parameters"]
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    assert auto.from_pretrained(folder).config.num_hidden_layers == 1
    report = (folder / "report.html").read_text()
    assert "held-out rows" in report
    assert "Size and speed" in report


def test_a_student_of_the_users_own_learns_and_keeps_the_layout(files, tmp_path):
    folder, metrics = run(files, tmp_path / "run", student=str(files / "small"), steps=40, lr=5e-3)
    assert metrics["held_out"]["distilled"]["kl"]["high"] < metrics["held_out"]["before"]["kl"]["low"]
    asked = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "w1"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "User:\nw1\n\nAssistant:\n"


def test_the_same_command_again_finds_the_run_done(files, tmp_path):
    _, first = run(files, tmp_path / "run", compare="sft")
    _, again = run(files, tmp_path / "run", compare="sft")
    assert again["held_out"] == first["held_out"]
    assert again["sft"]["loss"] == first["sft"]["loss"]


def test_compare_trains_the_same_student_without_a_teacher(files, tmp_path):
    folder, metrics = run(files, tmp_path / "run", compare="sft", steps=8, lr=5e-3)
    _, alone = run(files, tmp_path / "alone", objective="sft", steps=8, lr=5e-3)
    measured = metrics["held_out"]
    assert measured["sft"] == alone["held_out"]["distilled"], "equal start, steps and batches"
    assert metrics["sft"]["rows"] == metrics["rows"]
    gap = measured["distilled_minus_sft"]["kl"]
    assert gap["mean"] == pytest.approx(measured["distilled"]["kl"]["mean"] - measured["sft"]["kl"]["mean"])
    assert gap["high"] < 0, "the distilled one is nearer to its teacher"
    report = (folder / "report.html").read_text()
    assert "distilled minus sft" in report
    assert "±" in report


def test_packing_says_what_it_saved_and_trains_on_the_same_tokens(files, tmp_path):
    _, metrics = run(files, tmp_path / "packed", pack=True, length=300)
    assert 2 * metrics["padding"]["packed"] < metrics["padding"]["padded"]
    _, padded = run(files, tmp_path / "padded", length=300)
    assert metrics["held_out"]["before"] == padded["held_out"]["before"], "the held-out rows are the same, and padded"


def test_adapters_are_saved_beside_the_merged_student(files, tmp_path):
    peft = pytest.importorskip("peft")
    folder, metrics = run(files, tmp_path / "run", student=str(files / "small"), lora=2, steps=8, lr=1e-2)
    assert metrics["held_out"]["distilled"]["kl"]["mean"] < metrics["held_out"]["before"]["kl"]["mean"]
    merged = LlamaForCausalLM.from_pretrained(folder).eval()
    base = LlamaForCausalLM.from_pretrained(files / "small")
    adapted = peft.PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    ids = torch.arange(6)[None]
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)
    (weights,) = (folder / "stages").rglob("weights.safetensors")
    assert weights.stat().st_size < 0.5 * (folder / "model.safetensors").stat().st_size


def test_a_template_from_a_file_takes_the_place_of_the_tokenizers(files, tmp_path):
    template = "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    (tmp_path / "chat.jinja").write_text(template)
    folder, _ = run(files, tmp_path / "run", chat_template=tmp_path / "chat.jinja")
    assert AutoTokenizer.from_pretrained(folder).chat_template == template


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "forward-kl"}, "--objective: expected one of forward_kl, .* did you mean 'forward_kl'"),
        ({"hard": 1.5}, "--hard 1.5: expected a share"),
        ({"temperature": 0.0}, "--temperature 0.0: expected a number above 0"),
        ({"lora": -1}, "--lora -1: expected a rank"),
        ({"objective": "sft", "compare": "sft"}, "--compare sft: the run itself is --objective sft"),
        ({"teacher_map": "everywhere"}, "--teacher-map: expected one of auto"),
        ({"teacher": "nowhere"}, "cannot load 'nowhere' as a language model"),
        ({"data": "text", "pack": True, "length": 24}, "running text fills its rows"),
        ({"student": "t5"}, "one of teacher and student is an encoder-decoder"),
        ({"chat_template": "nothing.jinja"}, "nothing.jinja: no such file"),
        ({"data": None, "teacher": "t5"}, "an encoder-decoder learns from rows with prompt and completion"),
    ],
)  # fmt: skip
def test_mistakes_leave_nothing_behind(files, tmp_path, changes, message):
    named = {"text": str(files / "text.txt"), "t5": str(files / "t5")}
    with pytest.raises(LimbeckError, match=message):
        run(
            files,
            tmp_path / "run",
            **{key: named.get(item, item) if isinstance(item, str) else item for key, item in changes.items()},
        )
    assert not (tmp_path / "run").exists()


def test_packed_and_padded_runs_take_the_same_step(files):
    """One optimizer step on all conversations at once: the same student, whether they share rows or not."""
    from limbeck.data.packing import repacked
    from limbeck.data.pairs import causal_batches

    tokenizer = AutoTokenizer.from_pretrained(files / "llama")
    ends = []
    for pack in (False, True):
        rows = causal_batches(files / "chats.jsonl", tokenizer, 96, 8)
        rows.batch = rows.size
        whole = repacked(rows, 96) if pack else rows
        batch = whole.collate([whole.rows[i] for i in range(whole.size)])
        student, teacher = llama(0, vocabulary=len(tokenizer)), llama(1, vocabulary=len(tokenizer))
        said = distill(student, teacher, [batch], Config(steps=1, lr=1e-2, warmup=0))
        ends.append((said["loss"], {name: value.numpy() for name, value in student.state_dict().items()}))
    assert ends[1][0] == pytest.approx(ends[0][0], abs=1e-5)
    assert math.isfinite(ends[0][0])
    for name, expected in ends[0][1].items():
        np.testing.assert_allclose(ends[1][1][name], expected, atol=1e-4)
    assert sizes


def other_tokenizer(folder, seed=3):
    """A student that reads by another tokenizer, in ``folder``."""
    torch.manual_seed(seed)
    words = cutter("byte level")
    FAMILIES["gpt2"](len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("data", ["chats.jsonl", "pairs.jsonl", "text.txt"])
def test_a_student_with_another_tokenizer(files, data, tmp_path, capsys):
    student = other_tokenizer(tmp_path / "student")
    cfg = {"steps": 3, "batch": 4, "length": 96, "compare": "sft", "hard": 0.2, "device": "cpu"}
    out = main(Config(tmp_path / "run", teacher=str(files / "llama"), student=student, data=str(files / data), **cfg))
    assert AutoTokenizer.from_pretrained(out).get_vocab() == cutter("byte level").get_vocab()
    found = json.loads((out / "metrics.json").read_text())["held_out"]
    assert set(found) >= {"teacher", "before", "distilled", "sft"}
    assert all(math.isfinite(found[name]["nll"]["mean"]) for name in ("teacher", "before", "distilled", "sft"))
    assert found["before"]["kl"]["mean"] > 0
    said = " ".join(capsys.readouterr().out.split())
    assert "different tokenizers" in said
    assert "both have read the same at" in said


def test_padded_output_layers_of_one_family(files, tmp_path):
    student = AutoModelForCausalLM.from_pretrained(files / "small")
    student.resize_token_embeddings(student.config.vocab_size + 5)
    student.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(files / "small").save_pretrained(tmp_path / "student")
    cfg = {"steps": 2, "batch": 4, "length": 64, "device": "cpu"}
    names = {"teacher": str(files / "llama"), "student": str(tmp_path / "student"), "data": str(files / "text.txt")}
    out = main(Config(tmp_path / "run", **names, **cfg))
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == student.config.vocab_size


def test_packing_needs_one_tokenizer(files, tmp_path):
    names = {"teacher": str(files / "llama"), "student": other_tokenizer(tmp_path), "data": str(files / "chats.jsonl")}
    with pytest.raises(LimbeckError, match="--pack: needs one tokenizer for teacher and student"):
        main(Config(tmp_path / "run", **names, pack=True, length=96))
    assert not (tmp_path / "run").exists()
