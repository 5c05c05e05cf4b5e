"""MEND against numbers of the released code (bigheiniu/MEND at 169e60d) on tiny random GPT-2s, and end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llms
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from limbeck.atlas.tasks import PARTITIONS
from limbeck.context import commands as context_commands
from limbeck.context.backbone import as_backbone
from limbeck.context.distiller import Distiller
from limbeck.context.host import Host
from limbeck.context.reading import Reading
from limbeck.context.streams import document_stream, episode_stream
from limbeck.context.vectors import Vectors
from limbeck.core.batch import Batch, shift
from limbeck.core.check import LimbeckError
from limbeck.core.learn import count_units
from limbeck.core.terms import Clock
from limbeck.data.tasks import Task
from limbeck.evaluation.score import score_options
from limbeck.losses.divergence import forward_kl
from limbeck.methods.context.mend import Config, first_goal, main, mend, mend_step, second_goal, settled, tasks
from limbeck.objectives.tokens import soft
from limbeck.sources.views import compressed_context, full_context

GOLDEN = Path(__file__).parents[2] / "golden" / "mend"
CLOCK = Clock(0, 1)
TRAIN = ("train_nopad_projected", "train_padded_projected", "train_padded_same_width")


class Case:
    """The arrays of one file; those with the released code's padding corrected come first."""

    def __init__(self, name: str) -> None:
        own = dict(np.load(GOLDEN / f"{name}.npz"))
        shared = {} if any(key.startswith("w_") for key in own) else dict(np.load(GOLDEN / "weights_projected.npz"))
        self.arrays = {**shared, **own}

    def __call__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def expected(self, name: str) -> Tensor:
        return self(f"fix_{name}") if f"fix_{name}" in self.arrays else self(f"out_{name}")

    def gpt2(self, part: str) -> Any:
        weights = {k.removeprefix(f"w_{part}."): self(k) for k in self.arrays if k.startswith(f"w_{part}.")}
        size, width = weights["wte.weight"].shape
        config = GPT2Config(
            vocab_size=size,
            n_positions=len(weights["wpe.weight"]),
            n_embd=width,
            n_layer=int(self(f"hp_{part}_layers")),
            n_head=int(self(f"hp_{part}_heads")),
            bos_token_id=0,
            eos_token_id=0,
            **tiny_llms.NO_DROPOUT,
        )
        model = GPT2LMHeadModel(config)
        model.transformer.load_state_dict(weights)
        model.tie_weights()
        return model.eval()

    def models(self) -> tuple[Any, Distiller]:
        lm = self.gpt2("llm").requires_grad_(False)
        return lm, self.distiller(Host.of(lm, "golden"))

    def distiller(self, host: Host) -> Distiller:
        prompt = self("w_prompt")
        distiller = Distiller(self.gpt2("dist").transformer, host, Reading(length=len(prompt)))
        with torch.no_grad():
            distiller.placeholders.copy_(prompt)
            if distiller.projection is not None:
                distiller.projection.weight.copy_(self("w_pool.weight"))
                distiller.projection.bias.copy_(self("w_pool.bias"))
        return distiller.eval()

    def batch(self) -> Batch:
        ids, mask, demos = self("in_input_ids"), self("in_attention_mask").bool(), self("in_demo_ids")
        targets, answer = shift(ids, self("in_token_type_ids").bool() & mask)
        batch = {"ids": ids, "mask": mask, "targets": targets, "answer": answer}
        seen = {"demos": demos, "demos_mask": self("in_demo_mask").bool()}
        return {**batch, **seen, "context": seen["demos"], "context_mask": seen["demos_mask"]}


def loss(case: Case, **settings: Any) -> tuple[Tensor, Distiller, Any]:
    lm, distiller = case.models()
    cfg, batch = Config(**settings), case.batch()
    step = mend_step(lm, distiller, second_goal(cfg), taught=cfg.kd > 0)
    return step(batch, CLOCK).total(count_units([batch])), distiller, lm


