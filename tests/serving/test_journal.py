"""Answers on disk: the same key gets the same bytes, also after a restart."""

import sqlite3

import pytest

from hf_any3d.serving.journal import Journal
from hf_any3d.serving.limits import Refused
from tests.errors import raises
from tests.serving.conftest import files, ply
from tests.serving.test_app import error_of

KEY = {"Idempotency-Key": "job-1"}


@pytest.mark.slow
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


def test_keys_need_a_journal(client):
    assert "keeps no journal" in error_of(client().post("/v1/classify", **files(0), headers=KEY))


def test_answers_are_on_the_disk_for_days_and_other_files_are_refused(tmp_path):
    path = tmp_path / "answers.db"
    journal = Journal(path)
    assert journal.begin("k", "d") is None
    with pytest.raises(Refused) as busy:
        journal.begin("k", "d")
    assert (busy.value.status, busy.value.headers) == (409, {"Retry-After": "1"})
    journal.store("k", "d", b"answer")
    journal.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE answers SET time = time - 2 * 86400")
    database.close()
    assert [Journal(path, days=days).begin("k", "d") for days in (7, 3, 1)] == [b"answer", b"answer", None]
    (tmp_path / "notes.txt").write_text("These are notes. " * 100)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE answers (x)")
    for name in ("notes.txt", "gone/answers.db", "other.db"):
        with raises(ValueError, naming=name):
            Journal(tmp_path / name)


@pytest.mark.slow
def test_a_request_that_failed_may_come_again(client, tmp_path):
    service = client(journal=Journal(tmp_path / "answers.db"))
    run, service.service.batcher.run = service.service.batcher.run, lambda key, contents: 1 / 0
    assert service.post("/v1/classify", **files(0), headers=KEY).status_code == 500
    service.service.batcher.run = run
    again = service.post("/v1/classify", **files(0), headers=KEY)
    assert again.status_code == 200 and "idempotent-replayed" not in again.headers
