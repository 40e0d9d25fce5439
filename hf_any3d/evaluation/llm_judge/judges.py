"""Judges of answers: class names, a local language model, and an HTTP endpoint, with their common interface."""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from huggingface_hub import InferenceClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_any3d.data.fingerprints import model_fingerprint

_CLASS_NAMES_VERSION = "1"
_LOCAL_SETTINGS = {"max_new_tokens": 256, "do_sample": False}
_PUBLISHED_SETTINGS = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2048}
_KEY_VARIABLE = "OPENAI_API_KEY"
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 120.0
_LARGEST_REPLY = 2**22
_LARGEST_REFUSAL = 2**14
_SHOWN = 300
# Shorter ones are placeholders for servers without keys, such as "none".
_SHORTEST_KEY = 8


class JudgeError(OSError):
    """A judge does not reply, and asking again does not help."""


class Judge(Protocol):
    """A function from a prompt to a reply, with facts about itself.

    Attributes:
        name: Name in tables and files.
        settings: Settings that its replies depend on.
        revisions: Versions that have replied so far: commits, checksums, or an endpoint's names of its model.
        reads_prompt: Whether it gets a prompt; otherwise it gets the bare answer.
        kinds: Kinds of protocols that it can judge.
        at_once: Number of concurrent requests.
    """

    name: str
    settings: Mapping[str, Any]
    revisions: set[str]
    reads_prompt: bool
    kinds: Collection[str]
    at_once: int

    def __call__(self, text: str) -> str:
        """Reply to a prompt, or to a bare answer.

        Raises:
            JudgeError: There is no reply.
        """
        ...


class ClassNameJudge:
    """Replies with the class that an answer names first; of overlapping names the longest counts.

    Names match complete words in either case; a space in them matches spaces, hyphens and underscores. Synonyms and
    plurals are not found, so figures are lower than a language model's: a reproducible lower bound without a network.

    Args:
        classes: Names of the classes, in words.

    Raises:
        ValueError: There are no names, or one is empty or occurs twice.
    """

    name = "class names"
    reads_prompt = False
    kinds: Collection[str] = ("class",)
    at_once = 1

    def __init__(self, classes: Sequence[str]):
        names = [" ".join(name.lower().replace("_", " ").split()) for name in classes]
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"classes are {list(classes)}; expected different names")
        self.numbers = {name: number for number, name in enumerate(names)}
        # A regular expression takes the first alternative that fits: "night stand" before "stand".
        longest_first = sorted(names, key=len, reverse=True)
        patterns = [r"[\s_-]+".join(map(re.escape, name.split())) for name in longest_first]
        # Letters and digits belong to words, underscores separate them; `\b` would count these as letters.
        self.pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(patterns)})(?![^\W_])", re.IGNORECASE)
        self.settings: Mapping[str, Any] = {"classes": len(names), "version": _CLASS_NAMES_VERSION}
        self.revisions = {_CLASS_NAMES_VERSION}

    def __call__(self, text: str) -> str:
        """Return the class that an answer names, as `number#class#reason`."""
        found = self.pattern.search(text)
        if found is None:
            return "-1#NA#names no class"
        name = re.sub(r"[\s_-]+", " ", found.group().lower())
        return f"{self.numbers[name]}#{name}#named at character {found.start()}"


