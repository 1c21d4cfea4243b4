"""What `snakemake` prints: one line a stage when it starts, now and then how far the experiment is, and at the end what failed and why.

Snakemake hands every message to Python's logging, with an event and its fields (snakemake_interface_logger_plugins.common.LogEvent). A
plug-in of it would have to be installed; the handler below takes the place of its own for the terminal. All that Snakemake says is in
.snakemake/log, and on the terminal with --quiet, --verbose, --printshellcmds or --debug-dag, which leave its own handler in place.
"""

import logging
import sys
import threading
import time
from pathlib import Path

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake_interface_logger_plugins.common import LogEvent

ALL = "all"  # the rule that waits for all others
BOLD, RESET = "\033[1m", "\033[0m"
LAST_LINES = 15  # of a log that has no sentence


class Messages(logging.Handler):
    """The handler.

    stages   names of the stages that are to run
    name_of  function (rule, wildcards) -> name of a stage
    clock    how_far.HowFar; None in a dry run
    """

    def __init__(self, stages, name_of, clock, stream=None):
        super().__init__()
        self.stages, self.name_of, self.clock = stages, name_of, clock
        self.stream = stream or sys.stderr
        self.named, self.failed = {}, {}  # number of a job -> name of its stage; title of a stage -> its log
        self.turn = threading.Lock()

    def show(self, text):
        with self.turn:
            print(text, file=self.stream, flush=True)

    def show_how_far(self, text):
        """The estimate, so that it is seen among the stages: in bold on a terminal, behind an arrow in a log."""
        bold, reset = (BOLD, RESET) if self.stream.isatty() else ("", "")
        self.show(f"{bold}==> {text}{reset}")

    def emit(self, record):
        try:
            self._tell(record)
        except Exception:  # as all handlers do: a message is no reason to end a run
            self.handleError(record)

    def _tell(self, record):
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO:
            self._start(record)
        elif event == LogEvent.JOB_FINISHED:
            self._end(record)
        elif event == LogEvent.JOB_ERROR:
            self._fail(record)
        elif event == LogEvent.PROGRESS and record.done == record.total:
            self.show(f"{record.done} of {record.total} steps (100%) done")
        elif getattr(record, "exception", None) == "RuleException":  # JOB_ERROR follows, which says of which stage
            return
        elif record.levelno >= logging.WARNING and not self.failed:
            self.show(record.getMessage())
        elif record.getMessage().startswith(NOTHING_TO_BE_DONE_MSG):
            self.show(NOTHING_TO_BE_DONE_MSG)

    def _start(self, record):
        if record.rule_name == ALL:
            return
        self.named[record.jobid] = name = self.name_of(record.rule_name, record.wildcards)
        number = f"{len(self.named):>{len(str(len(self.stages)))}}"
        if self.clock is None:
            self.show(f"{number} of {len(self.stages)}  {record.rule_msg}")
            if len(self.named) == len(self.stages):
                self.show("these would run, not in this order; nothing was run (-n)")
            return
        self.clock.start(name, time.monotonic())
        self.show(f"{time.strftime('%H:%M:%S')}  {number} of {len(self.stages)}  {record.rule_msg}")

    def _end(self, record):
        if record.job_id in self.named:
            self.clock.end(self.named[record.job_id], time.monotonic())

    def _fail(self, record):
        name = self.named.get(record.jobid, record.rule_name)
        self.failed[name] = record.log[0] if record.log else None
        self.show(f"{time.strftime('%H:%M:%S')}  {name} failed; what does not need it goes on")

    def show_failures(self):
        """What failed, and of each stage its one sentence, which stands last."""
        for name, log in self.failed.items():
            self.show(
                f"\n{name} failed ({log}); what was finished is kept, and the same command goes on from there:\n{sentence(log)}"
            )


def sentence(log):
    """What a stage said when it ended with an error: the line `error: ...` of its log, or the last lines where it has none."""
    try:
        lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, TypeError):
        return "error: it left no log"
    told = [line for line in lines if line.startswith("error: ")]
    # The first is the stage's; the launcher says after it that the command failed.
    return told[0] if told and not told[0].startswith("error: failed to run") else "\n".join(lines[-LAST_LINES:])


def replace_handler(settings, handler):
    """Lets a handler speak in the place of Snakemake's own, unless the user wants to hear that one.

    settings   output settings of Snakemake's workflow
    """
    logger = logging.getLogger("snakemake.logging")
    own = next((other for other in logger.handlers if other.name == "DefaultStreamHandler"), None)
    asked = {str(word) for word in settings.quiet or ()} - {"Quietness.HOST", "Quietness.REASON", "host", "reason"}
    linting = "--lint" in sys.argv  # its findings are messages of Snakemake's own
    if own is None or linting or asked or settings.verbose or settings.debug_dag or settings.printshellcmds:
        return
    logger.removeHandler(own)
    logger.addHandler(handler)
