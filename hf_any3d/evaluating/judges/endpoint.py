"""A judge behind an HTTP endpoint that speaks OpenAI's chat completions, a hosted one or a server of one's own."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from hf_any3d.evaluating.judges.base import JudgeError

KEY_VARIABLE = "OPENAI_API_KEY"
PUBLISHED_SETTINGS = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2048}
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 120.0
_LARGEST_REPLY = 2**22


class EndpointJudge:
    """Asks a model behind `POST {base_url}/chat/completions`.

    Replies that say "later" (429, 5xx), broken connections and replies that are no chat completion are asked for
    again, after waits that double, or as long as the endpoint says.

    Args:
        model: Name of the model, as the endpoint knows it.
        base_url: Such as "https://api.openai.com/v1".
        settings: Fields of the request that differ from the published ones; None leaves a field out.
        key_variable: Environment variable with the key. No key is sent where it is not set.
        timeout: Seconds to wait for a reply.
        attempts: How often to ask before giving up.
        first_wait: Seconds before the second attempt.
        at_once: Replies asked for at the same time.
        sleep: Waits.

    Raises:
        ValueError: The address is none, or a number is out of range.
    """

    reads_prompt = True
    kinds = ("class", "same", "caption")

    def __init__(
        self,
        model: str,
        base_url: str,
        settings: Mapping[str, Any] | None = None,
        key_variable: str = KEY_VARIABLE,
        timeout: float = 60.0,
        attempts: int = 6,
        first_wait: float = 1.0,
        at_once: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ):
        address = urllib.parse.urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
            raise ValueError(f"base_url is {base_url!r}; expected an address such as https://api.openai.com/v1")
        for name, value in (("attempts", attempts), ("at_once", at_once)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout}; expected more than 0 seconds")
        self.name, self.at_once, self.revisions = model, at_once, set()
        chosen = {**PUBLISHED_SETTINGS, **(settings or {})}
        self.settings = {key: value for key, value in chosen.items() if value is not None}
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._key_variable, self._timeout = key_variable, timeout
        self._attempts, self._first_wait, self._sleep = attempts, first_wait, sleep
        # A redirect would carry the key to a place that nobody named.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(self, text: str) -> str:
        """The model's reply to a prompt.

        Raises:
            JudgeError: The endpoint refuses, or does not reply in all attempts.
        """
        body = json.dumps({"model": self.name, "messages": [{"role": "user", "content": text}], **self.settings})
        trouble = ""
        for attempt in range(self._attempts):
            try:
                return self._read(self._ask(body.encode()))
            except urllib.error.HTTPError as error:
                with error:
                    trouble = f"{error.code} {error.reason} {_short(error)}".strip()
                if error.code not in _PASSING:
                    raise JudgeError(f"{self._url}: {trouble}{self._hint(error.code)}") from None
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError) as error:
                trouble, wait = str(error) or type(error).__name__, None
            if attempt + 1 < self._attempts:
                # A little by chance, so that several askers do not come back together.
                doubled = self._first_wait * 2**attempt * random.uniform(1.0, 1.25)
                self._sleep(min(_LONGEST_WAIT, doubled if wait is None else wait))
        raise JudgeError(f"{self._url}: no reply in {self._attempts} attempts; the last one: {trouble}")

    def _ask(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(self._key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, body, headers, method="POST")
        with self._opener.open(request, timeout=self._timeout) as response:
            return response.read(_LARGEST_REPLY)

    def _read(self, body: bytes) -> str:
        try:
            told = json.loads(body)
            reply = told["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{body[:80]!r} is no chat completion") from None
        if not isinstance(reply, str):
            raise ValueError(f"the reply's content is {str(reply)[:80]!r}; expected text")
        self.revisions.add(" ".join(str(told[key]) for key in ("model", "system_fingerprint") if told.get(key)))
        return reply

    def _hint(self, code: int) -> str:
        return f"; is {self._key_variable} the right key?" if code in (401, 403) else ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _short(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(300).decode(errors="replace").split())
    except (OSError, http.client.HTTPException):
        return ""


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # a date; the usual wait does
