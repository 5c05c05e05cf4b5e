"""A teacher behind an API: any server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, transformers serve ...).

Requests run side by side. What fails in passing (429, 5xx, time-outs, cut connections, broken JSON) is asked again,
later and later, and not before the server's Retry-After; every reply is kept in ``Responses`` the moment it comes. So a
run that was killed asks only for what is missing when it is started again, and nothing is paid for twice.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event, Lock
from typing import Any

from limbeck.core.check import LimbeckError, require
from limbeck.sources.patience import Patience, pause
from limbeck.sources.replies import Api, Fault, Prompt, Request, Said, usage, write_request
from limbeck.sources.responses import Responses, Spent, Usage
from limbeck.sources.wire import Wire


@dataclass(frozen=True, kw_only=True)
class Service:
    """How a served teacher is asked; the Config of a method that takes one inherits these settings."""

    served_model: str | None = None
    """Name of a served teacher at its server; by default the only one that the server lists."""
    api: Api = "chat"
    """How a served teacher is asked: "chat" answers prompts as messages, "completions" continues their text."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key of a served teacher; servers of one's own need none."""
    concurrency: int = 16
    """Requests to a served teacher under way at a time; a choice."""
    timeout: float = 120.0
    """Seconds without a byte from a served teacher after which a request has failed; a choice."""
    attempts: int = 8
    """Failures of one request in a row before the run stops; a choice: with eight, they are a minute apart in all."""
    price: tuple[float, float] | None = None
    """Price of a million tokens in and of a million out of a served teacher, to say what it cost."""
    responses: Path | None = None
    """SQLite file of all replies of served teachers, to share among runs; by default responses.sqlite in --out."""


