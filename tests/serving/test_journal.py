"""Answers on disk: the same key gets the same bytes, also after a restart."""

import sqlite3

import pytest

from hf_any3d.serving.journal import Journal
from hf_any3d.serving.limits import Refused
from tests.serving.conftest import files
from tests.serving.test_app import error_of

KEY = {"Idempotency-Key": "job-1"}


def test_a_repeated_request_gets_the_stored_answer_after_a_restart(client, tmp_path):
    service = client(journal=Journal(tmp_path / "answers.db"))
    first = service.post("/v1/classify", **files(0), headers=KEY)
    assert first.status_code == 200 and "idempotent-replayed" not in first.headers
    other = service.post("/v1/classify", **files(1), headers=KEY)
    assert other.status_code == 422 and "was used for another request" in error_of(other)
    assert service.post("/v1/classify", **files(0, top_k="1"), headers=KEY).status_code == 422
    assert service.post("/v1/features", **files(0), headers=KEY).status_code == 422
    service.service.journal.close()
    restarted = client(journal=Journal(tmp_path / "answers.db"))
    restarted.service.batcher.run = lambda key, contents: 1 / 0
    again = restarted.post("/v1/classify", **files(0), headers=KEY)
    assert again.content == first.content and again.headers["idempotent-replayed"] == "true"
    assert restarted.post("/v1/classify", **files(0), headers={"Idempotency-Key": "2"}).status_code == 500
    assert len(restarted.service.journal) == 1


def test_keys_need_a_journal_and_must_be_text(client, tmp_path):
    assert "keeps no journal" in error_of(client().post("/v1/classify", **files(0), headers=KEY))
    kept = client(journal=Journal(tmp_path / "answers.db"))
    bad = kept.post("/v1/classify", **files(0), headers={"Idempotency-Key": "a b"})
    assert error_of(bad) == "Idempotency-Key: expected 1 to 200 visible ASCII characters"


def test_a_request_under_way_is_not_computed_twice(tmp_path):
    journal = Journal(tmp_path / "answers.db")
    assert journal.begin("k", "d") is None
    with pytest.raises(Refused, match="under way") as error:
        journal.begin("k", "d")
    assert error.value.status == 409
    journal.end("k")
    assert journal.begin("k", "d") is None
    journal.store("k", "d", b"answer")
    assert journal.begin("k", "d") == b"answer"
    journal.close()


def test_old_answers_are_forgotten_and_other_files_refused(tmp_path):
    path = tmp_path / "answers.db"
    journal = Journal(path)
    journal.begin("k", "d")
    journal.store("k", "d", b"answer")
    journal.close()
    assert len(Journal(path, days=1)) == 1
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE answers SET time = time - 2 * 86400")
    database.close()
    assert len(Journal(path, days=3)) == 1 and len(Journal(path)) == 1 and len(Journal(path, days=1)) == 0
    (tmp_path / "notes.txt").write_text("These are notes. " * 100)
    with pytest.raises(ValueError, match="notes.txt: cannot be used as journal"):
        Journal(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no folder"):
        Journal(tmp_path / "gone" / "answers.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE answers (x)")
    with pytest.raises(OSError, match="other.db: cannot be used as journal"):
        Journal(tmp_path / "other.db")