class LanguageModelJudge:
    """Generates replies with a language model, with its chat template if it has one.

    Decoding is greedy by default, so that verdicts are reproducible; the published judges sampled.

    Args:
        name: Directory or hub name.
        revision: Branch, tag or commit.
        settings: Settings of generation that differ from the default.
        device: Device to run on; by default the fastest available.
        dtype: Type of its weights, such as "auto" or "bfloat16".
        seed: Random seed of each reply.
    """

    reads_prompt = True
    kinds: Collection[str] = ("class", "same", "caption")
    at_once = 1

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        settings: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        dtype: str = "auto",
        seed: int = 0,
    ):
        self.name, self.seed = name, seed
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self.model: Any = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype).eval()
        self.model.to(device or torch.accelerator.current_accelerator() or "cpu")
        found = getattr(self.model.config, "_commit_hash", None) or model_fingerprint(name)
        own = {"dtype": str(self.model.dtype), "seed": seed, "revision": found}
        self.settings: Mapping[str, Any] = {**_LOCAL_SETTINGS, **(settings or {}), **own}
        self.revisions = {found}

    @torch.no_grad()
    def __call__(self, text: str) -> str:
        """Return the model's reply to a prompt.

        Raises:
            ValueError: Prompt and reply exceed the model's context.
        """
        if self.tokenizer.chat_template is not None:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            inputs = self.tokenizer(text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and length + self.settings["max_new_tokens"] > longest:
            raise ValueError(
                f"judge {self.name}: {length} tokens of prompt and up to {self.settings['max_new_tokens']} of reply; "
                f"expected at most {longest} together"
            )
        # For each reply anew, so that replies do not depend on how many came before.
        torch.manual_seed(self.seed)
        settings = {key: value for key, value in self.settings.items() if key not in ("dtype", "seed", "revision")}
        batch = {key: inputs[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        tokens = self.model.generate(**batch, pad_token_id=pad, **settings)
        return self.tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


class EndpointJudge:
    """Asks a model at `POST {base_url}/chat/completions` with the InferenceClient of huggingface_hub.

    Temporary failures (429, 5xx), broken connections and replies that are no chat completion are retried, after waits
    that double, or as long as the endpoint requests.

    Args:
        model: Name of the model at the endpoint.
        base_url: Such as "https://api.openai.com/v1".
        settings: Fields of the request that differ from the published ones; None leaves a field out.
        key_variable: Environment variable with the key; if it is not set, no key is sent.
        timeout: Seconds within which a reply must be complete.
        attempts: Number of attempts before giving up.
        first_wait: Seconds before the second attempt.
        at_once: Number of concurrent requests.
        sleep: Function that waits.

    Raises:
        ValueError: The address is invalid, or a number is out of range.
    """

    reads_prompt = True
    kinds: Collection[str] = ("class", "same", "caption")

    def __init__(
        self,
        model: str,
        base_url: str,
        settings: Mapping[str, Any] | None = None,
        key_variable: str = _KEY_VARIABLE,
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
        self.name, self.at_once = model, at_once
        self.revisions: set[str] = set()
        chosen = {**_PUBLISHED_SETTINGS, **(settings or {})}
        self.settings: Mapping[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._key_variable, self._timeout = key_variable, timeout
        self._attempts, self._first_wait, self._sleep = attempts, first_wait, sleep
        # A redirect would send the key to another address.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(self, text: str) -> str:
        """Return the model's reply to a prompt.

        Raises:
            JudgeError: The endpoint refuses, or no attempt succeeds.
        """
        if not (self._key.isascii() and self._key.isprintable()):
            raise JudgeError(f"{self._key_variable}: holds characters that no key has")
        problem = ""
        for attempt in range(self._attempts):
            try:
                return self._ask(text)
            except _Refusal as refusal:
                problem, wait = self._redacted(str(refusal)), refusal.wait
                if refusal.code not in _TEMPORARY:
                    hint = f"; is {self._key_variable} the right key?" if refusal.code in (401, 403) else ""
                    raise JudgeError(f"{self._url}: {problem}{hint}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem, wait = self._redacted(str(error)) or type(error).__name__, None
            if attempt + 1 < self._attempts:
                # With jitter, so that concurrent requests do not return together.
                doubled = self._first_wait * 2**attempt * random.uniform(1.0, 1.25)
                self._sleep(min(_LONGEST_WAIT, doubled if wait is None else wait))
        raise JudgeError(f"{self._url}: no reply in {self._attempts} attempts; the last one: {problem}")

    def _ask(self, text: str) -> str:
        client = _BoundedClient(self._url, self._key, self.settings, self._post)
        message = {"role": "user", "content": text}
        try:
            completion = client.chat_completion([message], model=self.name, extra_body=dict(self.settings))
            reply = completion.choices[0].message.content
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            if client.received is None:
                raise
            raise ValueError(f"{self._shown(client)!r} is not a chat completion") from None
        if not isinstance(reply, str):
            raise ValueError(
                f"the reply's content is a {type(reply).__name__} in {self._shown(client)!r}; expected text"
            )
        # Providers change what is behind a name; these are the version that replied.
        names = [name for name in (completion.model, completion.system_fingerprint) if isinstance(name, str)]
        self.revisions.add(replace_lone_surrogates(self._redacted(" ".join(names)))[:_SHOWN])
        return self._redacted(reply)

    def _shown(self, client: _BoundedClient) -> str:
        return self._redacted((client.received or b"")[:_LARGEST_REFUSAL].decode(errors="replace"))[:80]

    def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> bytes:
        request = urllib.request.Request(url, body, dict(headers), method="POST")
        return _within(self._timeout, lambda: self._send(request))

    def _send(self, request: urllib.request.Request) -> bytes:
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return response.read(_LARGEST_REPLY)
        except urllib.error.HTTPError as error:
            with error:
                text = " ".join(error.read(_LARGEST_REFUSAL).decode(errors="replace").split())
            # Redacted before it is shortened, which could leave half of a key.
            message = self._redacted(f"{error.code} {error.reason} {text}")[:_SHOWN].strip()
            raise _Refusal(message, error.code, _seconds(error.headers.get("Retry-After"))) from None

    def _redacted(self, text: str) -> str:
        """Remove the key, which some endpoints and proxies repeat."""
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text

    @property
    def _key(self) -> str:
        return os.environ.get(self._key_variable, "").strip()


class _BoundedClient(InferenceClient):
    """An InferenceClient that prepares a request and reads the completion, but sends the request with `post`.

    The session of huggingface_hub follows redirects, reads replies of any size, and with HF_HUB_OFFLINE refuses every
    address, also that of a local server.

    Args:
        url: Complete address; the client appends a version to any other.
        key: Key of the endpoint; empty for none.
        settings: Fields of the request.
        post: Sends a request, of address, headers and body, and returns the body of the response.
    """

    def __init__(
        self, url: str, key: str, settings: Mapping[str, Any], post: Callable[[str, Mapping[str, str], bytes], bytes]
    ):
        # Without a key the client would send the user's token of the hub.
        without_key: Any = {"authorization": None}
        super().__init__(base_url=url, api_key=key or None, headers={} if key else without_key)
        self.chosen, self.post = settings, post
        self.received: bytes | None = None

    def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        # The client rewrites `response_format` for one kind of server; what is recorded is sent.
        body = {**request_parameters.json, **self.chosen}
        headers = {**request_parameters.headers, "accept": "application/json"}
        self.received = self.post(request_parameters.url, headers, json.dumps(body).encode())
        return self.received


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Refusal(Exception):
    """A response whose status is not a success."""

    def __init__(self, text: str, code: int, wait: float | None):
        super().__init__(text)
        self.code, self.wait = code, wait


def _within(seconds: float, ask: Callable[[], bytes]) -> bytes:
    """Call `ask` in a thread and abandon it after a time, since a server that sends byte by byte never times out."""
    outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(ask())
        except Exception as error:  # raised in the waiting thread
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        result = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no complete reply in {seconds:g} seconds") from None
    if isinstance(result, Exception):
        raise result
    return result


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # a date; the default wait is used


def replace_lone_surrogates(text: str) -> str:
    """Replace lone surrogates, which no file can store, by the replacement character."""
    # In UTF-16, two halves that belong together become their character, and only lone ones are replaced.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
