"""The section compute: every way of running a training step gives the same numbers, and what cannot be compiled is refused before it trains."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from stages import methods, models, train
from stages.diffusion import ddpm, unet, weights
from stages.iet import shard_state
from stages.methods import agc, base, compiling, loop
from stages.methods.agc import augmentation
from stages.pixels import initial_weights
from stages.run import device, params

pytestmark = pytest.mark.usefixtures("one_thread")

T, BATCH, SHAPE = 20, 4, (1, 4, 4)
MODEL = {"block_channels": [4, 4], "attention_levels": [], "layers_per_block": 1, "dropout": 0.3, "norm_groups": 2}
SETTINGS = {
    "batch_size": BATCH, "learning_rate": 1e-2, "warmup_steps": 0, "grad_clip_norm": 0.5, "ema_decay": 0.9, "flip": True,
    "precision": "fp32",
}  # fmt: skip
DDPM, AGC = {"name": "ddpm"}, {"name": "agc", "lambda": 0.95, "eta": 0.5}
TAA = AGC | {"taa": {"R": 1.2, "A": 5.0, "magnitude": 20, "num_ops": 2, "max_level": 30}}
AUTHORS = AGC | {"taa": {"R": float("inf"), "magnitude": 5, "authors": True}}
FOCUS = {"low": 0.2, "high": 0.6, "weight": 0.1}
METHODS = pytest.mark.parametrize("settings", [DDPM, AGC, TAA], ids=["ddpm", "agc", "taa"])
IMAGES = torch.randint(0, 256, (11, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def training_of(settings, network=None):
    """A round of one shard; without a network, with a UNet whose weights are the same at each call."""
    if network is None:
        network = unet.build(MODEL, SHAPE, num_classes=3)
        weights.load(network, initial_weights.initial_weights(network, 2), "the initialisation")
    method, labels = methods.method(settings), torch.arange(len(IMAGES)) % 3
    state = shard_state.fresh_state(list(network.parameters()), method.initial_state(T, torch.device("cpu")))
    for bank in state.carried.values():
        bank.fill_(1.0)  # about the first losses, so that some images are skipped and others are not
    record = loop.Record.empty(len(IMAGES), 4, "cpu")
    images = base.Images(IMAGES, torch.arange(len(IMAGES)), labels)
    alpha_bar = ddpm.alpha_bars(T, 0.005, 0.3).float()
    return loop.Training(network.train(), state, record, images, method, SETTINGS, alpha_bar, seed=5, shard=1)


def steps(training, number):
    """Losses of some steps, and everything that they have changed."""
    losses = [loop.train_step(training, epoch=0).clone() for _ in range(number)]
    changed = shard_state.unfinished_as_arrays(training.network, training.state, vars(training.record))
    return torch.stack(losses), {name: torch.from_numpy(value.copy()) for name, value in changed.items()}


def run_again(network):
    """A stand-in for a CUDA graph on a CPU: a replay runs the function again and puts all it gives where the first run put it."""

    def tensors(found):
        return [found] if isinstance(found, torch.Tensor) else [v for v in vars(found).values() if v is not None]

    def capture(body, pool=None):
        def gradients():
            return [p.grad for p in network.parameters()]

        body()
        before = gradients()
        found = body()
        places = gradients()
        anew = [place is not old for place, old in zip(places, before, strict=True)]
        # A graph that was captured while there were gradients adds to them at each replay: so must the second pass, and not the first.
        assert not any(anew) if pool else all(anew)

        def replay():
            assert not pool or all(p.grad is place for p, place in zip(network.parameters(), places, strict=True))
            for place, value in zip(tensors(found), tensors(body()), strict=True):
                place.copy_(value)
            for place, p in zip(places, network.parameters(), strict=True):
                if p.grad is not place:
                    place.copy_(p.grad)

        return replay, found, "its memory"

    return capture


@pytest.mark.parametrize("focus", [None, FOCUS], ids=["uniform", "focus"])
@METHODS
def test_a_captured_step_gives_the_bits_of_a_step(settings, focus):
    """Passes of another size sum in another order and drop other values: so TAA has one size for both."""
    plain, captured = training_of(settings), training_of(settings)
    plain.settings = captured.settings = SETTINGS | {"timestep_focus": focus}
    plain.method.rest_size = lambda count: next(size for size in plain.method.rest_sizes(BATCH) if size >= count)
    captured.captured = compiling.Captured(captured.method, run_again(captured.network))
    (losses, changed), (losses_captured, changed_captured) = steps(plain, 7), steps(captured, 7)
    assert torch.equal(losses, losses_captured) and len(losses.unique()) == 7
    for name, value in changed.items():
        assert torch.equal(value, changed_captured[name]), name
    assert (settings is DDPM) == (not plain.record.epoch_skipped[0]) and plain.record.epoch_skipped[0] < 28
    assert (settings is TAA) == (plain.record.epoch_augmented[0] > 3)


def test_of_the_second_pass_the_smallest_graph_that_suffices_is_run(monkeypatch):
    """One for a quarter, half, three quarters and all of a batch of four; none where nothing is augmented."""
    training = training_of(TAA)
    training.captured = compiling.Captured(training.method, run_again(training.network))
    run, rest, counted = [], agc.Method.rest, []

    def told(method, step, losses, size):
        run.append(size)
        counted.append(int(losses.augmented.sum()))
        return rest(method, step, losses, size)

    monkeypatch.setattr(agc.Method, "rest", told)
    steps(training, 1)
    assert run[:8] == [1, 1, 2, 2, 3, 3, 4, 4], "what is captured at the first step, twice each"
    del run[:], counted[:]
    steps(training, 20)
    assert run == counted and len(set(run)) > 1 and len(run) < 20
    assert augmentation.capacities(128) == [32, 64, 96, 128] and augmentation.capacities(6) == [2, 3, 5, 6]


def test_a_captured_step_refuses_a_batch_of_another_shape():
    training = training_of(DDPM)
    training.captured = compiling.Captured(training.method, run_again(training.network))
    steps(training, 1)
    training.settings = SETTINGS | {"batch_size": 3}
    with pytest.raises(ValueError, match=r"x is \[3, 1, 4, 4\], but the graph was captured with \[4, 1, 4, 4\]"):
        steps(training, 1)


@METHODS
def test_what_is_captured_asks_for_no_number_that_is_on_the_device(settings, monkeypatch):
    """Tensors without values: whoever asks for one, as `nonzero` and `if` do, makes the host wait, and ends with an error here."""
    unet.build(MODEL, SHAPE)  # imports
    monkeypatch.setattr(augmentation, "_on_host", lambda _: False)
    monkeypatch.setattr(augmentation, "_table", augmentation._table.__wrapped__)
    with FakeTensorMode():
        network, method = unet.build(MODEL, SHAPE), methods.method(settings)
        record, t = loop.Record.empty(11, 1, "cpu"), torch.empty(BATCH, dtype=torch.int64)
        step = base.Step(
            network=network, x=torch.empty(BATCH, *SHAPE, dtype=torch.uint8), flipped=torch.empty(BATCH) < 0, ids=None, labels=None,
            t=t, eps=torch.empty(BATCH, *SHAPE), alpha_bar=torch.empty(T), carried=method.initial_state(T, "cpu"), settings=SETTINGS,
            key=(5, 1, 0), drawn={name: torch.empty(8, 2, dtype=torch.int64) for name in method.drawn(BATCH, (5, 1, 0))},
        )  # fmt: skip
        losses = method.losses(step)
        losses.minimised.backward()
        for size in method.rest_sizes(BATCH):
            method.rest(step, losses, size).backward()
        base.clip(step)
        loop._count(record, t, t * 10 // T, losses, 0)
        assert all(p.grad is not None for p in network.parameters())
        with pytest.raises(DataDependentOutputException):
            bool(losses.minimised > 0)


def test_the_strength_of_taa_looks_at_no_threshold_on_a_device():
    given = torch.empty(3, device="meta")
    assert augmentation.relative_strength(given, given, 5.0).shape == (3,)


def test_the_unet_is_compiled_under_its_own_names_with_its_own_draws():
    """By the compiler without code generation, which does the same operations: bit for bit, dropout included."""
    plain, compiled = training_of(DDPM), training_of(DDPM)
    names = list(compiled.network.state_dict())
    compiling.by_inductor(compiled.network, backend="eager")
    (losses, changed), (losses_compiled, changed_compiled) = steps(plain, 3), steps(compiled, 3)
    assert torch.equal(losses, losses_compiled)
    assert changed.keys() == changed_compiled.keys() and list(compiled.network.state_dict()) == names
    for name, value in changed.items():
        assert torch.equal(value, changed_compiled[name]), name


class Small(torch.nn.Module):
    """As few kernels as can be: each is built by a C++ compiler."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x, t, class_labels=None):
        hidden = torch.nn.functional.dropout(torch.nn.functional.silu(self.inner(x)), 0.3, self.training)
        return SimpleNamespace(sample=self.outer(hidden) + t.view(-1, 1, 1, 1) / T)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch, of itself
