"""Vectors at several depths: cut at an exit they are what the exit says, saved and loaded too."""

import json

import pytest
import tiny_classifiers as classifiers
import torch
from torch.nn.functional import normalize
from transformers import BertModel, MegatronBertConfig, MegatronBertForMaskedLM, RobertaConfig, RobertaModel

from limbeck.core.check import LimbeckError
from limbeck.students.exit_vectors import ExitVectors, encode, load_text_encoder
from limbeck.students.exits import MultiExit


def roberta() -> RobertaModel:
    plain = classifiers.config().to_dict()
    settings = {k: v for k, v in plain.items() if k != "model_type"}
    return RobertaModel(RobertaConfig(**settings), add_pooling_layer=False).eval()


ENCODERS = {"bert": lambda: classifiers.bert(BertModel), "roberta": roberta}


def vectors(kind: str = "bert", exits=(1, 2, 4)) -> ExitVectors:
    model = ExitVectors(ENCODERS[kind](), exits).eval()
    torch.nn.init.normal_(model.projections)
    return model


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_model_cut_at_an_exit_gives_its_vectors(kind, tmp_path):
    model, batch = vectors(kind), classifiers.labelled(0)[0]
    with torch.no_grad():
        for layer, wanted in zip(model.exits, encode(model, batch["ids"], batch["mask"]), strict=True):
            small = model.at_exit(layer)
            assert small.encoder.config.num_hidden_layers == layer
            torch.testing.assert_close(small(batch["ids"], batch["mask"]), wanted, rtol=1e-4, atol=1e-5)
            small.save_pretrained(tmp_path)
            loaded = load_text_encoder(tmp_path)
            torch.testing.assert_close(loaded(batch["ids"], batch["mask"]), wanted, rtol=1e-4, atol=1e-5)
    kinds = [part["type"].rpartition(".")[2] for part in json.loads((tmp_path / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    with pytest.raises(LimbeckError, match=r"exit 3: the encoder has exits after layers \[1, 2, 4\]"):
        model.at_exit(3)


def test_before_training_vectors_are_the_states():
    encoder, batch = classifiers.bert(BertModel), classifiers.labelled(0)[0]
    states = encoder(batch["ids"], batch["mask"].long(), output_hidden_states=True).hidden_states
    for layer, said in zip((2, 4), encode(ExitVectors(encoder, (2, 4)), batch["ids"], batch["mask"]), strict=True):
        torch.testing.assert_close(said, normalize(states[layer][:, 0], dim=-1).detach())


def test_a_model_that_norms_behind_its_last_layer_has_no_exits():
    small = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MegatronBertForMaskedLM(MegatronBertConfig(**small, intermediate_size=8))
    with pytest.raises(LimbeckError, match="has a norm behind its last layer"):
        MultiExit(model, [1, 2])
    assert MultiExit(model, [2]).depth == 2
