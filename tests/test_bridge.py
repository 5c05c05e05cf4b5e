"""limbeck's loss inside transformers' Trainer: the step that fit takes, however a batch is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from limbeck.bridge import distilling, to_batch
from limbeck.core.batch import IGNORE, Batch
from limbeck.core.check import LimbeckError
from limbeck.core.fit import fit
from limbeck.core.stage import Optim, Stage, distill_step, freeze
from limbeck.core.terms import Clock
from limbeck.data.packing import packed_batches, row, row_batches
from limbeck.objectives.features import hidden
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.sources.model import model_source

SIZE = {"vocab_size": 17, "num_attention_heads": 2, "num_hidden_layers": 2}


def llama(seed: int, width: int = 16) -> Any:
    torch.manual_seed(seed)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, hidden_size=width, intermediate_size=32))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def rows() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    sizes = [3, 9, 4, 12, 5, 7, 10, 6]
    return [row(torch.randint(17, (n,), generator=generator).tolist(), [i > n // 3 for i in range(n)]) for n in sizes]


def as_items() -> list[dict[str, list[int]]]:
    """The rows as transformers wants them: labels as long as ids, not shifted."""
    items = []
    for one in rows():
        labels = [token if kept else IGNORE for token, kept in zip(one.ids.tolist(), one.keep.tolist(), strict=True)]
        items.append({"input_ids": one.ids.tolist(), "labels": labels})
    return items


def collate(items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(item["input_ids"]) for item in items)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([item[name] + [value] * (width - len(item[name])) for item in items])

    mask = torch.tensor([[1] * len(i["input_ids"]) + [0] * (width - len(i["input_ids"])) for i in items])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", IGNORE), "attention_mask": mask}


def arguments(folder: Path, **settings: Any) -> hf.TrainingArguments:
    """One optimizer step, Adam's eps so large that a gradient of the wrong size shows in the weights."""
    plain = {"max_steps": 1, "learning_rate": 0.1, "adam_epsilon": 1.0, "report_to": [], "save_strategy": "no"}
    return hf.TrainingArguments(folder, use_cpu=True, disable_tqdm=True, **{**plain, "logging_steps": 1, **settings})


def with_fit(goal: Any, student_of: Any = model_source, teacher: Any = None) -> dict[str, torch.Tensor]:
    student, teacher = llama(0), llama(1, 32) if teacher is None else teacher
    batch = row_batches(rows(), 8).collate(rows())
    step = distill_step(student_of(student), student_of(freeze(teacher)), goal)
    fit(Stage("step", step, {"student": student}, [batch], 1, Optim(0.1, eps=1.0)))
    return student.state_dict()


def with_trainer(folder: Path, accumulate: int, goal: Any, teacher: Any = None, processes: int = 1, **more: Any) -> Any:
    size = 8 // accumulate // processes
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
    trainer = distilling(hf.Trainer)(
        model=llama(0),
        args=arguments(folder, **settings),
        train_dataset=as_items(),
        data_collator=collate,
        objective=goal,
        teacher=llama(1, 32) if teacher is None else teacher,
        **more,
    )
    trainer.train()
    return trainer


def assert_same(trainer: Any, expected: dict[str, torch.Tensor]) -> None:
    start = llama(0).state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)
    assert any((expected[name] - start[name]).abs().max() > 1e-3 for name in expected)


GOAL = weighted(kl=(0.8, soft(temperature=2.0)), ce=(0.2, hard()))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_one_step_is_fits_step(tmp_path: Path, accumulate: int) -> None:
    trainer = with_trainer(tmp_path, accumulate, GOAL)
    assert_same(trainer, with_fit(GOAL))
    assert not any(p.requires_grad for p in trainer.teacher.model.parameters())
    logged = next(one for one in trainer.state.log_history if "loss" in one)
    assert set(logged) >= {"kl", "ce"}
    assert logged["loss"] == pytest.approx(0.8 * logged["kl"] + 0.2 * logged["ce"], abs=1e-4)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_terms_with_units_of_their_own_too(tmp_path: Path, accumulate: int) -> None:
    """Hidden states are averaged over all real tokens, the loss on tokens over supervised ones."""
    goal = weighted(kl=(1.0, soft()), states=(0.5, hidden("cosine")))

    def source(model: Any) -> Any:
        return model_source(model, hidden=[-1])

    teacher = llama(1)
    trainer = with_trainer(tmp_path, accumulate, goal, teacher=source(freeze(llama(1))), student=source)
    assert_same(trainer, with_fit(goal, source, teacher))