def test_inductor_gives_the_numbers_of_a_step_and_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    first = Small()
    networks = [Small() for _ in range(3)]
    for network in networks:
        network.load_state_dict(first.state_dict())
    plain, straight, resumed = (training_of(AGC, network) for network in networks)
    for network in networks[1:]:
        compiling.by_inductor(network)
    (losses, changed), (losses_compiled, changed_compiled) = steps(plain, 6), steps(straight, 6)
    assert list(tmp_path.iterdir())
    # Rounding alone: fused kernels sum in another order. Another dropout mask would change a loss in its second digit.
    torch.testing.assert_close(losses_compiled, losses, rtol=1e-5, atol=1e-6)
    for name, value in changed.items():
        torch.testing.assert_close(changed_compiled[name], value, rtol=1e-3, atol=1e-5)
    _, half = steps(resumed, 3)
    anew = training_of(AGC, Small())
    compiling.by_inductor(anew.network)
    arrays = {name: value.numpy() for name, value in half.items()}
    shard_state.take_up(arrays, anew.network, anew.state, vars(anew.record))
    _, changed_resumed = steps(anew, 3)
    for name, value in changed_compiled.items():
        assert torch.equal(value, changed_resumed[name]), name


@pytest.fixture
def as_torch_comes():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def tf32():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("as_torch_comes")
def test_a_stage_rounds_no_factors_until_a_network_is_built_that_may(monkeypatch):
    experiment = asking("auto", device_name="cpu")
    for name, value in {"_check_memory": None, "_image_shape": SHAPE, "_num_classes": None}.items():
        monkeypatch.setattr(models, name, lambda *_, value=value: value)
    for precision in ("tf32", "fp32", "bf16"):
        experiment["compute"]["precision"] = precision
        params.check(experiment)
        device.allow_tf32(True)
        assert device.claim(experiment["compute"]).type == "cpu" and tf32() == (False, False)
        models.build(SimpleNamespace(params=experiment, device="cpu", phase="train", arm="ddpm"), "ddpm")
        assert tf32() == ((True, True) if precision == "tf32" else (False, False)), precision


