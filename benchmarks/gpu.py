"""What there is to know of a GPU in a few minutes: `python -m benchmarks.gpu --minutes 8`.

Checks come first, then measurements from the most to the least important; a row of a Markdown table is printed, and with --out also
written, as soon as it is known. Each part is a process of its own with a budget of seconds: one that fails or takes too long leaves its
error in the table, and the next goes on. It ends by itself within --minutes. Nothing is built or downloaded.

It runs from a bare checkout on a machine with Python 3.12, PyTorch 2.11 and torchvision for CUDA 13, numpy, pandas, pillow, safetensors,
matplotlib, scikit-learn, transformers and accelerate. What else it needs is taken from wheels in the folder wheels/ beside this one, those
alone that are not installed. Fetch them where there is a network:

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 -d wheels diffusers==0.42.1 importlib-metadata zipp requests charset-normalizer idna urllib3 \
        certifi jsonschema jsonschema-specifications referencing rpds-py attrs

Without a GPU (--device cpu) all of it runs in sizes at which its numbers say nothing.
"""

import argparse
import contextlib
import importlib
import importlib.util
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

WHEELS = Path(__file__).parent.parent / "wheels"
# Parts in the order in which they run, with the seconds that each may take of eight minutes. What one leaves is for the later ones.
BUDGETS_S = {
    "checks": 60,
    "training": 90,
    "switches": 70,
    "agc": 40,
    "taa": 45,
    "sampling": 50,
    "search": 40,
    "fixed_cost": 70,
    "proxies": 45,
    "memory": 40,
}
WHOLE_S = sum(BUDGETS_S.values())
SHUTDOWN_S = 2  # to end a part that is late
LARGE = {
    "training": ["--network", "cifar10", "--batch", "128", "--steps", "20", "--turns", "4", "--precision", "bf16"],
    "sampling": ["--network", "cifar10", "--batch", "512", "--turns", "2", "--precision", "bf16"],
    "search": ["--samples", "65536", "--turns", "2"],
    "fixed_cost": ["--network", "cifar10", "--images", "2000", "--turns", "1", "--precision", "bf16", "--threads", "4"],
    "memory": ["--network", "cifar10", "--precision", "bf16"],
}
SMALL = {
    "training": ["--network", "tiny", "--batch", "8", "--images", "32", "--turns", "1", "--precision", "bf16"],
    "sampling": ["--network", "tiny", "--batch", "2", "--steps", "2", "--turns", "1"],
    "search": ["--samples", "40", "--train", "300", "--neighbours", "5", "--turns", "1"],
    "fixed_cost": ["--network", "tiny", "--images", "32", "--batch", "16", "--turns", "1", "--long", "2"],
    "memory": ["--network", "tiny", "--batch", "4", "--samples", "10", "--train", "60"],
}
# Dense bf16, by the data sheets, in FLOP/s.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
HEADING = "| what | found | to reach | reached |\n| --- | --- | --- | --- |"
CPU_SAMPLES = 4096  # of the search, on the processor


def row(what, found, aim="", reached=None):
    """A row of the table, as a text.

    aim       what is to be reached, in words
    reached   whether it is; None where there is nothing to reach, or where a CPU ran it
    """
    return f"| {what} | {found} | {aim} | {'' if reached is None else 'yes' if reached else 'no'} |"


# ------------------------------------------------------------------------------------------------ the parent: one part after another


def run_parts(parts, words, seconds, say, budgets=BUDGETS_S, program=("-m", "benchmarks.gpu")):
    """Runs parts as processes, within their budgets and all of them within some seconds.

    parts     names, in order
    words     command line of every part beside its name
    seconds   in which all is to be over
    say       function of a line of the table
    program   what Python is given, before `--part NAME` and the words
    """
    end = time.monotonic() + seconds
    share = seconds / WHOLE_S
    spare = 0.0
    for name in parts:
        begun = time.monotonic()
        left = end - begun - SHUTDOWN_S
        allowed = min(left, budgets[name] * share + spare)
        if allowed < 1:
            say(row(name, "not measured: no time was left"))
            continue
        if problem := _run_part([sys.executable, *program, "--part", name, *words], allowed, say):
            say(row(name, f"not finished: {problem}"))
        spare += budgets[name] * share - (time.monotonic() - begun)


