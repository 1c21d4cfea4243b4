"""distill_md: each image is learnt from the teachers that did not see it, through the stages from teachers to student."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, run_stages, write_params
from test_methods import pictures, step_of

from stages import experiments, plan, rules, train
from stages.diffusion import ddpm, unet, weights
from stages.methods import distill_md
from stages.pixels import initial_weights
from stages.run import files

pytestmark = pytest.mark.usefixtures("one_thread")

SEED, K = 3, 3


class Saying(torch.nn.Module):
    """Says a number times what it is shown, and remembers what that was."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.shown = torch.nn.Parameter(torch.tensor(float(factor))), []

    def forward(self, x, t, class_labels=None):
        self.shown.append((x.detach(), t, class_labels))
        return SimpleNamespace(sample=self.factor * x)


@pytest.mark.parametrize(
    ("factors", "targets"),
    [
        ([2, 5], [5, 2, 5, 2, 2, 5]),  # the teacher that did not see it
        ([2, 5, 11], [8, 6.5, 8, 3.5, 6.5, 3.5]),  # the mean of those
    ],
)
def test_losses_by_hand(factors, targets):
    """Ids are not places in the batch; teacher k saw what seen_by says."""
    method = distill_md.Method({"name": "distill_md", "teacher": "them"})
    seen_by = torch.full((40,), 0)
    ids = torch.tensor([31, 4, 17, 8, 22, 39])
    seen_by[ids] = torch.tensor([0, 1, 0, 1, 1, 0]) if len(factors) == 2 else torch.tensor([0, 1, 0, 2, 1, 2])
    teachers = [Saying(factor) for factor in factors]
    method.take_teachers(teachers, seen_by)
    student = Saying(0.5)
    step = step_of(student, pictures(6, channels=2), ids=ids, labels=torch.arange(6))
    losses = method.losses(step)
    x_t = ddpm.noised(ddpm.normalise(step.x), step.t, step.eps, step.alpha_bar)
    square = x_t.square().mean(dim=(1, 2, 3))
    expected = [float(s) * (0.5 - target) ** 2 for s, target in zip(square, targets, strict=True)]
    assert losses.original.tolist() == pytest.approx(expected, rel=1e-4)
    losses.minimised.backward()
    gradient = sum(2 * (0.5 - target) * float(s) for s, target in zip(square, targets, strict=True)) / 6
    assert float(student.factor.grad) == pytest.approx(gradient, rel=1e-4)
    assert all(teacher.factor.grad is None for teacher in teachers)  # sg
    for network in (student, *teachers):
        ((x, t, labels),) = network.shown
        assert torch.equal(x, x_t) and torch.equal(t, step.t) and torch.equal(labels, step.labels)
    assert method.passes == 1 + len(factors)


# Through the stages, with 31 images in teachers' shards of 11, 10 and 10.

TEACHERS = {
    "rounds": 2,
    "method": {"name": "ddpm"},
    "shard": {"num_shards": K, "combine": "predictions"},
    "train": {"epochs": 2, "dropout": 0.3},
    "redistribute": {},
    "sample": {},
}
STUDENT = {
    "rounds": 2,
    "method": {"name": "distill_md", "teacher": "them"},
    "shard": {"num_shards": 1},
    "train": {"epochs": 1, "dropout": 0.0},
    "redistribute": {},
    "sample": {},
}
SIZE = 31


def experiment_of(**arms):
    experiment = yaml.safe_load(TINY) | {"arms": copy.deepcopy(arms), "seeds": [SEED]}
    experiment["data"]["num_train"] = SIZE
    experiment["train"] |= {"batch_size": 4, "flip": True}
    experiment["sample"] |= {"num_images": 20, "parts": 1, "batch_size": 20, "weights": ["raw"]}
    return experiment


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    experiment = experiment_of(student=STUDENT, them=TEACHERS)  # the student stands first: the plan orders them
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("taught"))
        run_stages(experiment)
        yield experiment


def network_of(experiment, state):
    network = unet.build(experiment["model"] | {"dropout": 0.0}, (1, 8, 8))
    weights.load(network, state, "the test")
    return network


