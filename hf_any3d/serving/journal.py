"""Answers on disk by the key of their request, so that one that was sent is never lost or computed differently."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

from hf_any3d.serving.limits import Refused

_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, digest TEXT, body BLOB, time REAL)"


class Journal:
    """A file of answers by `Idempotency-Key`.

    An answer is on disk before it is sent: after a crash, the same request with the same key gets the same bytes. The
    file is an SQLite database with full synchronization, so that an answer is in it completely or not at all.
    """

    def __init__(self, path: str | os.PathLike, days: float = 7.0):
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        try:
            # Threads take turns under the lock, and each statement is a transaction of its own.
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # Synchronous and write-ahead: what `store` has returned from survives a loss of power.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(_TABLE)
            self._database.execute("DELETE FROM answers WHERE time < ?", (time.time() - days * 86400,))
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: cannot be used as journal ({error})") from None

    def begin(self, key: str, digest: str) -> bytes | None:
        """Return the answer to a request that was answered before; otherwise note that it is under way."""
        with self._lock:
            # Looked up and noted under one lock: of two equal requests at once, only one is computed.
            row = self._database.execute("SELECT digest, body FROM answers WHERE key = ?", (key,)).fetchone()
            if row is not None and row[0] != digest:
                raise Refused(422, f"Idempotency-Key {key!r} was used for another request; expected a new key")
            if row is not None:
                return row[1]
            if key in self._under_way:
                raise Refused(409, f"Idempotency-Key {key!r}: this request is under way", headers={"Retry-After": "1"})
            self._under_way.add(key)
            return None

    def store(self, key: str, digest: str, body: bytes) -> None:
        """Store an answer on disk."""
        with self._lock:
            self._database.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (key, digest, body, time.time()))

    def end(self, key: str) -> None:
        """Note that a request is no longer under way."""
        with self._lock:
            self._under_way.discard(key)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
