"""Answers on disk: the same key gets the same bytes, also after a restart."""

import sqlite3
import time

import pytest

from hf_any3d.serving.journal import Journal
from hf_any3d.serving.limits import Refused
from tests.errors import raises
from tests.serving.conftest import files, ply
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
    for name, kind in (("1.ply", 422), ("0.ply", 200)):
        again = service.post("/v1/classify", files=[("file", (name, ply(0)))], headers=KEY)
        assert again.status_code == kind, "answers hold the names of files"
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
    with raises(Refused, naming="under way") as error:
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
    with raises(ValueError, naming="notes.txt"):
        Journal(tmp_path / "notes.txt")
    with raises(FileNotFoundError, naming="no folder"):
        Journal(tmp_path / "gone" / "answers.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE answers (x)")
    with raises(OSError, naming="other.db"):
        Journal(tmp_path / "other.db")


@pytest.mark.parametrize(("days", "kept"), [({}, [6.99]), ({"days": 1}, []), ({"days": 8}, [6.99, 7.01])])
def test_answers_are_kept_for_days_of_24_hours(tmp_path, days, kept):
    path = tmp_path / "answers.db"
    first = Journal(path)
    for age in (6.99, 7.01):
        first.store(str(age), "d", b"")
        first._database.execute("UPDATE answers SET time = ? WHERE key = ?", (time.time() - age * 86400, str(age)))
    first.close()
    again = Journal(path, **days)
    assert [float(key) for (key,) in again._database.execute("SELECT key FROM answers ORDER BY key")] == kept
    again.close()


def test_what_is_stored_is_on_the_disk_and_a_busy_key_says_when_to_come_again(tmp_path):
    journal = Journal(tmp_path / "answers.db")
    settings = [journal._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2], "full: also after a loss of power"
    journal.begin("k", "d")
    with pytest.raises(Refused) as busy:
        journal.begin("k", "d")
    assert (busy.value.status, busy.value.headers) == (409, {"Retry-After": "1"})
    journal.store("k", "d", b"answer")
    with pytest.raises(Refused, match="expected a new key") as used:
        journal.begin("k", "other")
    assert used.value.status == 422
    journal.close()
    with pytest.raises(sqlite3.ProgrammingError):
        len(journal)


def test_an_answer_belongs_to_the_model_that_gave_it(client, tmp_path):
    service = client(journal=Journal(tmp_path / "answers.db"))
    assert service.post("/v1/classify", **files(0), headers=KEY).status_code == 200
    service.service.identity = "other weights"
    assert service.post("/v1/classify", **files(0), headers=KEY).status_code == 422


def test_a_request_that_failed_may_come_again(client, tmp_path):
    service = client(journal=Journal(tmp_path / "answers.db"))
    run, service.service.batcher.run = service.service.batcher.run, lambda key, contents: 1 / 0
    assert service.post("/v1/classify", **files(0), headers=KEY).status_code == 500
    service.service.batcher.run = run
    again = service.post("/v1/classify", **files(0), headers=KEY)
    assert again.status_code == 200 and "idempotent-replayed" not in again.headers
    long = {"Idempotency-Key": "k" * 200}
    assert service.post("/v1/classify", **files(0), headers=long).status_code == 200
    assert service.post("/v1/classify", **files(0), headers={"Idempotency-Key": "k" * 201}).status_code == 400