def test_a_student_through_the_stages_is_a_loop_written_out(taught):
    """Adam and the draws are those of every arm; what is learnt are the averaged weights of the teachers' last round."""
    run = f"them-seed{SEED}"
    lists = experiments.load_shards(taught["arms"]["them"], run, 2)
    assert [len(index) for index in lists] == [11, 10, 10]
    teachers = [
        network_of(taught, files.load_arrays(files.folder("train", run, 2, k) / "ema.safetensors")).eval()
        for k in range(K)
    ]
    network = unet.build(taught["model"] | {"dropout": 0.0}, (1, 8, 8))
    weights.load(network, initial_weights.initial_weights(network, SEED), "the test")
    settings, pixels = taught["train"], files.load_array(files.DATA / "train.npy")
    optimiser = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"], foreach=False)
    alpha_bar = ddpm.alpha_bars(20, 0.005, 0.4).float()

    def key(purpose, *rest):
        low, high = np.random.SeedSequence([purpose, SEED, 0, *rest]).generate_state(2, np.uint32)
        return int(low) + (int(high) << 32)

    for number in range(14):
        epoch, batch = divmod(number, SIZE // 4)
        ids = np.random.default_rng(key(4, epoch)).permutation(SIZE)[batch * 4 : (batch + 1) * 4]
        x = torch.from_numpy(pixels[ids]).permute(0, 3, 1, 2)
        flips = torch.rand(4, generator=torch.Generator().manual_seed(key(6, number))) < 0.5
        x = torch.where(flips.view(-1, 1, 1, 1), x.flip(-1), x).float() / 127.5 - 1
        noise = torch.Generator().manual_seed(key(5, number))
        t = torch.randint(20, (4,), generator=noise)
        eps = torch.randn(x.shape, generator=noise)
        signal = alpha_bar[t].view(-1, 1, 1, 1)
        x_t = signal.sqrt() * x + (1 - signal).sqrt() * eps
        with torch.no_grad():
            said = [teacher(x_t, t).sample for teacher in teachers]
            unseen = [[k for k in range(K) if i not in lists[k]] for i in ids]
            assert all(len(ks) == 2 for ks in unseen)
            target = torch.stack([sum(said[k][j] for k in ks) / 2 for j, ks in enumerate(unseen)])
        optimiser.param_groups[0]["lr"] = settings["learning_rate"] * min(1, (number + 1) / settings["warmup_steps"])
        optimiser.zero_grad()
        (network(x_t, t).sample - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings["grad_clip_norm"])
        optimiser.step()
    found = files.load_arrays(files.folder("model", f"student-seed{SEED}", 2) / "raw.safetensors")
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(found[name], parameter.detach().numpy(), rtol=2e-3, atol=2e-5, err_msg=name)
    counts = files.load_arrays(files.counts_file(f"student-seed{SEED}", 2, 0))
    assert counts["forward_images"].tolist() == [(1 + K) * 28]


def test_images_that_no_teacher_knows_are_told(taught):
    index = files.folder("shards", f"them-seed{SEED}", 1) / "shard1.npy"
    kept = index.read_bytes(), (index.parent / files.CHECKSUMS).read_bytes()
    (index.parent / files.CHECKSUMS).unlink()
    files.save_array(index, files.load_array(index)[:-3])
    try:
        with pytest.raises(ValueError, match="knows nothing of 3 of the training images: rerun the arm that teaches"):
            train.main(["--arm", "student", "--seed", str(SEED), "--round", "1", "--shard", "0"])
    finally:
        index.write_bytes(kept[0])
        (index.parent / files.CHECKSUMS).write_bytes(kept[1])


def test_a_student_waits_for_the_last_round_of_its_teachers():
    experiment = experiment_of(student=STUDENT, them=TEACHERS, ddpm=STUDENT | {"method": {"name": "ddpm"}})
    found = plan.expand(experiment)
    for name in (f"train_student@student-seed{SEED}-round1-shard0", f"train_next_student@student-seed{SEED}-round2-shard0"):  # fmt: skip
        assert found[name].teacher == f"artifacts/model/them-seed{SEED}/round2"
        assert found[name].teacher_shards == f"artifacts/shards/them-seed{SEED}/round1"
    assert f"train@ddpm-seed{SEED}-round1-shard0" in found and f"train@student-seed{SEED}-round1-shard0" not in found
    scale = plan.scale(experiment)
    works = [found[f"{name}-seed{SEED}-round1-shard0"].work(scale) for name in ("train_student@student", "train@ddpm")]
    assert works[0] - works[1] == SIZE * K / 3  # one epoch, three forward passes an image
    assert "teacher" not in found[f"train@them-seed{SEED}-round1-shard0"].item()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": {"name": "distill_md", "teacher": "student"}}, "arms.student.method.teacher is student, expected an arm with shard.combine: predictions that is no student itself: them"),
        ({"method": {"name": "distill_md", "teacher": "nobody"}}, "arms.student.method.teacher is nobody, expected an arm with"),
        ({"method": {"name": "distill_md", "teacher": "iet"}}, "arms.student.method.teacher is iet, expected an arm with"),
        ({"method": {"name": "distill_md", "teacher": "masked"}}, "arms.student.method.teacher is masked, whose networks do not predict the noise"),
        ({"method": {"name": "distill_md", "teacher": "pupil"}}, "arms.student.method.teacher is pupil, expected an arm with"),
        ({"method": {"name": "distill_md"}}, "the key arms.student.method.teacher is missing"),
        ({"train": {"epochs": 1, "told_augmentation": {"p": 0.1, "kinds": ["shift"]}}}, "train.told_augmentation of student does not go with the method distill_md"),
    ],
)  # fmt: skip
def test_who_cannot_teach_is_told_before_anything_runs(tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    others = {
        "iet": TEACHERS | {"shard": {"num_shards": K}},
        "masked": TEACHERS | {"method": {"name": "ambient", "p": 0.2, "delta": 0.1}},
        "pupil": TEACHERS | {"method": {"name": "distill_md", "teacher": "them"}},
    }
    used = {changes.get("method", {}).get("teacher")} & others.keys()
    write_params(experiment_of(student=STUDENT | changes, them=TEACHERS, **{name: others[name] for name in used}))
    with pytest.raises(ValueError) as refused:
        rules.load()
    assert sentence in str(refused.value)
