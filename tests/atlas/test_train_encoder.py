import json
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from limbeck.atlas import train_encoder
from limbeck.atlas.train_encoder import build, masked_step, measure, texts, train_tokenizer
from limbeck.core.terms import Clock
from limbeck.data.stream import mlm_batches

documents = train_encoder.documents


def few(place, n, seed):
    return documents(place, min(n, 60), seed)


@pytest.fixture(scope="module")
def tokenizer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_encoder, "LOCALES", ("ro", "bg"))
        patch.setattr(train_encoder, "documents", few)
        patch.setattr(train_encoder, "VOCABULARY", 400)
        return train_tokenizer()


def test_the_tokenizer_knows_every_letter_and_keeps_digits_single(tokenizer):
    ids = tokenizer("România: 1984.")["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[0] == "[CLS]"
    assert pieces[-1] == "[SEP]"
    assert pieces[-6:-2] == ["1", "9", "8", "4"]
    assert tokenizer.unk_token_id not in ids


def test_texts_are_paragraphs_and_pairs(monkeypatch):
    monkeypatch.setattr(train_encoder, "LOCALES", ("ro", "bg"))
    found = list(texts(4, seed=0))
    assert len(found) == 4 + 4 + 2
    assert found == list(texts(4, seed=0))
    assert found != list(texts(4, seed=1))


def test_the_loss_falls(tokenizer):
    torch.manual_seed(0)
    model = build(tokenizer)
    batch = mlm_batches(["România: leu românesc."], tokenizer, 32, 4).at(0)
    step, optimizer = masked_step(model), torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        loss = step(batch, Clock(0, 12)).total({"answer": int(batch["answer"].sum())})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_measure_counts_what_is_right(monkeypatch):
    # Four gaps: right, wrong, right and a digit, wrong and the common token.
    guesses = torch.nn.functional.one_hot(torch.tensor([1, 2, 5, 0]), 6).float()
    monkeypatch.setattr(train_encoder, "fill", lambda model, batch: guesses)
    batch = {"targets": torch.tensor([[1, 3, 5, 4]]), "answer": torch.ones(1, 4, dtype=torch.bool)}
    found = measure(SimpleNamespace(), [batch], common=4, digits=torch.tensor([5]))
    assert found == {"all": 0.5, "no digits": 0.3333, "most frequent token": 0.25}


def test_the_script_writes_what_ships(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(train_encoder, "LOCALES", ("ro", "bg"))
    monkeypatch.setattr(train_encoder, "documents", few)
    tokenizer.save_pretrained(tmp_path / "t")
    command = f"x --out {tmp_path} --which b --steps 2 --batch 4 --texts 8 --tokenizer {tmp_path / 't'}"
    monkeypatch.setattr(sys, "argv", command.split())
    train_encoder.main()
    folder = tmp_path / "encoder-b"
    model, same = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(same) == len(tokenizer)
    assert model.dtype == torch.float16
    quality = json.loads((folder / "quality.json").read_text())
    assert quality["seed"] == 1
    assert set(quality["held-out masked accuracy"]) == {"ro", "bg"}
    assert str(tmp_path) not in (folder / "quality.json").read_text()
