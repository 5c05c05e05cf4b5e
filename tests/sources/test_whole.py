"""A masked language model that reads a text with masked words, and whole."""

import tiny_classifiers as classifiers
import torch
from transformers import BertForMaskedLM

from limbeck.core.batch import IGNORE
from limbeck.sources.model import model_source
from limbeck.sources.whole import WholeSource, unmasked


def batch():
    plain = classifiers.labelled(0)[0]
    answer = plain["mask"] & (torch.arange(7) % 3 == 1)
    targets = plain["ids"].where(answer, torch.tensor(IGNORE))
    return plain, {"ids": plain["ids"].where(~answer, torch.tensor(4)), "mask": plain["mask"]} | {
        "answer": answer,
        "targets": targets,
    }


def test_the_whole_text_is_what_it_was_before_masking():
    plain, masked = batch()
    assert not torch.equal(plain["ids"], masked["ids"])
    assert torch.equal(unmasked(masked)["ids"], plain["ids"])


def test_both_views_at_once():
    (plain, masked), model = batch(), classifiers.bert(BertForMaskedLM)
    said = WholeSource(model)(masked)
    torch.testing.assert_close(said.pooled, model_source(model.bert, pooled="cls")(plain).pooled)
    torch.testing.assert_close(
        said.readout.at(masked["answer"]), model_source(model)(masked).readout.at(masked["answer"])
    )
    alone = WholeSource(model, "mean", masked_view=False)(masked)
    assert alone.present() == ["pooled"]
    torch.testing.assert_close(alone.pooled, model_source(model.bert, pooled="mean")(plain).pooled)