@pytest.mark.parametrize("temperature", [1, 2])
def test_kl_of_padded_queries(temperature: int) -> None:
    case = Case("query_kl")
    logits = case("in_s_logits").requires_grad_(True)
    student, teacher = logits[case("in_s_mask").bool()], case("in_t_logits")[case("in_t_mask").bool()]
    value = forward_kl(student, teacher, float(temperature)).mean()
    value.backward()
    torch.testing.assert_close(value, case(f"out_kl_T{temperature}"), atol=2e-5, rtol=0)
    torch.testing.assert_close(logits.grad, case(f"out_grad_s_T{temperature}"), atol=1e-7, rtol=1e-5)


def test_projection() -> None:
    case = Case("pooler")
    projected = torch.tanh(torch.nn.functional.linear(case("in_h"), case("w_weight"), case("w_bias")))
    torch.testing.assert_close(projected, case("out_projected"), atol=1e-6, rtol=0)
    _, distiller = Case("train_nopad_projected").models()
    assert distiller.projection is not None
    with torch.no_grad():
        distiller.projection.weight.copy_(case("w_weight"))
        distiller.projection.bias.copy_(case("w_bias"))
    torch.testing.assert_close(torch.tanh(distiller.projection(case("in_h"))), case("out_projected"), atol=1e-6, rtol=0)


