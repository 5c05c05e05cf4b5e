"""Replies on file: kept once, claimed by one, priced, and refused where the file is not what it should be."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from threading import Thread

import pytest

from limbeck.core.check import LimbeckError
from limbeck.sources.responses import Responses, Spent, Usage


@pytest.fixture
def file(tmp_path):
    responses = Responses(tmp_path / "replies" / "responses.sqlite")
    yield responses
    responses.close()


def keep(file: Responses, key: str, text: str = "yes", usage: Usage | None = None) -> dict:
    return file.keep(key, "m", "{}", {"text": text}, usage or Usage(3, 5, True))


def test_a_reply_is_found_again_by_whoever_opens_the_file(file):
    assert file.find("a") is None
    assert keep(file, "a", "ja \ud83d ☃") == {"text": "ja \ud83d ☃"}, "half a character, as servers do send"
    assert Responses(file.path).find("a") == {"text": "ja \ud83d ☃"}
    assert file.find("b") is None


def test_the_first_reply_wins_and_the_second_is_paid_for(file):
    keep(file, "a")
    assert keep(file, "a", "no") == {"text": "yes"}
    assert file.spent() == {"m": Spent(1, 3, 5, 0, 1, 3, 5)}


def test_one_claim_at_a_time(file):
    owner = file.claim("a", 60)
    assert owner
    assert file.claim("a", 60) is None
    assert file.claim("a", 60, owner) == owner, "its owner prolongs it"
    file.release("a", "somebody")
    assert file.claim("a", 60) is None
    file.release("a", owner)
    assert file.claim("a", -1)
    assert file.claim("a", 60), "its time was over"
    keep(file, "a")
    assert file.claim("a", 60) is None, "there is a reply"


def test_a_dead_process_holds_no_claim(file):
    code = "from limbeck.sources.responses import Responses\nfrom pathlib import Path\n"
    code += f"assert Responses(Path({str(file.path)!r})).claim('a', 1e6)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert file.claim("a", 60)


def test_a_claim_from_another_machine_stands_until_its_time_is_over(file):
    assert keep(file, "other")  # the file is made when it is first used
    with sqlite3.connect(file.path) as db:
        db.execute("INSERT INTO claims VALUES ('a', 'x', 'elsewhere', 1, 1e12), ('b', 'x', 'elsewhere', 1, 1.0)")
    assert file.claim("a", 60) is None
    assert file.claim("b", 60)


def test_threads_share_the_file(file):
    claims: list[str | None] = []
    threads = [Thread(target=lambda n: claims.append(file.claim(f"{n % 4}", 60)), args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claims) == 16
    assert sum(claim is not None for claim in claims) == 4


def test_a_forked_process_has_a_connection_of_its_own(file):
    keep(file, "a")
    child = os.fork()
    if not child:
        os._exit(0 if file.find("a") == {"text": "yes"} and keep(file, "b") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert file.find("b") == {"text": "yes"}


def test_what_was_spent(file):
    keep(file, "a")
    keep(file, "b", usage=Usage())
    file.refuse("m", "no choices", Usage(1, 1, True))
    file.refuse("n", "no choices", Usage(7, 2, True))
    assert file.spent() == {"m": Spent(2, 3, 5, 1, 1, 1, 1), "n": Spent(0, 0, 0, 0, 1, 7, 2)}
    assert file.spent()["m"].cost((2.0, 10.0)) == pytest.approx((4 * 2 + 6 * 10) / 1e6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"not a database" * 100), "cannot be used .*not a database.*name another file"),
        (lambda path: _run(path, "PRAGMA user_version = 9"), "expected replies in format 1, but the file has 9"),
        (lambda path: _run(path, "UPDATE replies SET reply = x'789c00'"), "the reply a is damaged"),
    ],
)
def test_a_file_that_is_damaged_is_named(file, damage, message):
    keep(file, "a")
    file.close()
    for beside in file.path.parent.glob("*-*"):
        beside.unlink()
    damage(file.path)
    with pytest.raises(LimbeckError, match=rf"responses\.sqlite.*{message}"):
        Responses(file.path).find("a")


def _run(path, sql: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(sql)
    db.close()