def test_images_in_the_order_of_channels_last_give_the_numbers_and_come_back_from_files(monkeypatch):
    experiment = asking("auto") | {"model": MODEL}
    experiment["compute"]["channels_last"] = True
    for name, value in {"_check_memory": None, "_image_shape": SHAPE, "_num_classes": 3}.items():
        monkeypatch.setattr(models, name, lambda *_, value=value: value)
    job = SimpleNamespace(params=experiment, device="cpu", phase="train", arm="ddpm")
    network = models.build(job, "ddpm").network
    weights.load(network, initial_weights.initial_weights(network, 2), "the initialisation")
    plain, last = training_of(AGC), training_of(AGC, network)
    for module in [*plain.network.modules(), *network.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # which values are dropped follows their order in memory
    (losses, changed), (losses_last, changed_last) = steps(plain, 5), steps(last, 5)
    # The same sums in another order; Adam makes a large step of a small gradient, whatever its size.
    torch.testing.assert_close(losses_last, losses, rtol=1e-3, atol=1e-4)
    for name in ("carried.bank", "record.skips", "record.visits"):
        torch.testing.assert_close(changed_last[name], changed[name], rtol=1e-3, atol=1e-4)
    kernel = network.mid_block.resnets[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    arrays = {name: value.numpy() for name, value in changed_last.items()}
    ema = {name.removeprefix("ema."): value for name, value in arrays.items() if name.startswith("ema.")}
    state = shard_state.from_arrays(arrays, ema, dict(network.named_parameters()), last.state.carried, "a file")
    for found, kept in zip(
        [*state.ema, *state.exp_avg, *state.exp_avg_sq],
        [*last.state.ema, *last.state.exp_avg, *last.state.exp_avg_sq],
    ):
        assert torch.equal(found, kept) and found.stride() == kept.stride()


def asking(mode, arm=None, device_name="auto", **method):
    experiment = yaml.safe_load(TINY)
    experiment["compute"] |= {"compile": mode, "device": device_name}
    if arm:
        experiment["arms"][arm]["method"] = method
    return params.filled(experiment)


@pytest.mark.parametrize(
    ("experiment", "sentence"),
    [
        (asking("graph", device_name="cpu"), "compute.compile is graph, which only a GPU can run, but compute.device is cpu: set compile to off or inductor"),
        (asking("graph", "ddpm", **AUTHORS), "compute.compile is graph, but with arms.ddpm.method.taa.authors it is not known before a step whether anything is learnt: set compile to off or inductor"),
        (asking("graph", "iet_agc_plus", name="added_noise", variance=0.1), "compute.compile is graph, but arms.iet_agc_plus.method.name is added_noise, whose training step cannot be compiled so: set it to off, or use one of agc, ddpm"),
        (asking("inductor", "ddpm", name="dp_sgd", clip=1.0, noise_multiplier=1.0, delta=1e-5), "compute.compile is inductor, but arms.ddpm.method.name is dp_sgd, whose training step cannot be compiled so: set it to off, or use one of added_noise, agc,"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused(experiment, sentence):
    with pytest.raises(ValueError) as raised:
        train.check(experiment)
    assert str(raised.value).startswith(sentence)


def test_per_sample_gradients_do_not_go_with_channels_last():
    experiment = asking("auto", "ddpm", name="dp_sgd", clip=1.0, noise_multiplier=1.0, delta=1e-5)
    experiment["compute"]["channels_last"] = True
    with pytest.raises(
        ValueError,
        match="compute.channels_last is true, which does not go with arms.ddpm.method.name dp_sgd: set it to false",
    ):
        train.check(experiment)


def test_what_can_be_compiled_is_not_refused():
    for mode in ("auto", "off", False, "inductor"):
        train.check(asking(mode))
    train.check(asking("graph"))


def test_auto_and_off_compile_nothing_and_a_graph_needs_a_gpu(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    cpu, cuda = torch.device("cpu"), SimpleNamespace(type="cuda")
    for mode in ("auto", "off", False):
        assert [device.compile_mode({"compile": mode}, where) for where in (cpu, cuda)] == ["off", "off"]
    assert device.compile_mode({}, cuda) == "off"
    assert "TORCHINDUCTOR_CACHE_DIR" not in device.os.environ
    assert device.compile_mode({"compile": "graph"}, cuda) == "graph"
    with pytest.raises(
        ValueError, match="compute.compile is graph, which only a GPU can run, but this stage runs on the CPU"
    ):
        device.compile_mode({"compile": "graph"}, cpu)


def test_compiled_code_is_kept_in_scratch(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert device.compile_mode({"compile": "inductor"}, torch.device("cpu")) == "inductor"
    assert device.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "scratch/compiled")
