"""Exits: the losses from the paper's equations, cutting, saving, the contract and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_classifiers as classifiers
import torch
from contract import CHECKS, Case, stages_of
from transformers import AutoModelForMaskedLM, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock, count
from limbeck.data.repositories import place_batches
from limbeck.methods.encoders import modular_encoder
from limbeck.methods.encoders.modular_encoder import Config, exit_loss, main
from limbeck.students.exits import MultiExit, even_exits, load_exits

GOLDEN = Path(__file__).parents[2] / "golden" / "hierarchical-self-distillation"
START = Clock(0, 1)


def test_golden_losses():
    case = dict(np.load(GOLDEN / "exit_pretraining.npz"))
    words, same = torch.from_numpy(case["in_mlm_logits"]), torch.from_numpy(case["in_icc_logits"])
    targets = torch.from_numpy(case["in_mlm_labels"])
    batch = {"targets": targets, "answer": targets != IGNORE, "same": torch.from_numpy(case["in_icc_labels"])}
    exits = tuple(Signals(logits=w, extra={"same": s}) for w, s in zip(words, same, strict=True))
    layers = tuple(case["hp_exit_layers"].tolist())
    terms = exit_loss(layers, int(case["hp_total_layers"]))(Signals(exits=exits), Signals(), batch, START)
    counts = {unit: count(batch, unit) for unit in terms.units()}
    np.testing.assert_allclose(terms.total(counts).item(), case["ref_total"], rtol=1e-5)
    for index, layer in enumerate(layers):
        mean = {name: (terms[f"{name}.{layer}"].sum / counts[terms[f"{name}.{layer}"].unit]).item() for name in NAMES}
        np.testing.assert_allclose(mean["words"], case["ref_mlm"][index], rtol=1e-5)
        np.testing.assert_allclose(mean["same"], case["ref_icc"][index], rtol=1e-5)


NAMES = ("words", "same")


def model(seed: int = 0, exits=(1, 2, 4), kind=BertForMaskedLM) -> MultiExit:
    torch.manual_seed(seed)
    base = classifiers.bert(kind, seed=seed) if kind is BertForMaskedLM else roberta()
    whole = MultiExit(base, exits).eval()
    torch.nn.init.normal_(whole.said)
    return whole


def roberta() -> RobertaForMaskedLM:
    plain = classifiers.config().to_dict()
    return RobertaForMaskedLM(RobertaConfig(**{k: v for k, v in plain.items() if k != "model_type"}))


def batches(seed: int):
    made = []
    for batch in classifiers.labelled(seed):
        answer = batch["mask"] & (torch.arange(7) % 3 == 1)
        words = {"answer": answer, "targets": batch["ids"].where(answer, torch.tensor(IGNORE))}
        made.append({"ids": batch["ids"], "mask": batch["mask"], **words, "same": batch["labels"] > 0})
    return made


@pytest.mark.parametrize("kind", [BertForMaskedLM, RobertaForMaskedLM])
def test_a_model_cut_at_an_exit_says_what_the_exit_says(kind, tmp_path):
    whole, batch = model(kind=kind), batches(0)[0]
    said = dict(zip(whole.exits, whole(batch).exits, strict=True))
    whole.save_pretrained(tmp_path)
    loaded = dict(zip(whole.exits, load_exits(tmp_path)(batch).exits, strict=True))
    real = batch["mask"]
    for layer, exit_says in said.items():
        small = whole.at_exit(layer)
        assert type(small) is kind
        assert small.config.num_hidden_layers == layer
        alone = small(batch["ids"], batch["mask"].long()).logits
        torch.testing.assert_close(alone[real], exit_says.readout.at(real), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded[layer].readout.at(real), exit_says.readout.at(real), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded[layer].extra["same"], exit_says.extra["same"], rtol=1e-4, atol=1e-4)


def test_an_exit_reaches_the_layers_below_it_and_none_above():
    whole, batch = model(), batches(0)[0]
    goal = exit_loss(whole.exits, 4)
    goal(whole(batch), Signals(), batch, START)["words.2"].sum.backward()
    moved = [any(p.grad is not None and p.grad.any() for p in layer.parameters()) for layer in blocks(whole)]
    assert moved == [True, True, False, False]


def blocks(whole: MultiExit):
    return whole.model.bert.encoder.layer


def stage(seed: int):
    cfg = Config(steps=8, seed=seed)
    whole = MultiExit(classifiers.bert(BertForMaskedLM, seed=seed, layers=2), (1, 2))
    (one,) = stages_of(modular_encoder, lambda: modular_encoder.modular_encoder(whole, batches(seed), cfg))
    return one


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, tmp_path):
    check(Case("modular_encoder", stage), tmp_path)


def test_rows_belong_together_or_not():
    places = {f"p{i}": [f"w{i} w{10 + j}" for j in range(4)] for i in range(4)}
    batch = next(iter(place_batches(places, classifiers.tokenizer(), 24, 20, 20, texts=3)))
    assert 3 < batch["same"].sum() < 17
    for ids, targets, same in zip(batch["ids"], batch["targets"], batch["same"], strict=True):
        row = ids.where(targets == IGNORE, targets).tolist()
        firsts = {row[1], row[4], row[7]}
        assert len(firsts) == (1 if same else 3)
    with pytest.raises(LimbeckError, match="rows of 5 texts need 5 places"):
        place_batches(places, classifiers.tokenizer(), 24, 4, 8, texts=5)


def test_even_exits_and_odd_ones():
    assert even_exits(12, 4) == (3, 6, 9, 12)
    assert even_exits(5, 2) == (3, 5)
    for wrong in ((), (0, 1), (2, 1), (5,)):
        with pytest.raises(LimbeckError, match="expected rising numbers of layers from 1 to 4"):
            model(exits=wrong)
    with pytest.raises(LimbeckError, match=r"exit 3: the model has exits after layers \[1, 2, 4\]"):
        model().at_exit(3)


def test_the_command_on_a_bert_and_texts_of_the_user(tmp_path):
    name = classifiers.write_encoder(tmp_path / "bert")
    rows = [{"text": f"w{i % 4} w{i // 4}", "repository": f"r{i % 4}"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = str(tmp_path / "rows.jsonl")
    cfg = Config(tmp_path / "run", model=name, data=data, steps=2, batch=4, length=20, texts=3, exits=(2, 4))
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["held_out"]) == {"words.2", "same.2", "words.4", "same.4"}
    assert AutoModelForMaskedLM.from_pretrained(out / "exit-2").config.num_hidden_layers == 2
    assert AutoModelForMaskedLM.from_pretrained(out).config.num_hidden_layers == 4
    assert load_exits(out).exits == (2, 4)
