"""Exits: the losses from the paper's equations, cutting, saving, retrieval and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_classifiers as classifiers
import torch
from encoder_stages import masked_words
from transformers import AutoModelForMaskedLM, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Readout, Signals
from limbeck.core.terms import Clock, count
from limbeck.data.repositories import place_batches
from limbeck.methods.encoders.exit_retrieval import finds, kinds_of, match_stream, retrieve
from limbeck.methods.encoders.modular_encoder import Config, exit_loss, main
from limbeck.objectives.exits import at_exits, depth_shares, finds_its_match
from limbeck.students.exit_vectors import ExitVectors, load_text_encoder
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


@pytest.mark.parametrize("kind", [BertForMaskedLM, RobertaForMaskedLM])
def test_a_model_cut_at_an_exit_says_what_the_exit_says(kind, tmp_path):
    whole, batch = model(kind=kind), masked_words(0)[0]
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


@pytest.mark.parametrize("kind", [BertForMaskedLM, RobertaForMaskedLM])
def test_losses_never_see_the_logits_of_an_exit(kind, monkeypatch):
    """Values and gradients of the fused way are those of logits, which are not computed."""
    whole, batch, ends = model(kind=kind), masked_words(0)[0], []
    for late in (True, False):
        whole.late = late
        whole.zero_grad()
        said = whole(batch)
        assert all(isinstance(exit_says.readout, Readout) == late for exit_says in said.exits)
        with monkeypatch.context() as patch:
            if late:
                patch.setattr(Readout, "at", None)
            terms = exit_loss(whole.exits, 4)(said, Signals(), batch, START)
        terms.total({unit: count(batch, unit) for unit in terms.units()}).backward()
        ends.append(
            [p.grad.clone() for p in whole.parameters() if p.grad is not None] + [terms["words.2"].sum.detach()]
        )
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_head_that_goes_on_behind_its_output_layer_is_read_as_a_whole():
    base = classifiers.bert(BertForMaskedLM)
    inner = base.cls.forward
    base.cls.forward = lambda states: 2 * inner(states)
    whole = MultiExit(base, (2, 4))
    assert not whole.late
    (_, last), batch = whole(masked_words(0)[0]).exits, masked_words(0)[0]
    logits = base(batch["ids"], batch["mask"].long()).logits
    torch.testing.assert_close(last.readout.at(batch["mask"]), logits[batch["mask"]], rtol=1e-4, atol=1e-4)


def test_an_exit_reaches_the_layers_below_it_and_none_above():
    whole, batch = model(), masked_words(0)[0]
    goal = exit_loss(whole.exits, 4)
    goal(whole(batch), Signals(), batch, START)["words.2"].sum.backward()
    moved = [any(p.grad is not None and p.grad.any() for p in layer.parameters()) for layer in blocks(whole)]
    assert moved == [True, True, False, False]


def blocks(whole: MultiExit):
    return whole.model.bert.encoder.layer


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


def write_data(folder: Path) -> dict[str, object]:
    """Texts of places, and pairs of which each has words of its own."""
    rows = [{"text": f"w{i % 4} w{i // 4}", "repository": f"r{i % 4}"} for i in range(24)]
    pairs = [{"query": f"w{i // 9} w{i % 9}", "match": f"w{9 + i % 9} w{18 + i // 9}"} for i in range(45)]
    for name, some in {"rows": rows, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    few = {"steps": 2, "batch": 4, "retrieve_steps": 2, "retrieve_batch": 4, "length": 20, "texts": 3}
    return {"data": str(folder / "rows.jsonl"), "pairs": (str(folder / "pairs.jsonl"),), **few}


def test_the_command_on_a_bert_and_texts_of_the_user(tmp_path):
    name = classifiers.write_encoder(tmp_path / "bert")
    cfg = Config(tmp_path / "run", model=name, exits=(2, 4), **write_data(tmp_path))
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["pretrain"]["held_out"]) == {"words.2", "same.2", "words.4", "same.4"}
    measured = {f"{name}.{layer}" for name in ("mrr", "recall_1", "recall_10") for layer in (2, 4)}
    assert set(metrics["retrieve"]["held_out"]) == set(metrics["retrieve"]["before"]) == measured
    assert AutoModelForMaskedLM.from_pretrained(out / "exit-2").config.num_hidden_layers == 2
    assert AutoModelForMaskedLM.from_pretrained(out).config.num_hidden_layers == 4
    assert load_exits(out).exits == (2, 4)
    assert load_text_encoder(out / "retrieval" / "exit-2").encoder.config.num_hidden_layers == 2
    pretrained = AutoModelForMaskedLM.from_pretrained(out).state_dict()
    retrieving = load_text_encoder(out / "retrieval" / "exit-4").encoder.state_dict()
    key = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(pretrained[f"bert.{key}"], retrieving[key])
    assert main(cfg) == out  # a run that is done is loaded, not trained
    assert json.loads((out / "metrics.json").read_text()) == metrics


def test_stages_one_at_a_time_are_both_at_once(tmp_path):
    name, data = classifiers.write_encoder(tmp_path / "bert"), write_data(tmp_path)
    both = main(Config(tmp_path / "both", model=name, exits=(2, 4), **data))
    first = main(Config(tmp_path / "first", model=name, exits=(2, 4), stages=("pretrain",), **data))
    assert not (first / "retrieval").exists()
    second = main(Config(tmp_path / "second", model=str(first), stages=("retrieve",), **data))
    assert not (second / "model.safetensors").exists()
    for layer in (2, 4):
        ours, theirs = (load_text_encoder(out / "retrieval" / f"exit-{layer}") for out in (both, second))
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    with pytest.raises(LimbeckError, match="has exits after layers 2 4; leave --exits out"):
        main(Config(tmp_path / "third", model=str(first), exits=(1, 4), stages=("retrieve",), **data))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": ("retreive",)}, "did you mean 'retrieve'"),
        ({"retrieve_batch": 1}, "--retrieve-batch 1: a pair is told from the other"),
        ({"retrieve_batch": 64}, "pairs.jsonl: 45 different pairs are too few for batches of 64"),
        ({"scale": 0.0}, r"--scale 0\.0: expected a number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path):
    name = classifiers.write_encoder(tmp_path / "bert")
    with pytest.raises(LimbeckError, match=message):
        main(Config(tmp_path / "run", model=name, **{**write_data(tmp_path), **settings}))
    assert not (tmp_path / "run").exists()


def test_golden_contrast_of_all_exits():
    case = dict(np.load(GOLDEN / "exit_contrastive.npz"))
    query, match = (torch.from_numpy(case[f"in_{name}"]) for name in ("query", "code"))
    layers, total = tuple(case["hp_exit_layers"].tolist()), int(case["hp_total_layers"])
    exits = tuple(Signals(pooled=q, extra={"match": m}) for q, m in zip(query, match, strict=True))
    goal = at_exits(finds_its_match(float(case["hp_logit_scale"])), depth_shares(layers, total))
    terms = goal(Signals(exits=exits), Signals(), {}, START)
    np.testing.assert_allclose(terms.total({"row": query.shape[1]}).item(), case["ref_total_weighted"], rtol=1e-5)


def test_retrieval_learns_what_no_exit_knew(tmp_path):
    """Match i says in other words what query i says."""
    cfg = Config(**{**write_data(tmp_path), "retrieve_steps": 60, "retrieve_batch": 20, "retrieve_lr": 3e-3})
    kinds = {"all": (pairs := kinds_of(cfg)[cfg.pairs[0]][0], pairs)}
    torch.manual_seed(0)
    vectors = ExitVectors(BertForMaskedLM(classifiers.config()).bert, (1, 4))
    tokenizer = classifiers.tokenizer()
    before = finds(vectors, kinds, tokenizer, cfg, "cpu")
    retrieve(vectors, match_stream(kinds, tokenizer, cfg), cfg)
    after = finds(vectors, kinds, tokenizer, cfg, "cpu")
    for layer in (1, 4):
        assert before[f"mrr.{layer}"] < 0.25
        assert after[f"mrr.{layer}"] > 0.6
