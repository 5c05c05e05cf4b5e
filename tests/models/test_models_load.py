"""Models by name: every kind from disk, whole and in silence; what is broken or incomplete is one sentence."""

from __future__ import annotations

import json
import logging
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch
import transformers

from limbeck.core.check import LimbeckError
from limbeck.core.save import load_tensors, save_tensors
from limbeck.models.load import Kind, load_model, load_network, load_tokenizer, place

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in tiny_llms.KINDS:
        tiny_llms.save(kind, folder / kind)
    tokenizer = tiny_llms.tokenizer()
    config = transformers.BertConfig(vocab_size=len(tokenizer), **BERT)
    transformers.BertForMaskedLM(config).to(torch.bfloat16).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A model to break."""
    return Path(shutil.copytree(saved / "llama", tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("bert", "masked", "BertForMaskedLM"),
        ("bert", "base", "BertModel"),
        ("bert", "saved", "BertForMaskedLM"),
        ("llama", "causal", "LlamaForCausalLM"),
        ("llama", "base", "LlamaModel"),
        ("llama", "language", "LlamaForCausalLM"),
        ("t5", "language", "T5ForConditionalGeneration"),
        ("t5", "base", "T5Model"),
    ],
)
def test_models_load_from_disk(saved: Path, name: str, kind: Kind, expected: str) -> None:
    model, tokenizer = load_model(saved / name, kind)
    assert type(model).__name__ == expected
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer("good film").input_ids == tiny_llms.tokenizer()("good film").input_ids
    half = load_network(str(saved / name), kind, "auto" if name == "bert" else "bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_nothing_is_printed_and_what_was_set_comes_back(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hub = transformers.utils.logging
    hub.set_verbosity(logging.INFO)
    hub.enable_progress_bar()
    try:
        load_model(saved / "bert", "base")  # a masked LM has a head that a base model does not read
        assert capfd.readouterr() == ("", "")
        assert hub.get_verbosity() == logging.INFO
        assert hub.is_progress_bar_enabled()
        with pytest.raises(LimbeckError):
            load_model(saved / "nothing", "base")
        assert hub.is_progress_bar_enabled()
    finally:
        hub.set_verbosity_warning()


def test_weights_that_would_be_random_are_refused(saved: Path, tmp_path: Path, copy: Path) -> None:
    model, tokenizer = load_model(saved / "bert", "base")
    assert model.pooler is None, "the masked LM has none"
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(LimbeckError, match=r"no weights for cls.predictions.* as a masked model it would be random"):
        load_model(tmp_path / "base", "masked")
    weights = copy / "model.safetensors"
    whole = load_tensors(weights)[0]
    save_tensors(weights, {name: value for name, value in whole.items() if "layers.1" not in name}, {"format": "pt"})
    for kind in ("causal", "language", "saved", "base"):
        with pytest.raises(LimbeckError, match=r"holds no weights for \S*layers\.1\.\S* \(9 in all\)"):
            load_network(copy, kind)


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | changes))

    return change


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(struct.pack("<I", 7))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "incomplete metadata"),
        (_pickled, "give a folder or a Hub id"),
        (_config(num_hidden_layers="two"), "field 'num_hidden_layers': TypeError"),
        (_config(num_attention_heads=0), "modulo by zero"),
        (_config(vocab_size=30), r"shape of lm_head\.weight \(2 in all\) is not what its config.json says"),
        (_config(model_type="x", auto_map={"AutoConfig": "x.C"}), "contains custom code"),
    ],
)
def test_what_is_broken_is_one_sentence(copy: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(copy)
    with pytest.raises(LimbeckError, match=f"cannot load '.*copy' as a language model: .*{said}") as told:
        load_model(copy, "language")
    assert "\n" not in str(told.value)


def test_a_class_that_transformers_does_not_have(copy: Path) -> None:
    _config(architectures=["LlamaForRhyme"])(copy)
    with pytest.raises(LimbeckError, match=r"as a saved model: .*LlamaForRhyme"):
        load_model(copy, "saved", "auto")


def test_a_tokenizer_that_is_broken_or_absent(copy: Path) -> None:
    for text in ("{", "[]"):
        (copy / "tokenizer.json").write_text(text)
        with pytest.raises(LimbeckError, match=r"cannot load the tokenizer of '.*copy': "):
            load_tokenizer(copy)


def test_a_shipped_model_is_a_folder_of_the_package() -> None:
    assert (Path(place("limbeck:atlas/weights/lm")) / "config.json").is_file()
    assert place("gpt2") == "gpt2"
    with pytest.raises(LimbeckError, match="limbeck:atlas/weights/nothing: this installation does not hold that model"):
        load_model("limbeck:atlas/weights/nothing", "base")


def test_an_encoder_is_no_causal_model(tmp_path):
    small = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertForMaskedLM(transformers.BertConfig(**small)).save_pretrained(tmp_path / "bert")
    with pytest.raises(LimbeckError, match=r"is an encoder .bert., which reads the tokens that it would have to"):
        load_network(tmp_path / "bert", "causal")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder"])
def test_a_path_that_is_none_is_told_as_one(name):
    with pytest.raises(LimbeckError, match=f"^cannot load .{name}.: no such folder; give a folder or a Hub id"):
        load_network(name, "base")
