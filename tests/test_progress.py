"""The line of progress: its rate and its estimate, from the first look on."""

import pytest

from stages.run import progress


@pytest.mark.parametrize(
    ("begun", "done", "expected"),
    [(0, 60, "60/100 steps (60%), 6.0 steps/s, 6 s left"), (40, 60, "60/100 steps (60%), 2.0 steps/s, 20 s left")],
)
def test_the_rate_counts_what_was_done_since_the_stage_began(monkeypatch, capsys, begun, done, expected):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress("train", "steps", every_s=0, begun=begun)
    now[0] += 10
    shown.update(done, 100)
    assert capsys.readouterr().err == f"train: {expected}\n"


def test_nothing_done_yet_is_no_error(capsys):
    progress.Progress("train", "steps", every_s=0).update(0, 100)
    assert "0/100 steps (0%)" in capsys.readouterr().err
