"""``llava-probe app`` is for this machine alone unless somebody says who else may come in."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from llava_probe.cli import app
from llava_probe.cli.app import read_users
from llava_probe.errors import BadInput
from llava_probe.tiny import cheats
from llava_probe.view.app import serve


@pytest.fixture
def started(monkeypatch):
    """What the app would have been started with."""
    calls = []

    class Closed:
        url, model = "http://127.0.0.1:7860/", "a model"
        __enter__, __exit__ = (lambda self: self), (lambda self, *_: None)

        def wait(self):
            pass

        def _start(self):
            calls.append(self)
            return self

    def made(model, loaded, bound, names, users, limits, command):
        closed = Closed()
        closed.told = model, loaded, names, users, limits
        bound.close()
        return closed

    monkeypatch.setattr(serve, "App", made)
    monkeypatch.delenv("LLAVA_PROBE_AUTH", raising=False)
    return calls


def call(*words):
    return CliRunner().invoke(app, ["app", *map(str, words)])


def test_it_is_for_this_machine_alone(started):
    adapter = str(cheats.path("frame"))
    done = call("--dtype", "float32", "--max-megabytes", 3, "--adapter", adapter, "--merge")
    assert done.exit_code == 0 and "http://127.0.0.1:7860/" in done.stdout
    model, loaded, names, users, limits = started[0].told
    assert (model, loaded, users) == ("tiny", {"dtype": "float32", "adapter": adapter, "merge": True}, {})
    assert set(names) == {"localhost", "127.0.0.1", "::1"} and limits.bytes == 3_000_000


@pytest.mark.parametrize("words", [("--host", "0.0.0.0"), ("--name", "demo.example.org")], ids=["host", "name"])
def test_where_others_reach_it_a_password_is_demanded(started, words):
    done = call(*words)
    assert done.exit_code == 1 and not started
    assert "--auth" in done.stderr and done.stderr.count("\n") <= 2 + ("Loading" in done.stderr)
    assert call(*words, "--auth", "ann:secret").exit_code == 0
    assert started[0].told[3] == {"ann": "secret"}


def test_a_password_need_not_stand_in_the_command(started, monkeypatch):
    monkeypatch.setenv("LLAVA_PROBE_AUTH", "ann:secret")
    assert call("--host", "0.0.0.0").exit_code == 0
    assert started[0].told[2] is None and started[0].told[3] == {"ann": "secret"}


def test_users_come_from_a_file(tmp_path):
    file = tmp_path / "users.txt"
    file.write_text("# who may\nann:s:cret\n\nbob:pass\n")
    assert read_users(str(file)) == {"ann": "s:cret", "bob": "pass"}
    assert read_users("ann:s:cret") == {"ann": "s:cret"} and read_users(None) == {}


@pytest.mark.parametrize("given", ["ann", "ann:", ":secret", ":"])
def test_what_is_no_user_is_refused(given):
    with pytest.raises(BadInput, match="user:password"):
        read_users(given)


def test_a_taken_port_is_told(started):
    taken = serve._bound("127.0.0.1", None)
    try:
        done = call("--port", taken.getsockname()[1])
    finally:
        taken.close()
    assert done.exit_code == 1 and "cannot listen on 127.0.0.1, port" in done.stderr
