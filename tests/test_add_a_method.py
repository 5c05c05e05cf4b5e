"""The method that docs/add-a-method.md adds: its code is taken out of the page and run."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from limbeck.cards import FIELDS, read_card

PAGE = Path(__file__).parents[1] / "docs" / "add-a-method.md"
SIZE = {"vocab_size": 23, "num_attention_heads": 2, "max_position_embeddings": 16}


@pytest.fixture(scope="module")
def method(tmp_path_factory):
    diff = re.search(r"```diff\n\+\+\+ src/limbeck/methods/encoders/hint\.py\n(.*?)```", PAGE.read_text(), re.S)
    path = tmp_path_factory.mktemp("encoders") / "hint.py"
    path.write_text("".join(line[1:] for line in diff[1].splitlines(keepends=True)))
    spec = importlib.util.spec_from_file_location("hint_of_the_page", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def bert(width, layers):
    return BertModel(BertConfig(hidden_size=width, intermediate_size=width, num_hidden_layers=layers, **SIZE))


def test_its_card_is_whole(method):
    assert set(FIELDS) <= set(read_card(Path(method.__file__)).fields)


def test_its_recipe_trains(method, tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(23, (8, 6))
    stream = [{"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}]
    student, teacher = bert(8, 1), bert(16, 2)
    first = method.hint(student, teacher, stream, method.Config(steps=1, lr=1e-2))["loss"]
    assert method.hint(student, teacher, stream, method.Config(steps=40, lr=1e-2))["loss"] < 0.8 * first
