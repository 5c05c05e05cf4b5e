"""``limbeck context``: the three commands on files, and one sentence with exit code 2 for each mistake."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_llms
import torch

from limbeck.cli import main
from limbeck.context.distiller import Distiller
from limbeck.context.host import load_llm
from limbeck.context.vectors import Vectors
from limbeck.core.check import LimbeckError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LLM, a distiller for it, demonstrations and tasks."""
    folder = tmp_path_factory.mktemp("world")
    llm = tiny_llms.save("gpt2", folder / "llm")
    small = tiny_llms.save("gpt2", folder / "small", width=8, layers=1, seed=1)
    lm, tokenizer = load_llm(llm)
    settings = {"length": 3, "limit": 20, "budget": 40, "context": 60}
    Distiller.build(lm, llm, tokenizer, small, **settings).save_pretrained(folder / "mend")
    tiny_llms.write_rows(folder / "demos.jsonl", tiny_llms.task().train[:4])
    tiny_llms.write_tasks(folder / "tasks")
    run(
        "context",
        "distill",
        "--distiller",
        folder / "mend",
        "--demos",
        folder / "demos.jsonl",
        "--out",
        folder / "v.safetensors",
    )
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_distill_writes_vectors_and_an_adapter(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "v.safetensors"
    flags = ("--distiller", world / "mend", "--demos", world / "demos.jsonl", "--out", out, "--peft", tmp_path / "peft")
    assert run("context", "distill", *flags) == 0
    assert "3 vectors in place of 12 tokens (4.0x shorter)" in capsys.readouterr().out
    expected = Distiller.from_pretrained(world / "mend").distill(tiny_llms.task().train[:4])
    assert torch.equal(Vectors.load(out).tensor, expected.tensor)
    assert {p.name for p in (tmp_path / "peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_distill_says_when_demonstrations_do_not_fit(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demos = tiny_llms.write_rows(tmp_path / "many.jsonl", tiny_llms.task(rows=20).train)
    assert (
        run("context", "distill", "--distiller", world / "mend", "--demos", demos, "--out", tmp_path / "v.safetensors")
        == 0
    )
    assert "read 13 of 20 demonstrations" in capsys.readouterr().out


def test_complete_chooses_or_writes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--distiller", world / "mend", "--vectors", world / "v.safetensors", "--input", "great film")
    assert run("context", "complete", *flags, "--options", "good,bad") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = Vectors.load(world / "v.safetensors").score("great film", ["good", "bad"])
    assert {name: float(score) for name, score in rows} == pytest.approx(expected, abs=1e-4)
    assert rows[0][0] == max(expected, key=expected.__getitem__)
    assert run("context", "complete", *flags, "--tokens", 4) == 0
    written = capsys.readouterr().out.strip()
    assert written == Vectors.load(world / "v.safetensors").complete("great film", tokens=4)


def test_an_llm_that_has_moved_is_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--vectors", world / "v.safetensors", "--input", "great film", "--options", "good,bad")
    assert run("context", "complete", *flags) == 0
    before = capsys.readouterr().out
    shutil.copytree(world / "llm", tmp_path / "moved")
    assert run("context", "complete", *flags, "--llm", tmp_path / "moved") == 0
    assert capsys.readouterr().out == before
    assert run("context", "complete", *flags, "--llm", tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def test_an_llm_that_is_gone_asks_for_llm(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Distiller.from_pretrained(world / "mend")
    whole.host = replace(whole.host, llm=str(tmp_path / "gone"))
    whole.save_pretrained(tmp_path / "mend")
    vectors = whole.distill(tiny_llms.task().train[:4])
    vectors.save(tmp_path / "v.safetensors")
    flags = ("--tasks", world / "tasks", "--shots", 4, "--seeds", 0, "--queries", 2, "--out", tmp_path / "eval")
    for words in (
        ("complete", "--vectors", tmp_path / "v.safetensors", "--input", "great film", "--tokens", 2),
        ("evaluate", "--distiller", tmp_path / "mend", *flags),
    ):
        assert run("context", *words) == 2
        assert "gone, but there is no such folder any more; say where it is with --llm" in capsys.readouterr().err
        assert run("context", *words, "--llm", world / "llm") == 0
    with pytest.raises(LimbeckError, match=r"these vectors: made for the LLM in .*gone, but there is no such folder"):
        vectors.complete("great film")


def test_evaluate_writes_a_table(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--tasks", world / "tasks", "--shots", 4, "--seeds", 0, 1, "--queries", 5, "--out", tmp_path / "eval")
    assert run("context", "evaluate", "--distiller", world / "mend", *flags) == 0
    assert "zero-shot" in capsys.readouterr().out
    said = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {*said["table"]["rows"]["all"]} == {"zero-shot", "ICL", "vectors"}
    assert len(said["rows"]) == 3 * 2 * 2  # contexts, tasks, seeds
    assert (tmp_path / "eval" / "table.md").read_text().count("\n| ") == 2 + 5


def test_the_processor_serves_where_it_is_asked_for(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = torch.device("mps" if torch.cuda.is_available() else "cuda")  # whatever is sent there fails
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: absent)
    out = tmp_path / "v.safetensors"
    for words in (
        ("distill", "--distiller", world / "mend", "--demos", world / "demos.jsonl", "--out", out),
        ("complete", "--vectors", world / "v.safetensors", "--input", "great film", "--options", "good,bad"),
        ("evaluate", "--distiller", world / "mend", "--tasks", world / "tasks", "--shots", 4, "--out", tmp_path / "e"),
    ):
        assert run("context", *words, "--device", "cpu") == 0
        with pytest.raises((RuntimeError, AssertionError)):
            run("context", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("distill --distiller {w}/mend --demos {w}/none.jsonl --out {t}/v.safetensors", "no such file"),
        ("distill --distiller {w}/mend --demos {t}/empty.jsonl --out {t}/v.safetensors", "the file is empty"),
        (
            "distill --distiller {w}/mend --demos {t}/broken.jsonl --out {t}/v.safetensors",
            "broken.jsonl:2: expected one",
        ),
        ("distill --distiller {w}/mend --demos {w}/demos.jsonl --out {t}/v.bin", "ends in .safetensors"),
        ("distill --distiller {w}/llm --demos {w}/demos.jsonl --out {t}/v.safetensors", "a distiller's configuration"),
        ("distill --distiller {t} --demos {w}/demos.jsonl --out {t}/v.safetensors", "it has no config.json"),
        ("complete --vectors {w}/v.safetensors --input x --options good", "two or more options"),
        ("complete --vectors {w}/v.safetensors --input x --options good,good", "options must differ"),
        ("complete --vectors {w}/v.safetensors --input x --options good,,bad", "no token"),
        ("complete --vectors {w}/v.safetensors --input=", "--input is empty"),
        ("complete --vectors {t}/cut.safetensors --input x", "not a whole safetensors file"),
        ("complete --vectors {w}/mend/model.safetensors --input x", "the file holds something else"),
        ("complete --vectors {w}/v.safetensors --input x --distiller {t}/other", "writes for another LLM"),
        ("evaluate --distiller {w}/mend --tasks {w}/tasks --out {t}/e", "12 training rows, but 16 demonstrations"),
        ("evaluate --distiller {w}/mend --tasks {w}/tasks --partition p --out {t}/e", "partitions/p.json"),
        ("evaluate --distiller {w}/mend --tasks {w}/tasks --queries 0 --out {t}/e", "--queries 0: expected"),
        (
            "distill --distiller {w}/mend --demos {w}/demos.jsonl --out {t}/v.safetensors --device gpu",
            "invalid choice 'gpu'",
        ),
        ("complete --vectors {w}/v.safetensors --input x --device xpu", "--device xpu: PyTorch finds no xpu here"),
        ("evaluate --distiller {w}/mend --tasks {w}/tasks --shots 4 --out {t}/e --device xpu", "finds no xpu here"),
        ("evaluate --distiller {w}/mend --partition hr_to_hr --out {t}/e", "did you mean 'hr_to_lr'"),
    ],
)
def test_mistakes(words: str, message: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text((world / "demos.jsonl").read_text().splitlines()[0] + "\n{oops\n")
    (tmp_path / "cut.safetensors").write_bytes((world / "v.safetensors").read_bytes()[:-9])
    if "other" in words:
        lm, backbone = tiny_llms.build("gpt2", seed=7), tiny_llms.build("gpt2", width=8).transformer
        Distiller.build(lm, "other", tiny_llms.tokenizer(), backbone, length=3).save_pretrained(tmp_path / "other")
    before = sorted(tmp_path.iterdir())
    said = [word.format(w=world, t=tmp_path) for word in words.split(" ")]
    assert main(["context", *said]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_vectors_for_another_llm_are_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = Vectors.load(world / "v.safetensors")
    other = tiny_llms.save("gpt2", tmp_path / "llm", seed=9)
    moved = Vectors(
        vectors.tensor, type(vectors.host)(**{**vars(vectors.host), "llm": str(other)}), vectors.reading, 4, 12
    )
    moved.save(tmp_path / "v.safetensors")
    assert run("context", "complete", "--vectors", tmp_path / "v.safetensors", "--input", "great film") == 2
    assert "other weights" in capsys.readouterr().err
