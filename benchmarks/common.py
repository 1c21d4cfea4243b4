"""What the benchmarks share: sides timed in turn, a table of medians, spread and ratios, and where it was measured.

Every benchmark is one command, `python -m benchmarks.<name>`, and `--help` lists its options. Both sides of a comparison run in
turn in one process, so that a noisy machine disturbs both; a ratio is the median of the ratios of neighbouring turns.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

from stages.run.progress import Progress


def arguments(description, threads=None, **options):
    """Command line options with defaults; `threads` sets the thread pools before numpy and torch are imported.

    options   name -> default; the type is that of the default, None is a text
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=threads or os.cpu_count())
    for name, default in options.items():
        kind = str if default is None else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    return chosen


def torch_device(chosen):
    """The device named by --device, or a GPU where there is one; torch's threads are set."""
    import torch

    torch.set_num_threads(chosen.threads)
    return torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def take_turns(sides, turns, device=None, what="benchmark"):
    """Wall time of each side in every turn, after one turn to warm up; a GPU is waited for before the clock is read.

    sides     dict name -> function without arguments
    Returns   dict name -> list of `turns` seconds
    """
    import torch

    times = {name: [] for name in sides}
    progress = Progress(what, "turns")
    for turn in range(turns + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
        progress.update(turn + 1, turns + 1)
    return times


def table(title, times, reference, unit_s=1.0, unit="s", work=None, work_unit="images"):
    """Prints one row per side: median time, spread, ratio to the reference side turn by turn, and work done per second.

    work   dict name -> amount of work of one turn, or one number for all
    """
    print(f"\n{title}")
    rate = f"{work_unit}/s" if work else ""
    print(f"{'':34} {f'median {unit}':>12} {'quartiles':>19} {f'/ {reference}':>24} {rate:>12}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        low, high = quartiles(seconds)
        against = [a / b for a, b in zip(seconds, times[reference], strict=True)]
        ratio = f"{statistics.median(against):.3f} [{quartiles(against)[0]:.3f}, {quartiles(against)[1]:.3f}]"
        amount = work[name] if isinstance(work, dict) else work
        done = f"{amount / median:12.1f}" if work else ""
        print(
            f"{name:34} {median / unit_s:12.3f} {low / unit_s:9.3f} {high / unit_s:9.3f} "
            f"{'' if name == reference else ratio:>24} {done}"
        )


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def heading():
    """Prints the command, the commit and the machine."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    words = ["python -m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]
    print(
        f"{' '.join(words)}\ncommit {commit.stdout.strip() or 'unknown'}; {_processor()}, {os.cpu_count()} cores",
        end="",
    )
    import torch

    print(f"; torch {torch.__version__}, {torch.get_num_threads()} threads", end="")
    print(f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "; no GPU")


def peak_memory():
    """Largest memory of this process so far in GB: VmHWM, as getrusage begins with that of the process that started it."""
    with open("/proc/self/status", encoding="utf-8") as stream:
        return next(int(line.split()[1]) / 1e6 for line in stream if line.startswith("VmHWM:"))


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            lines = dict(line.split(":", 1) for line in stream if ":" in line)
    except OSError:
        return platform.processor()
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    extras = [flag for flag in ("avx512_vnni", "avx_vnni", "amx_int8") if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(extras) or 'no int8 instructions'})"
