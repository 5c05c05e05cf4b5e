"""One request to a server that speaks OpenAI's protocol: posted once, and what came of it said plainly.

The reply's JSON object comes back, a ``Fault`` for what may pass (429, 5xx, a time-out, a cut connection, broken JSON),
or a ``LimbeckError`` for what will not. Nothing is repeated here; the client's own retries are off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from limbeck.core.check import LimbeckError, first_line, require
from limbeck.sources.replies import Fault, Request

PATIENCE = 600.0  # seconds; a server that asks to wait longer is not waited for
AGAIN = (408, 409, 425, 429)  # of the refusals, those that pass; and all from 500 on
SPENT = "insufficient_quota"  # a 429 that does not pass: there is no money left
NAMED = ("model", "messages", "prompt")  # fields that the client wants by name


class Wire:
    """The client for the server at ``url``; ``key_env`` names the environment variable that holds its key."""

    def __init__(self, url: str, key_env: str, timeout: float) -> None:
        self.url, self.key_env, self.timeout = address(url), key_env, timeout
        try:
            import openai
        except ImportError:
            raise LimbeckError(
                f"{url}: a served teacher needs the openai client; install it with pip install 'limbeck[served]'"
            ) from None
        self.api = openai
        self.client = openai.OpenAI(
            base_url=self.url, api_key=os.environ.get(key_env) or "none", timeout=timeout, max_retries=0
        )

    def post(self, request: Request) -> dict[str, Any]:
        """The JSON object that answers ``request``."""
        said = {name: value for name, value in request.body.items() if name in NAMED}
        rest = {name: value for name, value in request.body.items() if name not in NAMED}
        end: Any = self.client.completions if request.path == "completions" else self.client.chat.completions
        return self._read(lambda: end.with_raw_response.create(**said, extra_body=rest))

    def models(self) -> list[str]:
        """Names of the models that the server lists."""
        listed = self._read(lambda: self.client.models.with_raw_response.list()).get("data")
        return [str(each.get("id")) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _read(self, call: Callable[[], Any]) -> dict[str, Any]:
        try:
            raw = call().http_response.content
        except self.api.APITimeoutError:
            raise Fault(f"no reply within {self.timeout:g} s") from None
        except self.api.APIStatusError as error:
            raise self._refusal(error) from None
        except self.api.APIConnectionError as error:
            raise Fault(f"the connection failed ({first_line(error.__cause__ or error)})") from None
        try:
            reply = json.loads(raw)
        except ValueError:
            raise Fault(f"expected JSON, but got {raw[:60]!r}") from None
        if not isinstance(reply, dict) or reply.get("error"):
            raise Fault(f"expected a JSON object that is no error, but got {str(reply)[:200]}")
        return reply

    def _refusal(self, error: Any) -> Exception:
        """A refusal that passes is a ``Fault``, any other stops the run."""
        status, said = error.status_code, " ".join(error.response.text.split())[:200] or "it says no more"
        seconds = retry_after(error.response.headers)
        if seconds is not None and seconds > PATIENCE:
            return LimbeckError(f"{self.url} asks to wait {seconds:.0f} s ({said}); start the same command again then")
        if (status in AGAIN or status >= 500) and error.code != SPENT:
            return Fault(f"it answers with status {status} ({said})", seconds, busy=status in (429, 503))
        advice = {404: "check the address, which mostly ends in /v1, and --served-model", 429: "see to the account"}
        advice |= dict.fromkeys((401, 403), f"put the key into the environment variable {self.key_env}")
        return LimbeckError(
            f"{self.url} refuses a request with status {status} ({said}); "
            f"{advice.get(status, 'change the request')}, and start the same command again"
        )


def is_url(name: str | Path) -> bool:
    """Whether a teacher's name is the address of a server."""
    return str(name).startswith(("http://", "https://"))


def address(url: str) -> str:
    """The base address of the protocol: what the user gave, with ``/v1`` where there is no path."""
    parts = urlsplit(url)
    require(
        is_url(url) and parts.hostname and not parts.query and not parts.fragment,
        f"expected the address of a server such as http://localhost:8000/v1, but got {url!r}",
    )
    require(
        parts.username is None and parts.password is None,
        f"the address of {parts.hostname} holds a name or password; put a key into an environment variable (--key-env)",
    )
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/") or "/v1", "", ""))


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a reply's headers ask to wait: ``Retry-After`` in seconds or as a date, or ``retry-after-ms``."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            seconds = float(said) / scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(said).timestamp() - (time.time() if now is None else now)
            except ValueError:
                continue
        if seconds == seconds:  # not NaN
            return max(seconds, 0.0)
    return None
