"""Commits over 50 lines have a body that says why: `.ci/commit-msg`."""

import pathlib
import subprocess

import pytest

HOOK = pathlib.Path(__file__).parents[1] / ".ci/commit-msg"
SCISSORS = "\n# ------------------------ >8 ------------------------\ndiff --git a/a.txt b/a.txt\n"


@pytest.fixture
def repository(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def answer(repository, num_lines, message):
    """What the hook says of a commit that adds so many lines; empty where it lets it pass."""
    (repository / "a.txt").write_text("line\n" * num_lines)
    subprocess.run(["git", "add", "a.txt"], cwd=repository, check=True)
    (repository / "message").write_text(message)
    done = subprocess.run([HOOK, "message"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize("message", ["What is so now\n", "What is so now\n\n# Please enter\n", f"So\n{SCISSORS}"])
def test_over_50_lines_without_a_body(repository, message):
    assert "Received a commit of 51 changed lines" in answer(repository, 51, message)
    assert not answer(repository, 50, message)


def test_a_body(repository):
    assert not answer(repository, 51, "What is so now\n\nSince it was wrong before.\n")


def test_a_name_is_no_reason(repository):
    assert "no body" in answer(repository, 51, "What is so now\n\nSigned-off-by: A <a@b.c>\n")


def test_removed_lines_count(repository):
    answer(repository, 51, "What is so now\n")
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *who, "commit", "-qm", "Lines"], cwd=repository, check=True)
    assert "Received a commit of 51 changed lines" in answer(repository, 0, "No lines\n")
    (repository / ".git/MERGE_HEAD").write_text("")
    assert not answer(repository, 0, "Merge\n")