def _run_part(command, seconds, say):
    """Hands the rows that a process prints to `say`; returns what went wrong, in words, or None."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=os.environ
        )
        lines, end, late = queue.SimpleQueue(), time.monotonic() + seconds, False
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        while True:
            try:
                line = lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                late = True
                break
            if line is None:
                break
            if line.startswith("|"):
                say(line.rstrip("\n"))
        if not late:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and all that it started
        process.wait()
        reader.join()
        process.stdout.close()
        if late:
            return f"its {seconds:.0f} s were over"
        if process.returncode:
            errors.seek(0)
            told = [line.strip() for line in errors if line.strip()]
            return (told[-1] if told else f"it ended with {process.returncode}").replace("|", "/")
    return None


def _read(stream, lines):
    for line in stream:
        lines.put(line)
    lines.put(None)


def unpack_wheels(folder, into):
    """Puts the packages of the wheels in a folder that are not installed into another folder; returns their names."""
    taken = []
    for path in sorted(Path(folder).glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            tops = {name.split("/")[0] for name in wheel.namelist()}
            modules = {top.removesuffix(".py") for top in tops if not top.endswith((".dist-info", ".data", ".libs"))}
            if not any(_is_installed(module) for module in modules if module.isidentifier()):
                wheel.extractall(into)
                taken.append(path.name)
    return taken


def _is_installed(module):
    return importlib.util.find_spec(module) is not None


# ------------------------------------------------------------------------------------------------------------------------- the parts


class Part:
    """What a part knows: the device, the module of a benchmark with its command line given, and how rows are said."""

    def __init__(self, device):
        self.on_gpu = device != "cpu"
        self.words = ["--device", device]
        self.sizes = LARGE if self.on_gpu else SMALL

    def module(self, name, *more):
        """The benchmark of a name, imported as if it had been given the sizes of this part on its command line."""
        sys.argv = [f"benchmarks.{name}", *self.sizes[name], *self.words, *more]
        return importlib.import_module(f"benchmarks.{name}")

    def device(self, module):
        import torch

        from benchmarks import common

        if self.on_gpu and not torch.cuda.is_available():
            raise RuntimeError(
                f"torch {torch.__version__} finds no GPU here: --device cpu tries the script without one"
            )
        return common.torch_device(module.CHOSEN)

    def say(self, what, found, aim="", reached=None):
        print(row(what, found, aim, reached if self.on_gpu else None), flush=True)


def against(times, name, reference):
    """Median of the ratios of neighbouring turns, time of one side to that of another."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))


def checks(part):
    import numpy as np

    training = part.module("training")
    import torch

    device = part.device(training)
    name = torch.cuda.get_device_name() if part.on_gpu else "CPU"
    part.say("device", f"{name}, torch {torch.__version__}, {os.cpu_count()} cores")
    _check_search(part, device)
    side = training.Ours({"name": "ddpm"}, smooth_images(training.CHOSEN.images), device)
    for _ in range(10 if part.on_gpu else 1):  # else all losses are those of a network that says nothing
        side()
    for lam in (0.5, 0.9):
        equal, skipped = skip_decisions(side.training, lam, 100 if part.on_gpu else 3)
        aim = "at least 98 %" if lam == 0.5 else ""
        part.say(
            f"bf16 against fp32: equal skip decisions at lambda {lam} ({skipped:.1%} are skipped)",
            f"{equal:.2%}",
            aim,
            equal >= 0.98 if aim else None,
        )
    assert np.isfinite([float(p.sum()) for p in side.network.parameters()]).all(), "a weight is not finite"


def _check_search(part, device):
    import numpy as np

    from stages.measures import neighbours

    random = np.random.default_rng(0)
    sample, train = (random.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (64, 2000))
    train[7] = sample[3]  # a copy
    distances, indices = neighbours.nearest(sample, train, 10, block=48, device=device)
    brute = np.stack([np.square(train.astype(np.int64) - s).sum(axis=(1, 2, 3)) for s in sample])
    order = np.lexsort((np.broadcast_to(np.arange(len(train)), brute.shape), brute))[:, :10]
    exact = np.array_equal(indices, order) and np.array_equal(distances, np.take_along_axis(brute, order, 1))
    part.say("search against integers by brute force, 64 x 2,000", "equal" if exact else "DIFFERENT", "equal", exact)


