"""`gqa-push` when the Hub is busy, says no, or is gone: what is tried again, and what the user is told."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from refusals import said

from gqa.convert.push.patience import GO_ON

EVERYWHERE = [
    "GET /api/models/me/tiny$",
    "POST /api/repos/create",
    "GET .*/tree/",
    "POST /api/validate-yaml",
    "POST .*/preupload/",
    "POST .*/batch",
    "PUT /lfs/",
    "POST .*/commit/",
]


def test_a_token_that_is_not_accepted(hub, push, converted, waits):
    assert "Error: the Hub does not accept the token; log in" in said(push(converted, "me/tiny", "--token", "hf_wrong"))
    assert not hub.repos
    assert waits == []


def test_a_namespace_that_is_not_the_users(hub, push, converted, waits):
    result = said(push(converted, "org/tiny"))
    assert "the token may not write to org/tiny (you may not create here); use one with write access to org" in result
    assert not hub.repos
    assert waits == []


def test_a_repository_that_may_be_read_only(hub, push, converted):
    hub.add("org/tiny", {".gitattributes": b""})
    assert "the token may not write to org/tiny (you may not write here)" in said(push(converted, "org/tiny"))


def test_somebody_made_the_repository_at_the_same_time(hub, push, converted):
    hub.fault("GET /api/models/me/tiny$", 404, headers={"X-Error-Code": "RepoNotFound"})
    hub.add("me/tiny", {".gitattributes": b""})
    assert push(converted, "me/tiny").exit_code == 0  # 409 to the request to make it


def test_somebody_commits_at_the_same_time(hub, push, converted, waits):
    hub.fault("POST .*/commit/", 409)
    result = said(push(converted, "me/tiny"))
    assert "me/tiny was changed by somebody else meanwhile" in result
    assert result.endswith("run the same command again")
    assert push(converted, "me/tiny").exit_code == 0
    assert hub.count("PUT") == 1
    assert waits == []


@pytest.mark.parametrize("what", EVERYWHERE)
def test_trouble_that_passes_is_waited_for(hub, push, converted, waits, what):
    hub.fault(what, 500, times=2, body=b"<html>not JSON</html>")
    assert push(converted, "me/tiny").exit_code == 0
    assert waits == [1.0, 2.0]
    assert "model.safetensors" in hub.repos["me/tiny"].files()


@pytest.mark.parametrize("what", EVERYWHERE)
def test_a_busy_hub_is_given_the_time_it_asks_for(hub, push, converted, waits, what):
    hub.fault(what, 429, headers={"Retry-After": "17"})
    assert push(converted, "me/tiny").exit_code == 0
    assert len(waits) == 1
    assert 17 <= waits[0] <= 18


def test_the_wait_is_announced(hub, push, converted, waits):
    hub.fault("POST .*/commit/", 429, headers={"Retry-After": "17"})
    assert "The Hub is busy (429); trying again in 17 s" in push(converted, "me/tiny").stderr


def test_a_wait_that_is_too_long_is_left_to_the_user(hub, push, converted, waits):
    hub.fault("POST .*/commit/", 429, headers={"Retry-After": "3600"})
    assert "run the same command again in 60 minutes" in said(push(converted, "me/tiny"))
    assert waits == []
    hub.fault("POST .*/commit/", 429, headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"})
    assert "the Hub takes no more requests for now" in said(push(converted, "me/tiny"))
    assert hub.count("PUT") == 1


def test_trouble_that_stays(hub, push, converted, waits):
    hub.fault("POST .*/commit/", 503, times=5)
    assert said(push(converted, "me/tiny")).endswith(f"Error: the Hub is in trouble (503); {GO_ON}")
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert push(converted, "me/tiny").exit_code == 0
    assert hub.count("PUT") == 1


@pytest.mark.parametrize("what", EVERYWHERE)
def test_a_connection_that_is_cut_is_made_anew(hub, push, converted, waits, what):
    hub.fault(what, None)
    assert push(converted, "me/tiny").exit_code == 0
    assert len(waits) == 1
    there = hub.repos["me/tiny"].files()
    assert there["model.safetensors"] == (converted / "model.safetensors").read_bytes()


def test_a_connection_that_is_cut_again_and_again(hub, push, converted, waits):
    hub.fault("PUT /lfs/", None, times=100)
    result = said(push(converted, "me/tiny"))
    assert "Error: the connection to the Hub broke" in result
    assert result.endswith(GO_ON)
    assert "config.json" not in hub.repos["me/tiny"].files()  # a commit has all files, or there is none
    hub.faults.clear()
    assert push(converted, "me/tiny").exit_code == 0


def test_a_hub_that_is_not_there(push, converted, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "Error: the connection to the Hub broke" in said(push(converted, "me/tiny"))
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_licence_that_the_hub_does_not_know(hub, push, converted):
    result = said(push(converted, "me/tiny", "--license", "nonsense"))
    assert 'the Hub refuses the card: "license" must be one of those we know' in result
    assert hub.count("PUT") == 0


def test_the_last_step_can_be_made_up_for(hub, push, converted, waits):
    hub.fault("POST .*/tag/", 403)
    said(push(converted, "me/tiny", "--tag", "v1"))
    commit = hub.repos["me/tiny"].branches["main"]
    assert push(converted, "me/tiny", "--tag", "v1").exit_code == 0
    assert hub.repos["me/tiny"].tags == {"v1": commit}


def test_ctrl_c_says_how_to_go_on(hub, environment, converted, token, tmp_path):
    waiting, release = threading.Event(), threading.Event()

    def hold(line: str) -> None:
        if line.startswith("POST") and "/commit/" in line:
            waiting.set()
            release.wait(60)

    hub.on_request = hold
    command = [sys.executable, "-m", "gqa.convert.push", str(converted), "me/tiny"]
    environment |= {"HF_TOKEN": token}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert waiting.wait(240)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    release.set()
    assert process.returncode == 130
    assert stderr.strip().endswith("what has arrived on the Hub is kept; the same command goes on.")
    hub.on_request = lambda _: None
    hub.repos["me/tiny"].branches["main"] = min(hub.repos["me/tiny"].commits)
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in json.loads(done.stdout)["files"]
    assert hub.count("PUT") == 1
