"""A served teacher over real HTTP: nothing is lost, repeated or paid for twice, whatever the server does."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from serving import Parrot, Serving

from limbeck.core.check import LimbeckError
from limbeck.sources import patience
from limbeck.sources.patience import Patience
from limbeck.sources.replies import Fault
from limbeck.sources.served import Server, Service
from limbeck.sources.wire import address, is_url, retry_after

FEW = {"max_tokens": 20}
PASSING = ["429", "429:0.1", "429:date", "500", "503", "drop", "slow:4", "late:4", "cut", "broken", "html", "error"]
ANSWERED = ("late:4", "cut", "broken", "html", "error")  # the server had answered these, and was paid


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(patience, "FIRST", 0.01)


@pytest.fixture
def server():
    with Serving(Parrot()) as serving:
        yield serving


def ask(serving: Serving, folder: Path, **settings) -> Server:
    return Server(serving.url, Service(**{"timeout": 30.0, **settings}), folder / "responses.sqlite")


def prompts(count: int) -> list[str]:
    return [f"word {n}" for n in range(count)]


def texts(said) -> list[str]:
    return [text for choices in said for text, _ in choices]


def asked(answered) -> Counter[str]:
    return Counter(body["messages"][0]["content"] for body in answered)


def test_answers_stand_in_the_order_of_their_prompts(server, tmp_path):
    teacher = ask(server, tmp_path)
    assert teacher.model == "parrot", "the only one that is listed"
    assert texts(teacher.texts(prompts(30), FEW)) == [f"word {n} again" for n in range(30)]
    assert teacher.texts(["a b", [{"role": "user", "content": "c d"}]], {"n": 2, "max_tokens": 1}) == [
        [("a b again", False), ("a b again 1", False)],
        [("c d again", False), ("c d again 1", False)],
    ]
    plain = ask(server, tmp_path, api="completions")
    assert texts(plain.texts(["a"], FEW)) == ["a again"]
    assert server.answered[-1] == {"model": "parrot", "max_tokens": 20, "prompt": "a"}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_loses_and_repeats_nothing(server, tmp_path, fault):
    teacher = ask(server, tmp_path, timeout=1.0 if fault.endswith(":4") else 30.0)
    server.fail("", fault, fault)
    assert texts(teacher.texts(prompts(6), FEW)) == [f"word {n} again" for n in range(6)]
    extra = 2 if fault in ANSWERED else 0
    assert sum(asked(server.answered).values()) == 6 + extra
    bill = teacher.bill()
    assert (bill["failed"], bill["now"]["replies"], bill["in_all"]["replies"]) == (2, 6, 6)


def test_what_was_answered_is_never_asked_again(server, tmp_path):
    first = ask(server, tmp_path).texts(prompts(5), FEW)
    later = ask(server, tmp_path)
    assert later.texts([*prompts(7), "word 1"], FEW)[:5] == first
    assert asked(server.answered) == Counter(prompts(7))
    assert later.bill()["kept"] == 5
    later.texts(prompts(1), {"max_tokens": 21})
    assert len(server.answered) == 8, "another request"


def test_replies_on_file_need_no_server(tmp_path):
    with Serving(Parrot()) as server:
        said = ask(server, tmp_path).texts(prompts(3), FEW)
    assert ask(server, tmp_path, served_model="parrot").texts(prompts(3), FEW) == said


def test_requests_run_side_by_side_but_not_too_many(tmp_path):
    with Serving(Parrot(), pace=0.03) as server:
        ask(server, tmp_path, concurrency=3).texts(prompts(12), FEW)
    assert 1 < server.most <= 3


def test_answers_come_as_they_are_ready_and_the_caller_may_stop(server, tmp_path):
    teacher = ask(server, tmp_path, concurrency=2)

    def endless():
        n = 0
        while True:
            n += 1
            yield request(teacher, f"word {n}")

    coming = teacher.answers(endless())
    seen = [next(coming)[0] for _ in range(5)]
    coming.close()
    assert sorted(seen) == sorted(set(seen))
    assert len(server.answered) <= 9
    assert set(server.answered[0]) == {"model", "messages", "max_tokens"}


def request(teacher: Server, prompt: str):
    from limbeck.sources.replies import write_request

    return write_request(teacher.model, prompt, "chat", FEW)


def test_the_server_says_when_to_come_back_and_everybody_hears_it(server, tmp_path):
    teacher = ask(server, tmp_path, concurrency=4)
    server.fail("429:1")
    teacher.texts(prompts(12), FEW)
    waited = max(b - a for a, b in zip(server.times, server.times[1:], strict=False))
    assert waited > 0.35, "those under way come in, then nobody asks"


def test_a_busy_server_is_waited_for_as_long_as_it_answers_anybody(server, tmp_path):
    teacher = ask(server, tmp_path, concurrency=2, attempts=3)
    server.fail(*(["429", "429", ""] * 6))
    assert len(teacher.texts(prompts(8), FEW)) == 8
    assert teacher.bill()["failed"] == 12


@pytest.mark.parametrize(
    ("fault", "attempts", "message"),
    [
        (
            "500",
            3,
            r"it answers with status 500 \(.*no, 500.*\); gave up after 3 attempts to answer .* 'word 0'",
        ),
        ("cut", 2, "the connection failed .*gave up after 2 attempts"),
        ("slow:4", 1, "no reply within 0.5 s; gave up after 1 attempts"),
        ("broken", 2, "expected JSON, but got"),
        ("html", 2, "expected JSON, but got b'<html>502"),
        ("error", 2, "upstream is tired"),
        ("choices", 5, r"expected 1 choices, but got 2 \(numbered \[0, 0\]\); gave up after 2 attempts"),
        ("429:700", 1, r"asks to wait 700 s \(.*\); start the same command again then"),
        ("400", 1, r"refuses a request with status 400 \(.*no, 400.*\); change the request"),
        ("401", 1, "refuses .* 401 .*; put the key into the environment variable A_KEY"),
        ("404", 1, r"refuses .* 404 .*; check the address, which mostly ends in /v1, and --served-model"),
        ("quota", 1, "refuses .* 429 .*; see to the account"),
    ],
)
def test_what_does_not_pass_is_said_in_one_sentence(server, tmp_path, monkeypatch, fault, attempts, message):
    monkeypatch.setenv("A_KEY", "sk-hidden")
    teacher = ask(server, tmp_path, attempts=attempts, key_env="A_KEY", timeout=0.5 if "slow" in fault else 30.0)
    server.fail(*[fault] * attempts)
    with pytest.raises(LimbeckError, match=message) as told:
        teacher.texts(["word 0"], FEW)
    assert str(told.value).startswith(server.url)
    server.faults.clear()
    assert "sk-hidden" not in str(told.value)
    if fault != "slow:4":
        assert teacher.texts(["word 0"], FEW) == [[("word 0 again", True)]], "the next attempt is not blocked"


def test_what_is_under_way_when_a_run_stops_is_kept(tmp_path):
    with Serving(Parrot(), pace=0.1) as server:
        teacher = ask(server, tmp_path, concurrency=4)
        server.fail("401")
        with pytest.raises(LimbeckError, match="401"):
            teacher.texts(prompts(40), FEW)
        paid = len(server.answered)
        assert 0 < paid < 10
        assert teacher.texts(prompts(6), FEW)[0] == [("word 0 again", True)]
        assert max(asked(server.answered).values()) == 1


def test_untrue_replies_are_billed(server, tmp_path):
    teacher = ask(server, tmp_path, price=(1.0, 3.0))
    server.fail("choices", "unpriced")
    teacher.texts(prompts(1), FEW)
    teacher.texts(["word 1"], FEW)
    now = teacher.bill()["now"]
    assert (now["replies"], now["unreported"], now["refused"]) == (2, 1, 1)
    read, wrote = now["tokens_in"] + now["refused_in"], now["tokens_out"] + now["refused_out"]
    assert read > 2
    assert now["cost"] == pytest.approx((read + 3 * wrote) / 1e6, abs=1e-6)


def test_the_key_is_sent_and_kept_nowhere(server, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-hidden")
    teacher = ask(server, tmp_path, key_env="A_KEY")
    teacher.texts(prompts(2), FEW)
    teacher.close()
    assert server.keys == ["Bearer sk-hidden"] * 2
    assert all(b"sk-hidden" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_server_of_several_models_asks_for_a_name(tmp_path):
    with Serving(Parrot(), models=("small", "large")) as server:
        with pytest.raises(LimbeckError, match="lists the models small, large; name one with --served-model"):
            ask(server, tmp_path)
        assert ask(server, tmp_path, served_model="large").model == "large"


def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        LimbeckError, match=r"127.0.0.1:9/v1: the connection failed.*after 3 attempts to list its models, wh"
    ):
        Server("http://127.0.0.1:9", Service(timeout=2), tmp_path / "r.sqlite")


def test_a_missing_client_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(LimbeckError, match=r"needs the openai client; install it with pip install 'limbeck\[served\]'"):
        Server("http://127.0.0.1:9", path=tmp_path / "r.sqlite")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"concurrency": 0}, "--concurrency 0"), ({"attempts": 0}, "--attempts 0"), ({"timeout": 0.0}, "--timeout 0.0")],
)
def test_settings_that_make_no_sense_are_refused(server, tmp_path, settings, message):
    with pytest.raises(LimbeckError, match=message):
        ask(server, tmp_path, **settings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://Localhost:8000", "http://localhost:8000/v1"),
        ("https://a.example/v1/", "https://a.example/v1"),
        ("https://a.example/openai/deployments/x", "https://a.example/openai/deployments/x"),
    ],
)
def test_addresses(given, expected):
    assert address(given) == expected
    assert is_url(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ftp://a/v1", "expected the address of a server such as"),
        ("http:///v1", "expected the address"),
        ("http://a/v1?key=1", "expected the address"),
        ("http://me:secret@a.example/v1", "the address of a.example holds a name or password; put a key into an env"),
    ],
)
def test_addresses_that_are_none(given, message):
    with pytest.raises(LimbeckError, match=message):
        address(given)


def test_waits_that_a_server_asks_for():
    assert retry_after({}) is None
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": formatdate(1000.0, usegmt=True)}, now=990.0) == 10.0
    assert retry_after({"retry-after": formatdate(1000.0, usegmt=True)}, now=1990.0) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "nan"}) is None


def test_waits_double_up_to_a_minute_and_differ(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(patience, "FIRST", 0.5)
    monkeypatch.setattr(patience, "pause", lambda stop, seconds: waits.append(seconds))

    def never():
        raise Fault("no")

    with pytest.raises(LimbeckError, match="x: no; gave up after 12 attempts to try"):
        Patience("x", 12).until_answered(never, "try", Event())
    waits = [seconds for seconds in waits if seconds]
    tops = [min(60.0, 0.5 * 2**n) for n in range(11)]
    assert len(waits) == 11
    assert all(top / 2 <= seconds <= top for seconds, top in zip(waits, tops, strict=True))
    assert len({seconds / top for seconds, top in zip(waits, tops, strict=True)}) == 11


def client(url: str, folder: Path, count: int) -> tuple[Any, Any]:
    """A process that asks ``count`` prompts, four at a time, and where it tells what it got."""
    fork = multiprocessing.get_context("fork")
    hears, tells = fork.Pipe(duplex=False)

    def run() -> None:
        teacher = Server(url, Service(concurrency=4), folder / "responses.sqlite")
        tells.send([texts(teacher.texts(prompts(count), FEW)), teacher.bill()])

    process = fork.Process(target=run)
    process.start()
    return process, hears


@pytest.fixture
def process():
    """A server in a process of its own, 20 ms a reply."""
    script = Path(__file__).parents[1] / "serving.py"
    running = subprocess.Popen([sys.executable, str(script), "0", "0.02"], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    yield running.stdout.readline().strip().removesuffix("/v1")
    running.kill()
    running.wait()
    running.stdout.close()


def log(url: str) -> Counter[str]:
    with urllib.request.urlopen(f"{url}/log") as reply:
        return asked(json.load(reply)["answered"])


def test_a_killed_run_asks_only_for_what_is_missing(process, tmp_path):
    running, _ = client(process, tmp_path, 400)
    while sum(log(process).values()) < 30:
        time.sleep(0.02)
        assert running.is_alive()
    running.kill()
    running.join()
    assert running.exitcode == -9
    paid = log(process)
    for fault in ("500", "cut", "429"):
        urllib.request.urlopen(f"{process}/fail/{fault}").close()
    running, hears = client(process, tmp_path, 60)
    said, bill = hears.recv()
    running.join()
    assert said == [f"word {n} again" for n in range(60)]
    assert bill["kept"] >= min(60, sum(paid.values()) - 4), "all but the four under way when the run was killed"
    twice = {prompt: times for prompt, times in log(process).items() if times > 1}
    assert sum(twice.values()) - len(twice) <= 4 + 1, "those four, and the one that was cut"
    with sqlite3.connect(tmp_path / "responses.sqlite") as db:
        kept = [
            json.loads(request)["messages"][0]["content"] for (request,) in db.execute("SELECT request FROM replies")
        ]
    assert len(kept) == len(set(kept)) == bill["in_all"]["replies"]


def test_several_processes_pay_once(process, tmp_path):
    clients = [client(process, tmp_path, 50) for _ in range(3)]
    found = [hears.recv() for _, hears in clients]
    for running, _ in clients:
        running.join()
    assert found[0][0] == found[1][0] == found[2][0] == [f"word {n} again" for n in range(50)]
    assert log(process) == Counter(prompts(50))
    assert sum(bill["now"]["replies"] for _, bill in found) == 50