def test_evaluation_is_the_mean_over_each_batch(tmp_path: Path) -> None:
    trainer = with_trainer(tmp_path, 1, GOAL)
    trainer.args.per_device_eval_batch_size = 8
    found = trainer.evaluate(as_items())["eval_loss"]
    batch = row_batches(rows(), 8).collate(rows())
    student = trainer.model.eval()
    terms = GOAL(model_source(student)(batch), model_source(llama(1, 32).eval())(batch), batch, Clock(0, 1))
    assert found == pytest.approx(terms.total({"answer": int(batch["answer"].sum())}).item(), abs=1e-5)


def test_after_hears_every_step(tmp_path: Path) -> None:
    heard: list[tuple[int, int, float]] = []
    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3, "logging_steps": 2}
    distilling(hf.Trainer)(
        model=llama(0),
        args=arguments(tmp_path, **args),
        train_dataset=as_items(),
        data_collator=collate,
        objective=GOAL,
        teacher=llama(1, 32),
        after=[lambda logs, clock: heard.append((clock.step, clock.steps, logs["kl"]))],
    ).train()
    assert [one[:2] for one in heard] == [(1, 3), (2, 3), (3, 3)]
    assert all(one[2] > 0 for one in heard)


def test_packed_rows_of_the_trainer_are_kept_apart() -> None:
    (packed,) = packed_batches(rows(), 60, 1).take(1)
    positions = torch.cat(
        [torch.arange(int(n)) for n in packed["segment"][0].unique_consecutive(return_counts=True)[1]]
    )
    labels = torch.full_like(packed["ids"], IGNORE)
    labels[:, 1:] = packed["targets"][:, :-1]
    inputs = {"input_ids": packed["ids"], "labels": labels, "position_ids": positions[None]}
    batch = to_batch(inputs, llama(0))
    for name in ("ids", "mask", "segment", "targets", "answer"):
        assert torch.equal(batch[name], packed[name]), name
    plain = to_batch({**inputs, "position_ids": torch.arange(56)[None]}, llama(0))
    assert "segment" not in plain
    assert plain["positions"].shape == (1, 56)


def test_other_kinds_of_model() -> None:
    ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[IGNORE, 6, IGNORE]])
    wide = SIZE | {"hidden_size": 16, "intermediate_size": 16}
    masked = to_batch({"input_ids": ids, "labels": labels}, hf.BertForMaskedLM(hf.BertConfig(**wide)))
    assert (masked["targets"].tolist(), masked["answer"].tolist()) == (labels.tolist(), [[False, True, False]])
    classes = {"input_ids": ids, "labels": torch.tensor([1]), "token_type_ids": torch.zeros_like(ids)}
    batch = to_batch(classes, hf.BertForSequenceClassification(hf.BertConfig(**wide)))
    assert batch["labels"].tolist() == [1]
    assert "types" in batch
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=17, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).eval()
    asked: Batch = to_batch({"input_ids": ids, "labels": torch.tensor([[4, 1]])}, t5)
    assert asked["ids"].tolist() == [[0, 4]]
    found = hard()(model_source(t5)(asked), model_source(t5)(asked), asked, Clock(0, 1))["hard"].sum / 2
    torch.testing.assert_close(found, t5(input_ids=ids, labels=torch.tensor([[4, 1]])).loss)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"the trainer's batch needs 'labels', but holds only \['input_ids'\]"):
        to_batch({"input_ids": torch.tensor([[1]])}, llama(0))
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(LimbeckError, match="one process drives several devices"):
        distilling(_Bare)(args, objective=soft(), teacher=llama(0))


class _Bare:
    def __init__(self, args: Any) -> None:
        self.args = args


def test_it_prints_and_saves_as_the_trainer_does(tmp_path: Path) -> None:
    trainer = with_trainer(tmp_path, 1, GOAL)
    assert type(trainer).__name__ == "DistillingTrainer"
    trainer.save_model(str(tmp_path / "student"))
    assert json.loads((tmp_path / "student" / "config.json").read_text())["model_type"] == "llama"