class Server:
    """A model at ``url``, asked as ``service`` says; replies are kept in ``path`` unless ``service`` names a file."""

    def __init__(self, url: str, service: Service = Service(), path: Path = Path("responses.sqlite")) -> None:
        require(service.concurrency >= 1, f"--concurrency {service.concurrency}: expected at least 1 request at a time")
        require(service.timeout > 0, f"--timeout {service.timeout}: expected seconds above 0")
        self.service, self.wire = service, Wire(url, service.key_env, service.timeout)
        self.url = self.wire.url
        self.patience = Patience(self.url, service.attempts)
        self._lock, self._found, self._paid = Lock(), 0, Spent()
        self._seen: set[str] = set()  # requests that this object has answered; again, they are nobody's news
        self.model = service.served_model or self._only_model()
        self.responses = Responses(service.responses or path)

    def texts(self, prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> list[list[Said]]:
        """What the model writes for every prompt: ``settings["n"]`` texts (1); see ``write_request``."""
        return self.all(write_request(self.model, prompt, self.service.api, settings) for prompt in prompts)

    def all(self, requests: Iterable[Request]) -> list[Any]:
        """What every request's ``read`` gives, in their order."""
        return [answer for _, answer in sorted(self.answers(requests), key=lambda pair: pair[0])]

    def answers(self, requests: Iterable[Request]) -> Iterator[tuple[int, Any]]:
        """Number of a request and what its ``read`` gives, as they come in; ``requests`` may be endless.

        Raises ``LimbeckError`` for the first request that cannot be answered. What is under way then (or when the
        caller stops) is waited for and kept: it will have been paid for.
        """
        todo, stop, under_way = enumerate(requests), Event(), dict[Future[Any], int]()
        pool = ThreadPoolExecutor(self.service.concurrency, "served")
        try:
            while True:
                for number, request in islice(todo, 2 * self.service.concurrency - len(under_way)):
                    under_way[pool.submit(self._answer, request, stop)] = number
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), future.result()
        except KeyboardInterrupt:
            print("limbeck: keeping what is under way; interrupt again to lose it", file=sys.stderr)
            raise
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def bill(self) -> dict[str, Any]:
        """What was asked of the server and paid by this object, and in all as the file of replies has it."""
        total = self.responses.spent().get(self.model, Spent())
        counts = {"kept": self._found, "failed": self.patience.failed}
        return {"model": self.model, **counts, "now": self._priced(self._paid), "in_all": self._priced(total)}

    def receipt(self) -> str:
        """The bill in one line."""
        said = self.bill()
        now, total = said["now"], said["in_all"]
        words = f"{self.model}: {now['replies']} replies asked for, {said['kept']} from {self.responses.path}"
        words += f"; {now['tokens_in']} tokens in and {now['tokens_out']} out"
        return words + (f" cost {now['cost']:.4f}, {total['cost']:.4f} in all" if "cost" in now else "")

    def close(self) -> None:
        """Close connections and the file of replies."""
        self.wire.close()
        self.responses.close()

    def __repr__(self) -> str:
        return f"Server({self.url!r}, model={self.model!r}, api={self.service.api!r})"

    def _answer(self, request: Request, stop: Event) -> Any:
        """The answer to a request, from the file or from the server."""
        content = {"server": self.url, "path": request.path, **request.body}
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        while (reply := self.responses.find(key)) is None:
            owner = self.responses.claim(key, self._lease())
            if owner is None:  # somebody else is asking it
                pause(stop, 0.1)
                continue
            try:
                return self._ask(key, owner, request, stop)
            except BaseException:
                self.responses.release(key, owner)
                raise
        with self._lock:
            self._found += key not in self._seen
            self._seen.add(key)
        return self._reread(request, reply)

    def _ask(self, key: str, owner: str, request: Request, stop: Event) -> Any:
        """Ask until there is an answer, while holding the claim on it."""

        def hold(seconds: float) -> None:
            self.responses.claim(key, self._lease() + seconds, owner)

        return self.patience.until_answered(lambda: self._once(key, request), _shown(request), stop, hold)

    def _once(self, key: str, request: Request) -> Any:
        """One attempt. A reply is kept before anything else is done with it, unless it is of no use."""
        reply = self.wire.post(request)
        cost = usage(reply)
        try:
            answer = request.read(reply)
        except Fault as fault:
            self.responses.refuse(self.model, str(fault), cost)
            self._pay(cost, used=False)
            raise
        shown = json.dumps({"path": request.path, **request.body})
        kept = self.responses.keep(key, self.model, shown, reply, cost)
        with self._lock:
            self._seen.add(key)
        self._pay(cost, used=kept == reply)
        return answer if kept == reply else self._reread(request, kept)

    def _lease(self) -> float:
        """Seconds for which a request is claimed: longer than an attempt can take."""
        return self.patience.closed() + self.service.timeout + 60.0

    def _reread(self, request: Request, reply: Mapping[str, Any]) -> Any:
        try:
            return request.read(reply)
        except Fault as fault:
            raise LimbeckError(
                f"{self.responses.path}: a reply there is of no use: {fault}; name another file"
            ) from None

    def _pay(self, cost: Usage, used: bool) -> None:
        """Add a reply to what this object has paid for."""
        new = (1, *cost[:2], not cost.reported, 0, 0, 0) if used else (0, 0, 0, 0, 1, *cost[:2])
        with self._lock:
            self._paid = Spent(*map(sum, zip(self._paid, new, strict=True)))

    def _priced(self, spent: Spent) -> dict[str, Any]:
        price = self.service.price
        return spent._asdict() | ({} if price is None else {"cost": round(spent.cost(price), 6)})

    def _only_model(self) -> str:
        """The name of the model that the server lists, if it is one."""
        names = self.patience.until_answered(
            self.wire.models, "list its models, which --served-model spares it", Event(), attempts=3
        )
        shown = ", ".join(names[:8]) or "none"
        require(len(names) == 1, f"{self.url} lists the models {shown}; name one with --served-model")
        return names[0]


def _shown(request: Request) -> str:
    """A request as a reader recognises it: the beginning of its prompt, or the end of its chat."""
    prompt = request.body.get("prompt") or request.body["messages"][-1].get("content")
    return f"answer the prompt {str(prompt)[:60]!r}"
