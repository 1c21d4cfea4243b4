"""What `snakemake` prints: one line a stage, the estimate, and after a failure its sentence last."""

import io
import logging
from types import SimpleNamespace

import how_far
import messages
import pytest
from conftest import TINY, Project
from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

WORK = {name: how_far.Work(name.partition("@")[0], 1500, 0) for name in ("data", "shard@ddpm-seed0", "report")}


def record(level=logging.INFO, message=None, **fields):
    made = logging.LogRecord("snakemake.logging", level, "", 0, message, (), None)
    vars(made).update(fields)
    return made


def job(number, rule, key=None):
    message = f"{rule} {key}" if key else rule
    wildcards = {"key": key} if key else {}
    return record(event=LogEvent.JOB_INFO, jobid=number, rule_name=rule, rule_msg=message, wildcards=wildcards)


def name_of(rule, wildcards):
    return f"{rule}@{wildcards['key']}" if wildcards else rule


@pytest.fixture
def heard():
    """Function (records, dry run) -> lines that are printed."""

    def hear(records, dry=False):
        stream = io.StringIO()
        handler = messages.Messages(WORK, name_of, None if dry else how_far.HowFar(WORK, {}, 1), stream)
        for each in records:
            handler.handle(each)
        handler.show_failures()
        hear.clock = handler.clock
        return stream.getvalue().splitlines()

    return hear


NOISE = [
    record(message="Building DAG of jobs..."),
    record(message="Job stats:\njob  count\n", event=LogEvent.RUN_INFO),
    record(message="Provided cores: 2", event=LogEvent.RESOURCES_INFO),
    record(message="Select jobs to execute..."),
    record(event=LogEvent.PROGRESS, done=1, total=4),
    record(message="Reasons:\n output files have to be generated: .snakemake/receipts/data/data"),
    record(message="Complete log(s): x"),
]


def test_one_line_a_stage_and_none_of_the_noise(heard):
    found = heard(
        [
            *NOISE,
            job(3, "data"),
            record(message="Finished jobid: 3", event=LogEvent.JOB_FINISHED, job_id=3),
            job(2, "shard", "ddpm-seed0"),
            record(event=LogEvent.JOB_FINISHED, job_id=2),
            job(0, "all"),
            record(event=LogEvent.JOB_FINISHED, job_id=0),
            record(event=LogEvent.PROGRESS, done=4, total=4),
        ]
    )
    assert [line[8:] for line in found[:2]] == ["  1 of 3  data", "  2 of 3  shard ddpm-seed0"]
    assert found[2:] == ["4 of 4 steps (100%) done"]
    assert set(heard.clock.took) == {"data", "shard@ddpm-seed0"} and not heard.clock.started


def test_a_dry_run_lists_the_stages_without_times(heard):
    found = heard([*NOISE, job(1, "data"), job(2, "shard", "ddpm-seed0"), job(3, "report"), job(0, "all")], dry=True)
    assert found == ["1 of 3  data", "2 of 3  shard ddpm-seed0", "3 of 3  report",
                     "these would run, not in this order; nothing was run (-n)"]  # fmt: skip


def test_nothing_to_do_and_warnings_and_errors_of_snakemake_are_told(heard):
    assert heard([record(message=NOTHING_TO_BE_DONE_MSG)]) == [NOTHING_TO_BE_DONE_MSG]
    error = record(
        logging.ERROR, "MissingRuleException: no rule", event=LogEvent.ERROR, exception="MissingRuleException"
    )
    assert heard([record(logging.WARNING, "mind the gap"), error]) == ["mind the gap", "MissingRuleException: no rule"]


def test_the_sentence_of_a_stage_that_failed_stands_last(heard, tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "Running stage\n12 images\nerror: 3 found, 4 expected\nerror: failed to run: python -m stages.data\n"
    )
    found = heard(
        [
            job(1, "data"),
            record(logging.ERROR, "RuleException:\nCalledProcessError", event=LogEvent.ERROR, exception="RuleException"),
            record(logging.ERROR, "Error in rule", event=LogEvent.JOB_ERROR, jobid=1, rule_name="data", log=[str(log)]),
            job(2, "shard", "ddpm-seed0"),
            record(logging.ERROR, "Exiting because a job execution failed."),
            record(logging.ERROR, "WorkflowError: At least one job did not complete", event=LogEvent.ERROR, exception="WorkflowError"),
        ]
    )  # fmt: skip
    assert [line[10:] for line in found[:3]] == ["1 of 3  data", "data failed; what does not need it goes on", "2 of 3  shard ddpm-seed0"]  # fmt: skip
    assert found[3:] == ["", f"data failed ({log}); what was finished is kept, and the same command goes on from there:", "error: 3 found, 4 expected"]  # fmt: skip


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("Killed\n", "Killed"),
        ("a traceback\nerror: failed to run: x\n", "a traceback\nerror: failed to run: x"),
        ("".join(f"{i}\n" for i in range(40)), "\n".join(map(str, range(25, 40)))),
        (None, "error: it left no log"),
    ],
)
def test_a_log_without_a_sentence(tmp_path, log, told):
    path = tmp_path / "log"
    if log:
        path.write_text(log)
    assert messages.sentence(path) == told


@pytest.mark.parametrize(
    ("asked", "ours"),
    [
        ({"quiet": {Quietness.HOST, Quietness.REASON}}, True),
        ({"quiet": None}, True),
        ({"quiet": {Quietness.PROGRESS}}, False),
        ({"quiet": {Quietness.ALL}}, False),
        ({"verbose": True}, False),
        ({"printshellcmds": True}, False),
    ],
)
def test_who_wants_to_hear_snakemake_does(asked, ours, monkeypatch):
    logger = logging.getLogger("snakemake.logging")
    monkeypatch.setattr(logger, "handlers", [own := logging.NullHandler(), other := logging.NullHandler()])
    own.name, new = "DefaultStreamHandler", logging.NullHandler()
    settings = {"quiet": None, "verbose": False, "debug_dag": False, "printshellcmds": False} | asked
    messages.replace_handler(SimpleNamespace(**settings), new)
    assert logger.handlers == ([other, new] if ours else [own, other])


def test_the_estimate_is_bold_on_a_terminal_only():
    stream = io.StringIO()
    messages.Messages({}, name_of, None, stream).show_how_far("53% of the work")
    assert stream.getvalue() == "==> 53% of the work\n"
    stream = io.StringIO()
    stream.isatty = lambda: True
    messages.Messages({}, name_of, None, stream).show_how_far("53% of the work")
    assert stream.getvalue() == "\033[1m==> 53% of the work\033[0m\n"


def test_a_stage_that_fails_in_a_run(tmp_path):
    project = Project.create(tmp_path, TINY)
    module = tmp_path / "stages/shard.py"
    planted = module.read_text().replace("as job:\n", 'as job:\n        raise ValueError("planted")\n')
    module.write_text(planted)
    done = project.run("snakemake", check=False)
    assert done.returncode == 1
    lines = done.text.splitlines()
    assert lines[-1] == "error: planted"
    assert not any(word in done.text for word in ("receipts", "Traceback", "RuleException", "Job stats", "jobid"))
    assert sum("shard ddpm-seed3" in line for line in lines) == 1 and sum("  data" in line for line in lines) == 1