def smooth_images(number):
    """[number,32,32,3] uint8: handwritten digits, enlarged. Random bytes could not be told apart by their losses."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = (load_digits().images * (255 / 16)).astype(np.uint8)[np.arange(number) % 1797]
    return np.repeat(np.repeat(np.repeat(digits[..., None], 4, axis=1), 4, axis=2), 3, axis=3)


def skip_decisions(training, lam, num_batches):
    """Share of the skip decisions (Eq. 8) that bf16 and fp32 have in common, each judged by a memory bank of its own.

    training   loop.Training, which is not changed
    Returns    share of equal decisions, share of the visits that fp32 skips
    """
    import torch

    from stages.diffusion import ddpm
    from stages.methods.agc import memory_bank

    network, images, alpha_bar = training.network, training.images, training.alpha_bar
    device, num_timesteps = images.pixels.device, len(alpha_bar)
    banks = {precision: torch.zeros(num_timesteps, device=device) for precision in ("fp32", "bf16")}
    equal, skips, generator = [], [], torch.Generator(device).manual_seed(training.state.step)
    network.eval()
    with torch.no_grad():
        for _ in range(num_batches):
            size = (training.settings["batch_size"],)
            rows = torch.randint(len(images.pixels), size, generator=generator, device=device)
            # A tenth of the timesteps, so that few batches visit each of them often.
            t = 10 * torch.randint(num_timesteps // 10, size, generator=generator, device=device)
            x_0 = ddpm.normalise(images.pixels[rows])
            eps = torch.randn(x_0.shape, generator=generator, device=device)
            masks = {}
            for precision, bank in banks.items():
                loss = ddpm.sample_losses(network, x_0, t, eps, alpha_bar, precision)
                masks[precision] = memory_bank.skip_mask(loss, bank, t, lam)
                banks[precision] = memory_bank.updated(bank, t, loss, 0.8)
            equal.append(masks["fp32"] == masks["bf16"])
            skips.append(masks["fp32"])
    network.train()
    return float(torch.cat(equal).float().mean()), float(torch.cat(skips).float().mean())


def training(part):
    import numpy as np

    module = part.module("training")
    import diffusers  # noqa: F401 (as a whole: what `unet` leaves out of it would slow or break the other side)

    from benchmarks import common

    device, chosen = part.device(module), module.CHOSEN
    images = np.random.default_rng(0).integers(0, 256, (chosen.images, 32, 32, 3), np.uint8)
    ours = module.Ours({"name": "ddpm"}, images, device)
    names = {workers: f"{workers} workers" for workers in ((4, 8) if part.on_gpu else (0,))}
    sides = {"ours": ours} | {name: module.Diffusers(images, device, workers) for workers, name in names.items()}
    times = common.take_turns(sides, chosen.turns, device, "training")
    work = chosen.batch * chosen.steps
    best = min(against(times, name, "ours") for name in names.values())
    rate = work / statistics.median(times["ours"])
    part.say(f"training, {module.describe()}, {chosen.precision}: ours", f"{rate:,.0f} images/s")
    for name in names.values():
        part.say(f"the loop of diffusers' example, {name}", f"{work / statistics.median(times[name]):,.0f} images/s")
    part.say("ours / the better of these", f"{best:.2f} times", "at least 2.0 times", best >= 2)
    flop = module.step_flop(ours.network) / chosen.batch * rate
    used = f"{flop / 1e12:.2f} TFLOP/s"
    if peak := peak_of(device):
        used += f", {flop / peak:.1%} of {peak / 1e12:,.0f}"
    part.say("model FLOP utilisation of our training step", used)


def switches(part):
    """What each way of running our training step gives beside the usual one; checked against it first."""
    import numpy as np

    module = part.module("training", *(["--steps", "10"] if part.on_gpu else []))
    from benchmarks import common
    from stages.run import device as run_device

    device, chosen = part.device(module), module.CHOSEN
    images = np.random.default_rng(0).integers(0, 256, (chosen.images, 32, 32, 3), np.uint8)
    usual = module.Ours({"name": "ddpm"}, images, device)

    def compiled(mode):
        agc = {"name": "agc", "lambda": 0.5, "eta": 0.8}
        far = furthest(*(module.Ours(agc, images, device, each) for each in ("off", mode)))
        what = f"compute.compile {mode} against off: furthest apart of the losses of 10 steps"
        part.say(what, f"{far:.1e} of the loss", "at most 1e-2", far <= 1e-2)
        other = module.Ours({"name": "ddpm"}, images, device, mode)
        begun = time.perf_counter()
        other()
        started = time.perf_counter() - begun
        times = common.take_turns({"off": usual, mode: other}, chosen.turns, device, mode)
        found = f"{against(times, 'off', mode):.2f} times as fast; first steps {started:.0f} s"
        part.say(f"training with compute.compile {mode} / off", found)

    last = module.Ours({"name": "ddpm"}, images, device, channels_last=True)
    times = common.take_turns({"usual": usual, "last": last}, chosen.turns, device, "channels_last")
    part.say("training with compute.channels_last / without", f"{against(times, 'usual', 'last'):.2f} times as fast")
    usual.training.settings = usual.training.settings | {"precision": "fp32"}

    def arithmetic(allowed):
        def side():
            run_device.allow_tf32(allowed)
            usual()

        return side

    times = common.take_turns({"fp32": arithmetic(False), "tf32": arithmetic(True)}, chosen.turns, device, "tf32")
    part.say("training with compute.precision tf32 / fp32", f"{against(times, 'fp32', 'tf32'):.2f} times as fast")
    usual.training.settings = usual.training.settings | {"precision": chosen.precision}
    if part.on_gpu:  # there is no graph on a CPU, and inductor takes minutes
        try:
            compiled("graph")
        except Exception as error:
            part.say("compute.compile graph", f"not finished: {str(error).splitlines()[0].replace('|', '/')}")
        compiled("inductor")


def furthest(usual, other, num_steps=10):
    """The largest relative difference between the losses of some steps of two trainings."""
    from stages.methods import loop

    def losses(side):
        return [float(loop.train_step(side.training, epoch=0)) for _ in range(num_steps)]

    return max(abs(a - b) / abs(a) for a, b in zip(losses(usual), losses(other), strict=True))


def peak_of(device):
    """FLOP/s of the card in bf16 by its data sheet, None where it is not known here."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for card, peak in PEAKS.items() if card in name), None)


