"""Several masked LMs teaching one: the loss against its golden arrays, the recipe, loyalty, refusals."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from limbeck.analyses.loyalty import label_loyalty, mean_prediction, probability_loyalty
from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.stream import mlm_batches
from limbeck.methods.multilingual.romanian_multi_teacher import (
    Config,
    check_teachers,
    main,
    masked_loyalty,
    multi_teacher_loss,
    romanian_multi_teacher,
)
from limbeck.sources.ensemble import mean_source
from limbeck.sources.model import model_source
from limbeck.students.layers import keep_layers

GOLDEN = Path(__file__).parents[2] / "golden" / "romanian-multi-teacher-loyalty"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(25))]


def test_golden_loss():
    """The golden values are float64, the arrays float32: 1e-6 relative is the rounding of the inputs."""
    case = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "multi_teacher_loss.npz").items()}
    soft, hard, cosine = case["hp_alpha_ce_mlm_cos"].tolist()
    cfg = Config(soft=soft, hard=hard, cosine=cosine, temperature=float(case["hp_tau"]))
    weights = case["hp_teacher_weights"].tolist()
    teachers = zip(case["in_teacher_logits"].double(), case["in_teacher_hidden"].double(), strict=True)
    says = [lambda batch, z=z, h=h: Signals(logits=z, hidden={6: h}) for z, h in teachers]
    student = Signals(logits=case["in_student_logits"].double(), hidden={6: case["in_student_hidden"].double()})
    answer = case["in_mlm_mask"].bool()
    batch = {
        "ids": case["in_labels"],
        "mask": case["in_attention_mask"].bool(),
        "targets": case["in_labels"].masked_fill(~answer, IGNORE),
        "answer": answer,
    }
    teacher = mean_source(says, weights, cfg.temperature)(batch)
    mixture = (teacher.logits_at() / cfg.temperature).softmax(-1)
    np.testing.assert_allclose(mixture.numpy(), case["ref_mixture_probs"].numpy(), rtol=0, atol=1e-12)
    terms = multi_teacher_loss(cfg)(student, teacher, batch, Clock(0, 1))
    counts = {"answer": int(answer.sum()), "mask": int(batch["mask"].sum())}
    for name, reference in {"soft": "ref_ce", "hard": "ref_mlm", "cosine": "ref_cos"}.items():
        found = terms[name].sum.item() / counts[terms[name].unit]
        np.testing.assert_allclose(found, case[reference].item(), rtol=1e-6)
    np.testing.assert_allclose(terms.total(counts).item(), case["ref_total"].item(), rtol=1e-6)
    assert abs(terms["soft"].sum.item() / counts["answer"] - case["bad_ce_logit_average"].item()) > 1e-3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(WORDS)


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), WORDS[:5], strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def teacher(seed: int, width: int = 16) -> BertForMaskedLM:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(20)  # opinions, not a uniform distribution
    return model


def texts(rows: int = 60) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"w{i}" for i in rng.integers(25, size=9)) for _ in range(rows)]


def test_the_student_moves_towards_the_mean_and_the_teachers_stay(tokenizer):
    teachers = [teacher(0), teacher(1)]
    before = [[p.clone() for p in model.parameters()] for model in teachers]
    student = keep_layers(teachers[0], [0]).eval()
    says = {str(i): model_source(model) for i, model in enumerate(teachers)}
    held = mlm_batches(texts(), tokenizer, 16, 20, seed=9).take(3)
    first = masked_loyalty(model_source(student), says, held)
    cfg = Config(steps=40, lr=3e-3)
    said = romanian_multi_teacher(student, teachers, mlm_batches(texts(), tokenizer, 16, 8), cfg)
    last = masked_loyalty(model_source(student.eval()), says, held)
    assert math.isfinite(said["loss"])
    assert last["average"]["probability"] > first["average"]["probability"] + 0.05
    for old, model in zip(before, teachers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, model.parameters(), strict=True))


def test_masked_loyalty_is_the_loyalty_of_all_masked_tokens(tokenizer):
    models = {"one": teacher(0), "two": teacher(1)}
    student, batches = teacher(2), mlm_batches(texts(), tokenizer, 16, 30).take(2)
    found = masked_loyalty(model_source(student), {k: model_source(m) for k, m in models.items()}, batches, [0.3, 0.7])
    tables = {name: [] for name in (*models, "student")}
    with torch.no_grad():
        for batch in batches:
            for name, model in {**models, "student": student}.items():
                logits = model(input_ids=batch["ids"], attention_mask=batch["mask"].long()).logits
                tables[name].append(logits[batch["answer"]].double().softmax(-1))
    p = {name: torch.cat(parts) for name, parts in tables.items()}
    average = mean_prediction([p["one"], p["two"]], [0.3, 0.7])
    assert found["two"]["label"] == pytest.approx(label_loyalty(p["two"], p["student"]))
    assert found["average"]["probability"] == pytest.approx(probability_loyalty(average, p["student"]), abs=1e-6)
    targets = torch.cat([batch["targets"][batch["answer"]] for batch in batches])
    assert found["student"] == {"accuracy": pytest.approx((p["student"].argmax(-1) == targets).double().mean().item())}


def test_a_weight_of_zero_leaves_its_term_out():
    names = {"soft": "soft(forward_kl", "hard": "hard(", "cosine": "hidden('cosine'"}
    for absent, text in names.items():
        said = repr(multi_teacher_loss(Config(**{absent: 0.0})))
        assert text not in said
        assert all(other in said for name, other in names.items() if name != absent)
    with pytest.raises(LimbeckError, match="all three weights are 0"):
        multi_teacher_loss(Config(soft=0, hard=0, cosine=0))


def test_teachers_of_unequal_width_need_the_cosine_off(tokenizer):
    stream, cfg = mlm_batches(texts(), tokenizer, 16, 8), Config(steps=1)
    pair = [teacher(0), teacher(1, width=8)]
    with pytest.raises(LimbeckError, match="differ in shape"):
        romanian_multi_teacher(keep_layers(pair[0], [0]), pair, stream, cfg)
    romanian_multi_teacher(keep_layers(pair[0], [0]), pair, stream, Config(steps=1, cosine=0.0))


def test_teachers_of_two_vocabularies_are_refused(tokenizer):
    check_teachers({"cased": tokenizer, "again": make_tokenizer(WORDS)})
    with pytest.raises(
        LimbeckError, match=r"cased and uncased cannot be averaged token by token: .*; distil from each"
    ):
        check_teachers({"cased": tokenizer, "uncased": make_tokenizer(WORDS[:-1])})


@pytest.fixture
def files(tmp_path, tokenizer) -> Path:
    for seed in range(2):
        teacher(seed).save_pretrained(tmp_path / f"t{seed}")
        tokenizer.save_pretrained(tmp_path / f"t{seed}")
    (tmp_path / "text.txt").write_text("\n".join(texts()))
    return tmp_path


def config(files: Path, **changes) -> Config:
    names = (str(files / "t0"), str(files / "t1"))
    settings = {
        "teacher": names,
        "data": str(files / "text.txt"),
        "out": files / "run",
        "steps": 2,
        "batch": 4,
        "length": 16,
    }
    return Config(**settings | changes)


def test_the_command_on_models_and_text_of_the_user(files):
    import json

    out = main(config(files, teacher_dtype="bfloat16"))
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["held_out"]) == {str(files / "t0"), str(files / "t1"), "average", "student"}
    student = BertForMaskedLM.from_pretrained(out)
    assert student.config.num_hidden_layers == 1
    assert "Loyalty on masked tokens" in (out / "report.html").read_text()
    again = json.loads((main(config(files, teacher_dtype="bfloat16")) / "metrics.json").read_text())
    assert again["held_out"] == metrics["held_out"], "the same command again trains nothing twice"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ()}, "--teacher: expected at least one"),
        ({"weights": (0.5, 0.2, 0.3)}, "3 weights for 2 sources"),
        ({"weights": (0.5, 0.6)}, "add up to 1"),
        ({"student": "nowhere"}, "cannot load 'nowhere' as a masked model"),
        ({"soft": -1.0}, "--soft -1.0: expected a weight"),
        ({"soft": 0, "hard": 0, "cosine": 0}, "all three weights are 0"),
    ],
)
def test_mistakes_leave_nothing_behind(files, changes, message):
    with pytest.raises(LimbeckError, match=message):
        main(config(files, **changes))
    assert not (files / "run").exists()


def test_a_teacher_named_twice_is_refused(files):
    with pytest.raises(LimbeckError, match="named twice"):
        main(config(files, teacher=(str(files / "t0"),) * 2))
