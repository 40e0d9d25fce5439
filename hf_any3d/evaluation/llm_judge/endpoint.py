"""A judge behind an HTTP endpoint that speaks OpenAI's chat completions, a hosted one or a server of one's own."""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from hf_any3d.evaluation.llm_judge.base import JudgeError
from hf_any3d.evaluation.llm_judge.replies import whole_text

KEY_VARIABLE = "OPENAI_API_KEY"
PUBLISHED_SETTINGS = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2048}
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 120.0
_LARGEST_REPLY = 2**22
_LARGEST_REFUSAL = 2**14
_SHOWN = 300
# A shorter one is a word that servers without keys ask for, such as "none".
_SHORTEST_KEY = 8


class EndpointJudge:
    """Asks a model behind `POST {base_url}/chat/completions`.

    Replies that say "later" (429, 5xx), broken connections and replies that are no chat completion are asked for
    again, after waits that double, or as long as the endpoint says.

    Args:
        model: Name of the model, as the endpoint knows it.
        base_url: Such as "https://api.openai.com/v1".
        settings: Fields of the request that differ from the published ones; None leaves a field out.
        key_variable: Environment variable with the key. No key is sent where it is not set.
        timeout: Seconds within which a whole reply has to be there, however slowly it comes.
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
        if not (self._key.isascii() and self._key.isprintable()):
            raise JudgeError(f"{self._key_variable}: holds characters that no key has")
        trouble = ""
        for attempt in range(self._attempts):
            try:
                return self._read(_within(self._timeout, lambda: self._ask(body.encode())))
            except _Refusal as refusal:
                trouble, wait = self._redacted(str(refusal)), refusal.wait
                if refusal.code not in _PASSING:
                    raise JudgeError(f"{self._url}: {trouble}{self._hint(refusal.code)}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                trouble, wait = self._redacted(str(error)) or type(error).__name__, None
            if attempt + 1 < self._attempts:
                # A little by chance, so that several askers do not come back together.
                doubled = self._first_wait * 2**attempt * random.uniform(1.0, 1.25)
                self._sleep(min(_LONGEST_WAIT, doubled if wait is None else wait))
        raise JudgeError(f"{self._url}: no reply in {self._attempts} attempts; the last one: {trouble}")

    def _ask(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return response.read(_LARGEST_REPLY)
        except urllib.error.HTTPError as error:
            with error:
                text = " ".join(error.read(_LARGEST_REFUSAL).decode(errors="replace").split())
            # What is said is shortened once no key is in it, half of which would be no better.
            said = self._redacted(f"{error.code} {error.reason} {text}")[:_SHOWN].strip()
            raise _Refusal(said, error.code, _seconds(error.headers.get("Retry-After"))) from None

    def _read(self, body: bytes) -> str:
        shown = self._redacted(body[:_LARGEST_REFUSAL].decode(errors="replace"))[:80]
        try:
            told = json.loads(body)
            reply = told["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{shown!r} is no chat completion") from None
        if not isinstance(reply, str):
            raise ValueError(f"the reply's content is a {type(reply).__name__} in {shown!r}; expected text")
        names = [told[key] for key in ("model", "system_fingerprint") if isinstance(told.get(key), str)]
        self.revisions.add(whole_text(self._redacted(" ".join(names)))[:_SHOWN])
        return self._redacted(reply)

    def _redacted(self, text: str) -> str:
        """Text without the key, which some endpoints and proxies repeat."""
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text

    @property
    def _key(self) -> str:
        return os.environ.get(self._key_variable, "").strip()

    def _hint(self, code: int) -> str:
        return f"; is {self._key_variable} the right key?" if code in (401, 403) else ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Refusal(Exception):
    """An answer with a status that is no success."""

    def __init__(self, text: str, code: int, wait: float | None):
        super().__init__(text)
        self.code, self.wait = code, wait


def _within(seconds: float, ask: Callable[[], bytes]) -> bytes:
    """Ask in a thread that is left to itself when time is up: a server that drips keeps any single wait short.

    Raises:
        TimeoutError: Time is up.
    """
    outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(ask())
        except Exception as error:  # raised where it is waited for
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        told = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole reply in {seconds:g} seconds") from None
    if isinstance(told, Exception):
        raise told
    return told


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # a date; the usual wait does
