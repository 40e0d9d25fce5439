"""Judges of answers: class names, a local language model, and an HTTP endpoint, with their common interface."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_any3d.data.fingerprints import model_fingerprint
from hf_any3d.utils.devices import check_device
from hf_any3d.utils.messages import cut


class JudgeError(OSError):
    """A judge does not reply, and asking again does not help."""


class Judge(Protocol):
    """A function from a prompt or a bare answer to a reply, with facts about itself; raises `JudgeError` without one.

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

    def __call__(self, text: str) -> str: ...  # noqa: D102


_CLASS_NAMES_VERSION = "1"


class ClassNameJudge:
    """Replies with the class that an answer names first; of overlapping names the longest counts.

    Names match complete words in either case; a space in them matches spaces, hyphens and underscores. Synonyms and
    plurals are not found, so figures are lower than a language model's: a reproducible lower bound without a network.

    Args:
        classes: Names of the classes, in words.
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
        match = self.pattern.search(text)
        if match is None:
            return "-1#NA#names no class"
        # Whatever separates the words in the answer, `numbers` has blanks there.
        name = re.sub(r"[\s_-]+", " ", match.group().lower())
        return f"{self.numbers[name]}#{name}#named at character {match.start()}"


_LOCAL_SETTINGS = {"max_new_tokens": 256, "do_sample": False}


class LanguageModelJudge:
    """Generates replies with a language model, with its chat template if it has one.

    Decoding is greedy by default, so that verdicts are reproducible; the published judges sampled. `settings` of
    generation replace the default ones; each reply has the random seed `seed`.
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
        self.name = name
        self.seed = seed
        check_device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self.model: Any = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype).eval()
        self.model.to(device or torch.accelerator.current_accelerator() or "cpu")
        # A local directory has no commit; a checksum of its files stands for it.
        version = getattr(self.model.config, "_commit_hash", None) or model_fingerprint(name)
        self._generation = {**_LOCAL_SETTINGS, **(settings or {})}
        about = {"dtype": str(self.model.dtype), "seed": seed, "revision": version}
        self.settings: Mapping[str, Any] = {**self._generation, **about}
        self.revisions = {version}

    @torch.no_grad()
    def __call__(self, text: str) -> str:
        """Return the model's reply to a prompt."""
        if self.tokenizer.chat_template is not None:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            inputs = self.tokenizer(text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        # Beyond its positions a model may write nonsense instead of failing.
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and length + self.settings["max_new_tokens"] > longest:
            raise ValueError(
                f"judge {self.name}: {length} tokens of prompt and up to {self.settings['max_new_tokens']} of reply; "
                f"expected at most {longest} together"
            )
        # For each reply anew, so that replies do not depend on how many came before.
        torch.manual_seed(self.seed)
        batch = {key: inputs[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
        # A single prompt is not padded, but generation asks for the token.
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        tokens = self.model.generate(**batch, pad_token_id=pad, **self._generation)
        return self.tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


_PUBLISHED_SETTINGS = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2048}
_KEY_VARIABLE = "OPENAI_API_KEY"
# HTTP codes of failures that may pass: timeouts, too many requests, overload
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 120.0
_SHOWN = 300
# Shorter ones are placeholders for servers without keys, such as "none".
_SHORTEST_KEY = 8


class EndpointJudge:
    """Asks a model at `POST {base_url}/chat/completions`.

    Temporary failures (429, 5xx), broken connections and replies that are no chat completion are retried, after waits
    that double, or as long as the endpoint requests.

    Args:
        model: Name of the model at the endpoint.
        base_url: Such as "https://api.openai.com/v1".
        settings: Fields of the request that differ from the published ones; None leaves a field out.
        key_variable: Environment variable with the key; if it is not set, no key is sent.
        timeout: Seconds without an answer after which an attempt ends.
        attempts: Number of attempts before giving up.
        first_wait: Seconds before the second attempt.
        at_once: Number of concurrent requests.
        sleep: Waits for some seconds.
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
        if urllib.parse.urlsplit(base_url).scheme not in ("http", "https"):
            raise ValueError(f"base_url is {base_url!r}; expected an address such as https://api.openai.com/v1")
        self.name = model
        self.at_once = at_once
        self.revisions: set[str] = set()
        chosen = {**_PUBLISHED_SETTINGS, **(settings or {})}
        self.settings: Mapping[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._key_variable = key_variable
        self._timeout = timeout
        self._attempts = attempts
        self._first_wait = first_wait
        self._sleep = sleep
        # A redirect would send the key to another address.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(self, text: str) -> str:
        """Return the model's reply to a prompt."""
        problem = ""
        for attempt in range(self._attempts):
            # With jitter, so that concurrent requests do not return together.
            wait = self._first_wait * 2**attempt * random.uniform(1.0, 1.25)
            try:
                return self._ask(text)
            except urllib.error.HTTPError as error:
                with error:
                    said = " ".join(error.read().decode(errors="replace").split())
                problem = cut(self._without_key(f"{error.code} {error.reason} {said}").strip(), _SHOWN)
                if error.code not in _TEMPORARY:
                    hint = f"; is {self._key_variable} the right key?" if error.code in (401, 403) else ""
                    raise JudgeError(f"{self._url}: {problem}{hint}") from None
                with contextlib.suppress(ValueError):  # a date
                    wait = max(0.0, float(error.headers.get("Retry-After") or wait))
            except (OSError, http.client.HTTPException) as error:
                problem = cut(self._without_key(str(error) or type(error).__name__), _SHOWN)
            # Such as a page of a proxy, or JSON of another form
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                problem = f"no chat completion ({type(error).__name__})"
            if attempt + 1 < self._attempts:
                self._sleep(min(_LONGEST_WAIT, wait))
        raise JudgeError(f"{self._url}: no reply in {self._attempts} attempts; the last one: {problem}")

    def _ask(self, text: str) -> str:
        body = {"model": self.name, "messages": [{"role": "user", "content": text}], **self.settings}
        headers = {"content-type": "application/json", "accept": "application/json"}
        key = self._key
        if key:
            headers["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method="POST")
        with self._opener.open(request, timeout=self._timeout) as response:
            completion = json.load(response)
        reply = completion["choices"][0]["message"]["content"]
        # A failed attempt to `__call__`, such as for a content of null
        if not isinstance(reply, str):
            raise TypeError(type(reply).__name__)
        # Providers change what is behind a name; these are the version that replied.
        names = [completion.get(name) for name in ("model", "system_fingerprint")]
        revision = " ".join(name for name in names if isinstance(name, str))
        self.revisions.add(replace_lone_surrogates(self._without_key(revision))[:_SHOWN])
        return self._without_key(reply)

    def _without_key(self, text: str) -> str:
        """Remove the key, which some endpoints and proxies repeat."""
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text

    @property
    def _key(self) -> str:
        return os.environ.get(self._key_variable, "").strip()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def replace_lone_surrogates(text: str) -> str:
    """Replace lone surrogates, which no file can store, by the replacement character."""
    # In UTF-16, two halves that belong together become their character, and only lone ones are replaced.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