def agc(part):
    import numpy as np

    module = part.module("training", *(["--steps", "10", "--turns", "8"] if part.on_gpu else []))
    from benchmarks import common

    device, chosen = part.device(module), module.CHOSEN
    images = np.random.default_rng(0).integers(0, 256, (chosen.images, 32, 32, 3), np.uint8)
    sides = {
        "ddpm": module.Ours({"name": "ddpm"}, images, device),
        "again": module.Ours({"name": "ddpm"}, images, device),
        "agc": module.Ours({"name": "agc", "lambda": 0.5, "eta": 0.8}, images, device),
    }
    times = common.take_turns(sides, chosen.turns, device, "agc")
    found = against(times, "agc", "ddpm")
    noise = f"plain against itself {against(times, 'again', 'ddpm'):.3f}"
    part.say("AGC / plain DDPM, a step", f"{found:.3f} ({noise})", "at most 1.02", found <= 1.02)


def taa(part):
    import numpy as np

    module = part.module("training", *(["--steps", "10"] if part.on_gpu else []))
    from benchmarks import common

    device, chosen = part.device(module), module.CHOSEN
    images = np.random.default_rng(0).integers(0, 256, (chosen.images, 32, 32, 3), np.uint8)
    shares = (0.0, 0.1, 0.5, 1.0)
    sides = {"ddpm": module.Ours({"name": "ddpm"}, images, device)}
    sides |= {share: module.with_share(images, device, share) for share in shares}
    times = common.take_turns(sides, chosen.turns, device, "taa")
    for share in shares:
        found, aim = against(times, share, "ddpm"), 1.1 * (1 + share)
        part.say(f"TAA with {share:.0%} augmented / plain DDPM", f"{found:.3f}", f"at most {aim:.2f}", found <= aim)
    if part.on_gpu:
        sides = {"ddpm": module.Ours({"name": "ddpm"}, images, device, "graph")}
        sides |= {share: module.with_share(images, device, share, "graph") for share in shares}
        times |= {
            f"graph {name}": found for name, found in common.take_turns(sides, chosen.turns, device, "graph").items()
        }
        for share in shares:
            found, aim = against(times, f"graph {share}", "graph ddpm"), 1.1 * (1 + share)
            what = f"TAA with {share:.0%} augmented / plain DDPM, both as graphs"
            part.say(what, f"{found:.3f}", f"at most {aim:.2f}", found <= aim)