def test_vectors_of_the_distiller() -> None:
    case = Case("distiller")
    host = Host("golden", 16)
    distiller = case.distiller(host)
    assert distiller.projection is None  # equal widths: neither projection nor tanh
    with torch.no_grad():
        ids, mask = case("in_demo_ids"), case("in_demo_mask")
        torch.testing.assert_close(distiller(ids, torch.ones_like(mask)), case("out_vectors_nopad"), atol=2e-5, rtol=0)
        torch.testing.assert_close(distiller(ids, mask), case("fix_vectors_padded").float(), atol=2e-5, rtol=0)
        groups = int(case("hp_groups"))
        grouped = [case(name).unflatten(0, (-1, groups)) for name in ("in_group_ids", "in_group_mask")]
        found = distiller(*grouped)
    torch.testing.assert_close(found, case("fix_vectors_grouped_concat").float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(found[:, -4:], case("out_vectors_grouped_last"), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", TRAIN)
@pytest.mark.parametrize(
    ("said", "settings"),
    [
        ("loss_total", {}),
        ("loss_total_T2_lambda0.5", {"temperature": 2.0, "kd": 0.5}),
        ("loss_answer_only", {"kd": 0.0}),
        ("loss_kl_only", {"ce": 0.0}),
        ("loss_kl_only_T2", {"ce": 0.0, "temperature": 2.0}),
    ],
)
def test_losses(name: str, said: str, settings: dict[str, float]) -> None:
    case = Case(name)
    value, _, _ = loss(case, **settings)
    torch.testing.assert_close(value.double(), case.expected(said).double(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", TRAIN)
def test_gradients(name: str) -> None:
    case = Case(name)
    value, distiller, lm = loss(case)
    value.backward()
    weights = dict(distiller.named_parameters())
    places = {
        "grad_prompt": "placeholders",
        "grad_dist.h.0.attn.c_attn.weight": "backbone.h.0.attn.c_attn.weight",
        "grad_pool.weight": "projection.weight",
        "grad_pool.bias": "projection.bias",
    }
    found = [said for said in places if f"fix_{said}" in case.arrays or f"out_{said}" in case.arrays]
    assert len(found) == (2 if name.endswith("same_width") else 4)
    for said in found:
        expected = case.expected(said).float()
        torch.testing.assert_close(
            weights[places[said]].grad, expected, atol=2e-5 * expected.abs().max().item(), rtol=0
        )
    assert all(parameter.grad is None for parameter in lm.parameters())


@pytest.mark.parametrize("name", TRAIN)
def test_the_demonstrations_themselves_as_vectors_lose_nothing(name: str) -> None:
    case = Case(name)
    lm, _ = case.models()
    batch = case.batch()
    for row in range(len(batch["ids"])):  # one by one, because vectors have no padding
        one = {key: value[row : row + 1] for key, value in batch.items()}
        one |= {key: one[key][:, one["demos_mask"][0]] for key in ("demos", "context", "context_mask")}
        student = compressed_context(lm, lambda b: lm.get_input_embeddings()(b["demos"]))
        said = soft(on="mask")(student(one), full_context(lm)(one), one, CLOCK)["soft"]
        assert abs(said.sum.item()) < 1e-6


def test_option_scores() -> None:
    case = Case("score_options")
    lm, distiller = case.models()
    with torch.no_grad():
        vectors = distiller(case("in_demo_ids"), case("in_demo_mask"))
    count = int(case("hp_num_options"))
    for item, prefix in enumerate(vectors):
        rows = range(item * count, (item + 1) * count)
        real = [row for row, there in zip(rows, case("in_real_num_class_mask")[item], strict=True) if there]
        scores = score_options(lm, prefix, [[_pair(case, row) for row in real]])[0]
        expected = case("fix_scores_unmasked")[item, [row - item * count for row in real]].float()
        torch.testing.assert_close(scores, expected, atol=2e-5, rtol=0)


def _pair(case: Case, row: int) -> tuple[list[int], list[int]]:
    ids, kind, mask = (case(f"in_{name}")[row] for name in ("input_ids", "token_type_ids", "attention_mask"))
    prompt, scored = (ids[mask.bool() & (kind == value)].tolist() for value in (0, 1))
    return prompt, scored


def toy(kind: str = "llama", **reading: Any) -> tuple[Any, Distiller]:
    """A random LM and a distiller of another width."""
    lm = tiny_llms.build(kind)
    backbone = as_backbone(tiny_llms.build(kind, width=8, layers=1, seed=1), kind == "t5")
    settings = {"length": 3, "limit": 20, "budget": 40, "context": 60, **reading}
    return lm, Distiller.build(lm, "nowhere", tiny_llms.tokenizer(), backbone, **settings)


@pytest.mark.parametrize("kind", tiny_llms.KINDS)
@pytest.mark.parametrize("stage", ["pretrain", "meta"])
def test_both_stages_learn_and_the_llm_does_not(kind: str, stage: str) -> None:
    lm, distiller = toy(kind)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    first = {name: value.detach().clone() for name, value in distiller.named_parameters()}
    text = [" ".join(tiny_llms.WORDS[i:] + tiny_llms.WORDS[:i]) for i in range(8)]
    pretrain = document_stream(distiller, text, 4)[0] if stage == "pretrain" else None
    meta = None if pretrain else episode_stream(distiller, [tiny_llms.task()], 4, shots=4)
    goal = first_goal(Config()) if pretrain else second_goal(Config())
    step, seen = mend_step(lm, distiller, goal), [(pretrain or meta).at(i) for i in range(3)]  # type: ignore[union-attr]

    def losses() -> float:
        with torch.no_grad():
            return sum(float(step(batch, CLOCK).total(count_units([batch]))) for batch in seen)

    start = losses()
    said = mend(lm, distiller, pretrain, meta, Config(steps=30, pretrain_steps=30, lr=1e-2, pretrain_lr=1e-2))
    assert set(said) == {f"{stage}_{name}" for name in ("steps", "loss", "seconds", "rows")}
    assert losses() < 0.96 * start
    assert all(torch.equal(before[name], value) for name, value in lm.state_dict().items())
    moved = [name for name, value in distiller.named_parameters() if not torch.equal(first[name], value)]
    assert {"placeholders", "projection.weight", "projection.bias"} < set(moved)
    assert len(moved) == len(first)


def test_micro_batches_give_the_gradient_of_the_whole() -> None:
    lm, distiller = toy("gpt2")
    step = mend_step(lm.requires_grad_(False), distiller, second_goal(Config(kd=0.7)))
    parts = episode_stream(distiller, [tiny_llms.task()], 1, shots=3).take(4)
    whole = episode_stream(distiller, [tiny_llms.task()], 4, shots=3).take(1)
    grads = []
    for batches in (parts, whole):
        distiller.zero_grad()
        for batch in batches:
            step(batch, CLOCK).total(count_units(batches)).backward()
        grads.append([p.grad.clone() for p in distiller.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_without_a_teacher_nobody_reads_the_demonstrations_in_full() -> None:
    lm, distiller = toy()
    batch = episode_stream(distiller, [tiny_llms.task()], 2, shots=3).take(1)[0]
    without = {name: value for name, value in batch.items() if not name.startswith("context")}
    terms = mend_step(lm, distiller, second_goal(Config(kd=0.0)), taught=False)(without, CLOCK)
    assert list(terms) == ["ce"]
    stage_one = mend_step(lm, distiller, first_goal(Config(kd=0.0)), taught=False)(without, CLOCK)
    assert list(stage_one) == ["hard"]
    with pytest.raises(KeyError):
        mend_step(lm, distiller, second_goal(Config()))(without, CLOCK)


def test_a_teacher_of_nan_is_refused() -> None:
    lm, distiller = toy("gpt2")
    batch = episode_stream(distiller, [tiny_llms.task()], 2, shots=3).take(1)[0]
    with torch.no_grad():
        lm.lm_head.weight[0] = float("nan")
    with pytest.raises(LimbeckError, match="NaN or infinity"):
        mend_step(lm, distiller, second_goal(Config()))(batch, CLOCK)


def test_settings_are_the_papers_for_an_llm_of_ones_own() -> None:
    assert (settled(Config()).steps, settled(Config()).partition) == (100, "held_out_task")
    own = settled(Config(llm="gpt2-large", batch=2, tasks=Path("tasks")))
    assert (own.steps, own.batch, own.lr, own.partition) == (30_000, 2, 1e-5, "all")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kd": -1.0}, "--kd -1.0 and --ce 1.0: expected weights"),
        ({"kd": 0.0, "ce": 0.0}, "one of them above 0"),
        ({"temperature": 0.0}, "--temperature 0.0: expected"),
        ({"judged": -1}, "--judged -1: expected"),
        ({"queries": 0}, "--queries 0: expected"),
    ],
)
def test_settings_that_make_no_sense_are_refused_first(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        main(Config(out=tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_the_partition_follows_the_tasks_and_not_the_llm() -> None:
    assert settled(Config(tasks=Path("tasks"))).partition == "all"
    assert settled(Config(llm="gpt2-large")).partition == "held_out_task"
    assert settled(Config(llm="gpt2-large", partition="hr_to_lr")).partition == "hr_to_lr"


@pytest.mark.parametrize("kind", tiny_llms.KINDS)
def test_from_files_to_answers(kind: str, tmp_path: Path) -> None:
    """A random LM and a narrower one on disk, own data: trains both stages, saves, loads, scores."""
    llm = tiny_llms.save(kind, tmp_path / "llm")
    small = tiny_llms.save(kind, tmp_path / "small", width=8, layers=1, seed=1)
    data = tiny_llms.write_tasks(tmp_path / "tasks")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(["good bad", *(" ".join(tiny_llms.WORDS) for _ in range(9))]))
    cfg = Config(
        out=tmp_path / "out",
        llm=str(llm),
        distiller=str(small),
        pretrain=str(corpus),
        tasks=data,
        length=4,
        shots=4,
        asked=1 if kind == "t5" else 3,
        pretrain_steps=4,
        steps=4,
        batch=4,
        lr=1e-3,
        queries=4,
        save_every=100,
        device="cpu",
    )
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["pretrain_documents_too_short"] == 1
    assert metrics["meta_rows"] == 16
    assert {"score zero-shot", "score ICL", "score MEND"} <= set(metrics)
    assert (out / "report.html").is_file()
    assert not (out / "README.md").read_text().startswith("Nothing")
    demos = tiny_llms.task().train[:4]
    vectors = Distiller.from_pretrained(out).distill(demos)
    vectors.save(tmp_path / "v.safetensors")
    again = Vectors.load(tmp_path / "v.safetensors")
    scores = again.score("great film", ["good", "bad"])
    assert scores == pytest.approx(vectors.score("great film", ["good", "bad"]), abs=1e-6)
    assert again.complete("great film", ["good", "bad"]) == max(scores, key=scores.__getitem__)
    assert isinstance(again.complete("great film", tokens=3), str)
    assert main(cfg) == out  # done: the same command changes nothing
    assert json.loads((out / "metrics.json").read_text())["score MEND"] == metrics["score MEND"]


def test_an_encoder_decoder_is_asked_one_query_per_row(tmp_path: Path) -> None:
    llm, data = str(tiny_llms.save("t5", tmp_path / "llm")), tiny_llms.write_tasks(tmp_path / "tasks")
    with pytest.raises(LimbeckError, match="--asked 2: an encoder-decoder"):
        main(Config(out=tmp_path / "out", llm=llm, distiller=llm, tasks=data, length=4, shots=4, asked=2))
    assert not (tmp_path / "out").exists()


def test_metaicl_keeps_other_files_to_train_on_and_to_judge_by(tmp_path: Path) -> None:
    taste, tone = tiny_llms.task("taste", rows=20), tiny_llms.task("tone", rows=4)
    for split, rows in {"taste_99_100_train": taste.train, "taste_99_100_dev": taste.dev}.items():
        tiny_llms.write_rows(tmp_path / f"{split}.jsonl", rows)
    for seed in (13, 100):
        tiny_llms.write_rows(tmp_path / f"tone_4_{seed}_train.jsonl", tone.train)
        tiny_llms.write_rows(tmp_path / f"tone_4_{seed}_test.jsonl", tone.test)
    (tmp_path / "partitions").mkdir()
    (tmp_path / "partitions" / "p.json").write_text('{"train": ["taste"], "test": ["tone"]}')
    cfg = Config(tasks=tmp_path, partition="p", file_shots=99, file_seed=100, shots=4)
    (split,) = tasks(cfg)
    assert [len(task.train) for task in (*split.train, *split.test)] == [20, 4]
    with pytest.raises(LimbeckError, match="choose with seed and shots"):
        tasks(Config(tasks=tmp_path, partition="p", shots=4))


def test_all_is_every_partition_of_the_atlas_as_for_context_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.atlas.tasks._first", lambda found, count, *_: [Task(s.name) for s in found[:count]])
    splits = tasks(Config(partition="all"))
    evaluated = context_commands._splits(context_commands.Evaluate("mend", Path("out"), partition="all"), seed=0)
    assert [s.name for s in splits] == [s.name for s in evaluated] == list(PARTITIONS)
    assert [s.test for s in splits] == [s.test for s in evaluated]
    assert not {t.name for s in splits for t in s.train} & {t.name for s in splits for t in s.test}
    assert all(len(s.train) == 300 and s.test for s in splits)


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    llm = str(tiny_llms.save("gpt2", tmp_path / "llm"))
    data, out = tiny_llms.write_tasks(tmp_path / "tasks"), tmp_path / "out"
    with pytest.raises(LimbeckError, match="--llm needs --distiller"):
        main(Config(out=out, llm=llm, tasks=data))
    with pytest.raises(LimbeckError, match=r"cannot load .*nothing'"):
        main(Config(out=out, llm=str(tmp_path / "nothing"), distiller=llm, tasks=data))
    with pytest.raises(LimbeckError, match=r"expected the file .*tasks/partitions/hr_to_lr\.json"):
        main(Config(out=out, llm=llm, distiller=llm, tasks=data, length=4, partition="hr_to_lr"))
    with pytest.raises(LimbeckError, match="12 training rows, but 16 demonstrations and a query need 17"):
        main(Config(out=out, llm=llm, distiller=llm, tasks=data, length=4))
    short = tmp_path / "short.txt"
    short.write_text("good\nbad\n")
    with pytest.raises(LimbeckError, match="all 2 documents of the corpus are too short"):
        main(Config(out=out, llm=llm, distiller=llm, tasks=data, length=4, shots=4, pretrain=str(short)))
    assert not out.exists()
