"""What is kept, for whom, and that nothing stays behind."""

from __future__ import annotations

import stat

import pytest

from llava_probe.errors import BadInput
from llava_probe.view.app.store import ANSWERS_KEPT, Store


@pytest.fixture
def store():
    made = Store(most_bytes=1000, longest=60, now=lambda: made_now[0])
    made_now[0] = 0.0
    yield made
    made.close()
    assert not made.folder.exists()


made_now = [0.0]


def filled(store, owner, kind="run", size=10):
    item = store.new(owner, kind)
    with store.reading(item):
        (item.folder / "file").write_bytes(b"x" * size)
    return item


def test_what_belongs_to_one_is_nothing_to_another(store):
    item = filled(store, "one")
    assert store.get("one", item.token, "run") is item
    told = []
    for owner, token, kind in [("two", item.token, "run"), ("one", item.token[:-1], "run"), ("one", None, "run")]:
        with pytest.raises(BadInput) as refused:
            store.get(owner, token, kind)
        told.append(str(refused.value))
    assert len(set(told)) == 1  # who guesses does not learn whether he was near
    with pytest.raises(BadInput, match="picture is not kept"):
        store.get("one", item.token, "picture")


def test_the_folder_is_for_this_user_alone(store):
    item = filled(store, "one")
    assert stat.S_IMODE(store.folder.stat().st_mode) == stat.S_IMODE(item.folder.stat().st_mode) == 0o700


def test_what_a_killed_app_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    running = Store()
    killed = tmp_path / "llava-probe-app-killed"
    others = tmp_path / "llava-probe-app-others"
    for folder in (killed, others):
        (folder / "run").mkdir(parents=True)
    (killed / "in-use").touch()
    following = Store()
    assert not killed.exists() and others.exists() and running.folder.exists()
    running.close()
    following.close()
    assert list(tmp_path.iterdir()) == [others]


def test_each_keeps_its_newest(store):
    items = [filled(store, "one") for _ in range(ANSWERS_KEPT + 3)]
    other = filled(store, "two")
    assert [item.folder.exists() for item in items] == [False] * 3 + [True] * ANSWERS_KEPT
    assert other.folder.exists() and len(store) == ANSWERS_KEPT + 1


def test_the_least_used_goes_first_where_all_is_too_much(store):
    items = [filled(store, str(number), size=300) for number in range(4)]
    store.get("0", items[0].token, "run")
    store.tidy()
    assert [item.folder.exists() for item in items] == [True, False, True, True]


def test_what_nobody_uses_goes(store):
    old, young = filled(store, "one"), filled(store, "one")
    made_now[0] = 50.0
    store.get("one", young.token, "run")
    made_now[0] = 70.0
    store.tidy()
    assert not old.folder.exists() and young.folder.exists()


def test_what_is_being_read_stays_until_it_was(store):
    item = filled(store, "one")
    with store.reading(item):
        made_now[0] = 1000.0
        store.tidy()
        store.drop(item)
        assert (item.folder / "file").exists()
    assert not item.folder.exists()
