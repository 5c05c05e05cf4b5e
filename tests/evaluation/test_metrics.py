"""MetaICL's metrics, against golden values and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from limbeck.core.check import LimbeckError
from limbeck.evaluation.metrics import accuracy, exact_match, macro_f1, setting_score, task_score

GOLDEN = Path(__file__).parents[1] / "golden/metaicl-evaluation"
CASES = json.loads((GOLDEN / "macro_f1.json").read_text())["items"]


@pytest.mark.parametrize("case", CASES)
def test_golden_scores(case):
    predictions, gold = case["in_predictions"], case["in_gold"]
    assert accuracy(predictions, gold) == case["out_accuracy"]
    if "out_macro_f1" in case:
        assert macro_f1(predictions, gold) == pytest.approx(case["out_macro_f1"], abs=1e-12)
        assert macro_f1(predictions, gold) != pytest.approx(case.get("bad_macro_f1_all_labels"), abs=1e-6)
        wanted = f1_score(gold, predictions, labels=sorted(set(gold)), average="macro", zero_division=0)
        assert macro_f1(predictions, gold) == pytest.approx(wanted, abs=1e-12)


def test_classification_is_scored_by_f1_and_the_rest_by_accuracy():
    predictions, gold = CASES[0]["in_predictions"], CASES[0]["in_gold"]
    assert task_score("classification", predictions, gold) == macro_f1(predictions, gold)
    assert task_score("multi-choice", predictions, gold) == task_score("free-form", predictions, gold) == 0.5


def test_exact_match_forgives_space_and_nothing_else():
    assert exact_match([" 5  May\n2020", "5 may 2020"], ["5 May 2020", "5 May 2020"]) == 0.5


def test_golden_setting_score():
    z = np.load(GOLDEN / "setting_score.npz")
    score = setting_score(z["in_score_task_seed"].tolist())
    assert score.average == pytest.approx(float(z["ref_average"]), abs=1e-12)
    assert score.worst == pytest.approx(float(z["ref_worst_seed"]), abs=1e-12)
    assert score.worst != pytest.approx(float(z["bad_worst_of_seed_averages"]), abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(["a"], ["a", "b"]), "there are 1 predictions, but 2 gold answers"),
        (lambda: macro_f1([], []), "there is nothing to compare"),
        (lambda: setting_score([]), "a setting needs at least one task with one seed"),
        (lambda: setting_score([[0.5, 0.6], [0.5]]), r"tasks have different numbers of seeds: \[2, 1\]"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