def sampling(part):
    module = part.module("sampling")
    from benchmarks import common

    device, chosen = part.device(module), module.CHOSEN
    times = common.take_turns(module.sides(device), chosen.turns, device, "sampling")
    found = against(times, "DDIMPipeline", "ours")
    rates = {name: chosen.batch / statistics.median(seconds) for name, seconds in times.items()}
    part.say(f"sampling, DDIM-{chosen.steps}, batch {chosen.batch}: ours", f"{rates['ours']:,.1f} images/s")
    part.say("diffusers' DDIMPipeline", f"{rates['DDIMPipeline']:,.1f} images/s")
    part.say("ours / DDIMPipeline", f"{found:.2f} times", "at least 2.0 times", found >= 2)
    last = against(times, "ours", "ours, channels last")
    part.say("sampling with compute.channels_last / without", f"{last:.2f} times as fast")
    larger(part, module, module.of_size(module.network_on(device), device), rates["ours"])
    if part.on_gpu:  # there is no graph on a CPU
        graph = module.by_graph(device)
        plain = module.of_size(module.network_on(device), device)
        apart = abs(graph(chosen.batch).astype(int) - plain(chosen.batch)).max()
        part.say(
            "sampling as graphs against without: furthest apart of any value of 0 to 255",
            f"{apart}",
            "at most 1",
            apart <= 1,
        )
        sides = {"ours": lambda: plain(chosen.batch), "graph": lambda: graph(chosen.batch)}
        times = common.take_turns(sides, chosen.turns, device, "graphs")
        part.say("sampling with compute.compile graph / off", f"{against(times, 'ours', 'graph'):.2f} times as fast")


def larger(part, module, images, usual):
    """A row on batches of four times the size.

    images   function of a number of images
    usual    images/s of a batch of the usual size
    """
    import torch

    size = 4 * module.CHOSEN.batch
    what = f"sampling in batches of {size} / of {module.CHOSEN.batch}"
    try:
        images(size)
        begun = time.perf_counter()
        images(size)  # ends with a copy to the host, and so waits for the GPU
        part.say(what, f"{size / (time.perf_counter() - begun) / usual:.2f} times as fast")
    except torch.OutOfMemoryError:
        part.say(what, "does not fit")


def search(part):
    module = part.module("search")
    import torch

    from benchmarks import common
    from stages.measures import neighbours

    device, chosen = part.device(module), module.CHOSEN
    sample, train = module.images(chosen.samples, "test"), module.images(chosen.train, "train")
    few = sample[:CPU_SAMPLES]
    found = []

    def ours():
        found[:] = neighbours.nearest(sample, train, chosen.neighbours, device=device)

    def on_cpu():
        neighbours.nearest(few, train, chosen.neighbours)

    times = common.take_turns({"ours": ours}, chosen.turns, device, "search")
    module.check(sample, train, *found)
    shape = f"{len(sample):,} x {len(train):,} x {train[0].size:,}"
    seconds = statistics.median(times["ours"])
    part.say(f"exact search, {shape}, {chosen.neighbours} neighbours", f"{seconds:.2f} s, checked by brute force")
    try:
        import faiss

        if part.on_gpu:
            flat = [torch.from_numpy(array).reshape(len(array), -1).float().numpy() for array in (sample, train)]
            resources = faiss.StandardGpuResources()
            sides = {"faiss": lambda: faiss.knn_gpu(resources, *flat, chosen.neighbours)}
            times |= common.take_turns(sides, 1, device, "faiss on the GPU")
            part.say("faiss on the GPU, fp32", f"{times['faiss'][0]:.2f} s, {times['faiss'][0] / seconds:.1f} of ours")
    except (ImportError, AttributeError) as error:
        part.say("faiss on the GPU", f"not measured: {error}")
    cpu = min(common.take_turns({"cpu": on_cpu}, 1, None, "search on the CPU")["cpu"])
    ratio = (cpu / len(few)) / (seconds / len(sample))
    part.say(
        f"the same on the CPU, {len(few):,} samples, {chosen.threads} threads",
        f"{cpu:.2f} s: {ratio:.1f} times as long a sample",
        "at least 5 times",
        ratio >= 5,
    )


