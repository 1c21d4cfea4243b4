"""What is made once for all stages: by whom, when anew, and what becomes of it when its making fails."""

import numpy as np
import pytest

from stages.run import files, kept


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(settings, content of the input) keeps five rows in blocks of 2, 2 and 1; .calls counts how often they were made."""
    monkeypatch.chdir(tmp_path)

    def make(settings=(1,), content="a", fails_at=None):
        (tmp_path / "input").write_text(content)

        def rows():
            make.calls += 1
            for start in (0, 2, 4):
                if start == fails_at:
                    raise RuntimeError("it failed")
                yield np.arange(15, dtype=np.float64).reshape(5, 3)[start : start + 2]

        return kept.keep("things", list(settings), [tmp_path / "input"], 5, rows)

    make.calls = 0
    return make


def test_rows_are_made_once_and_read_from_then_on(made):
    for _ in range(3):
        found = made()
        assert found.dtype == np.float32 and np.array_equal(found, np.arange(15).reshape(5, 3))
    assert made.calls == 1 and isinstance(found, np.memmap)
    (path,) = files.SCRATCH.glob("things/*.npy")
    assert np.array_equal(np.load(path), found)


def test_other_settings_or_inputs_are_others(made):
    made()
    made(settings=[1, "x"])
    made(content="b")
    assert made.calls == 3 and len(list(files.SCRATCH.glob("things/*.npy"))) == 3
    made()
    assert made.calls == 3


def test_rows_whose_making_fails_leave_nothing(made):
    with pytest.raises(RuntimeError, match="it failed"):
        made(fails_at=4)
    assert not list(files.SCRATCH.glob("things/*.npy")) and not list(files.SCRATCH.glob("unfinished/*"))
    assert len(made()) == 5 and made.calls == 2