def fixed_cost(part):
    module = part.module("fixed_cost")
    fixed, epoch = module.parted(module.measured(part.device(module)))
    what = "fixed cost of a train stage: start, load, first steps, save"
    part.say(
        what, f"{fixed:.1f} s (an epoch of {module.CHOSEN.images:,} images {epoch:.2f} s)", "at most 10 s", fixed <= 10
    )


def proxies(part):
    """Processes that train at the same time, as K proxy models on one card do with REDISTRIBUTE_GPU_SLOTS."""
    rates = {}
    for number in (1, 2):
        words = [sys.executable, "-m", "benchmarks.gpu", "--part", "steps", *part.words]
        started = [
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(number)
        ]
        for process in started:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a process that trains ended before its first step")
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        rates[number] = sum(float(process.stdout.readline()) for process in started)
        for process in started:
            process.wait()
        part.say(f"shards that train at a time on one device: {number}", f"{rates[number]:,.0f} images/s")
    part.say("two shards at a time / one", f"{rates[2] / rates[1]:.2f} times")


def steps(part):
    """Not a part of the table: one of the processes of `proxies`. Says ready, waits for a line, trains, and says its images/s."""
    import numpy as np

    module = part.module("training")
    import torch

    device, chosen = part.device(module), module.CHOSEN
    images = np.random.default_rng(0).integers(0, 256, (chosen.images, 32, 32, 3), np.uint8)
    side = module.Ours({"name": "ddpm"}, images, device)
    side()
    print("ready", flush=True)
    sys.stdin.readline()
    begun, num_images = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < (6 if part.on_gpu else 0.2):
        side()
        if part.on_gpu:
            torch.cuda.synchronize()
        num_images += chosen.batch * chosen.steps
    print(num_images / spent, flush=True)


def memory(part):
    module = part.module("memory")
    for name, peak in module.peaks():
        part.say(f"peak memory, {name}", f"{peak:.2f} GB")


PARTS = {
    "checks": checks,
    "training": training,
    "switches": switches,
    "agc": agc,
    "taa": taa,
    "sampling": sampling,
    "search": search,
    "fixed_cost": fixed_cost,
    "proxies": proxies,
    "memory": memory,
    "steps": steps,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="in which all of it is over")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", default=",".join(BUDGETS_S), help="comma-separated; default: all of them")
    parser.add_argument("--out", type=Path, help="file that the rows are written to as well")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        PARTS[chosen.part](Part(chosen.device))
        return
    begun = time.monotonic()
    parts = chosen.parts.split(",")
    if unknown := [name for name in parts if name not in BUDGETS_S]:
        sys.exit(f"error: --parts has {unknown[0]}, expected some of {', '.join(BUDGETS_S)}")
    if chosen.out:
        chosen.out.write_text("", encoding="utf-8")

    def say(line):
        print(line, flush=True)
        if chosen.out:
            with chosen.out.open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")

    with tempfile.TemporaryDirectory(prefix="redistribute-wheels-") as folder:
        unpack_wheels(WHEELS, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        say(HEADING)
        seconds = 60 * chosen.minutes - (time.monotonic() - begun)
        run_parts(parts, ["--device", chosen.device], seconds, say)


if __name__ == "__main__":
    main()
