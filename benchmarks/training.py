"""The training step: what AGC and TAA cost beside plain DDPM, and our loop against the one people start from.

That one is the loop of diffusers' example for unconditional training, rebuilt from its parts: images decoded and augmented by
the workers of a DataLoader, DDPMScheduler.add_noise, AdamW, EMAModel; mixed precision where --precision is bf16. Same
network, same batches, same machine, in turn. --what bookkeeping, taa, throughput or all.
"""

from benchmarks import common

CHOSEN = common.arguments(
    __doc__, what="all", network="small", batch=64, turns=10, steps=1, precision="fp32", device=None, images=2048
)

import copy  # noqa: E402 (the thread pools are set first)
import io  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.networks import NETWORKS  # noqa: E402
from stages import methods  # noqa: E402
from stages.diffusion import ddpm, unet, weights  # noqa: E402
from stages.iet import shard_state  # noqa: E402
from stages.methods import base, compiling, loop  # noqa: E402
from stages.methods.agc import memory_bank  # noqa: E402
from stages.pixels import initial_weights  # noqa: E402

TAA = {"R": 1.7, "A": 5.0, "magnitude": 3, "num_ops": 2, "max_level": 30}
SETTINGS = {
    "batch_size": CHOSEN.batch, "learning_rate": 2e-4, "warmup_steps": 0, "grad_clip_norm": 1.0, "ema_decay": 0.9999,
    "flip": True, "precision": CHOSEN.precision,
}  # fmt: skip
T = 1000


class Ours:
    """Our training step on a network of its own, ready to be called again and again.

    mode            off, inductor or graph, as compute.compile
    channels_last   as compute.channels_last
    """

    def __init__(self, method, images, device, mode="off", channels_last=False):
        self.network = unet.build(NETWORKS[CHOSEN.network], (3, 32, 32))
        weights.load(self.network, initial_weights.initial_weights(self.network, 0), "the initialisation")
        self.network.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format).train()
        method = methods.method(method)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
        self.training = loop.Training(
            self.network,
            shard_state.fresh_state(list(self.network.parameters()), method.initial_state(T, device)),
            loop.Record.empty(len(images), 1, device),
            base.Images(pixels, torch.arange(len(images))),
            method,
            SETTINGS,
            ddpm.alpha_bars(T, 1e-4, 0.02).float().to(device),
            seed=0,
            shard=0,
        )
        compiling.prepare(self.training, mode)

    def __call__(self):
        for _ in range(CHOSEN.steps):
            loop.train_step(self.training, epoch=0)


class Diffusers:
    """The loop of diffusers' example, with its images as PNG files in memory and `workers` processes that decode them."""

    def __init__(self, images, device, workers):
        import diffusers
        from diffusers.training_utils import EMAModel
        from PIL import Image
        from torchvision import transforms

        self.device = device
        self.network = diffusers.UNet2DModel.from_config(Ours({"name": "ddpm"}, images[:1], device).network.config)
        self.network.to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self.scheduler = diffusers.DDPMScheduler(num_train_timesteps=T)
        self.ema = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True)
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, step / 500))
        change = transforms.Compose(
            [
                transforms.Resize(32, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(32),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )
        files = []
        for image in images:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            files.append(stream.getvalue())

        class Decoded(torch.utils.data.Dataset):
            def __len__(self):
                return len(files)

            def __getitem__(self, i):
                return change(Image.open(io.BytesIO(files[i])).convert("RGB"))

        self.loader = torch.utils.data.DataLoader(
            Decoded(), CHOSEN.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        self.batches = iter(())

    def batch(self):
        while True:
            for images in self.batches:
                return images
            self.batches = iter(self.loader)

    def __call__(self):
        for _ in range(CHOSEN.steps):
            clean = self.batch().to(self.device)
            noise = torch.randn(clean.shape, device=self.device)
            t = torch.randint(0, T, (len(clean),), device=self.device).long()
            noisy = self.scheduler.add_noise(clean, noise, t)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=CHOSEN.precision == "bf16"):
                predicted = self.network(noisy, t).sample
                loss = torch.nn.functional.mse_loss(predicted.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
            self.ema.step(self.network.parameters())
            float(loss.detach())  # the example logs the loss of every step


def bookkeeping(images, device):
    """Plain DDPM twice, so that the noise of the comparison itself is seen, and AGC: bank, mask and counts."""
    sides = {
        "ddpm": Ours({"name": "ddpm"}, images, device),
        "ddpm, again": Ours({"name": "ddpm"}, images, device),
        "agc": Ours({"name": "agc", "lambda": 0.5, "eta": 0.8}, images, device),
    }
    times = common.take_turns(sides, CHOSEN.turns, device, "bookkeeping")
    title = f"AGC without augmentation, {describe()}, {CHOSEN.steps} steps a turn"
    common.table(title, times, "ddpm", 1e-3, "ms", CHOSEN.batch * CHOSEN.steps)
    if device.type == "cpu":
        alone(images, device)


def alone(images, device):
    """Bank, masks and counts by themselves, which are too short to be seen in the noise of whole steps."""
    side, t = Ours({"name": "agc", "lambda": 0.5, "eta": 0.8}, images, device), torch.randint(T, (CHOSEN.batch,))
    loss, bank, positions = torch.rand(CHOSEN.batch), torch.rand(T), torch.arange(CHOSEN.batch)
    record = side.training.record
    times = []
    for _ in range(200):
        start = time.perf_counter()
        skipped = memory_bank.skip_mask(loss, bank, t, 0.5)
        memory_bank.updated(bank, t, loss, 0.8)
        memory_bank.batch_loss(loss, skipped)
        record.skips.index_add_(0, positions, skipped.int())
        record.t_skipped.index_add_(0, t * 10 // T, skipped.long())
        record.epoch_skipped[0] += skipped.sum()
        times.append(time.perf_counter() - start)
    print(f"bank, mask, mean of the kept and counts by themselves: {1e3 * np.median(times):.3f} ms a step")


def taa(images, device):
    """The second pass at a share of augmented samples that is set: 0, 10, 50 and 100 %."""
    sides = {"ddpm": Ours({"name": "ddpm"}, images, device)}
    shares = (0.0, 0.1, 0.5, 1.0)
    plain = memory_bank.augment_mask
    for share in shares:
        sides[f"augmented share {share:.0%}"] = with_share(images, device, share)
    times = common.take_turns(sides, CHOSEN.turns, device, "taa")
    memory_bank.augment_mask = plain
    common.table(f"AGC with TAA, {describe()}, {CHOSEN.steps} steps a turn", times, "ddpm", 1e-3, "ms",
                 CHOSEN.batch * CHOSEN.steps)  # fmt: skip
    print("to reach: " + ", ".join(f"{1.1 * (1 + share):.2f} at {share:.0%}" for share in shares))


def with_share(images, device, share, mode="off"):
    side = Ours({"name": "agc", "lambda": 1e-6, "eta": 0.8, "taa": TAA}, images, device, mode)
    number = round(share * CHOSEN.batch)

    def call():
        memory_bank.augment_mask = lambda loss, *_: torch.arange(len(loss), device=loss.device) < number
        side()

    return call


def throughput(images, device):
    sides = {"ours, ddpm": Ours({"name": "ddpm"}, images, device)}
    for workers in (0, 2) if device.type == "cpu" else (4, 8):
        sides[f"diffusers' example, {workers} workers"] = Diffusers(images, device, workers)
    times = common.take_turns(sides, CHOSEN.turns, device, "throughput")
    title = f"Training throughput, {describe()}, {CHOSEN.precision}, {CHOSEN.steps} steps a turn"
    common.table(title, times, "ours, ddpm", 1e-3, "ms", CHOSEN.batch * CHOSEN.steps)
    seconds = float(np.median(times["ours, ddpm"])) / CHOSEN.steps
    rate, bare = step_flop(sides["ours, ddpm"].network) / seconds, matrix_product_rate(device)
    print(
        f"model FLOP utilisation of our step: {rate / bare:.1%} ({rate / 1e12:.3f} TFLOP/s of the {bare / 1e12:.3f} of a bare "
        f"{CHOSEN.precision} matrix product)"
    )


def matrix_product_rate(device):
    """FLOP/s of a large square matrix product in --precision, the best of ten: what the device can do, whatever its data sheet says."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if CHOSEN.precision == "bf16" else torch.float32)
    return 2 * size**3 / min(common.take_turns({"": lambda: a @ a}, 10, device, "bare product")[""])


def step_flop(network):
    """FLOP of one step: three times those of a forward pass (2 a multiplication and addition), counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(network).eval()(torch.zeros(1, 3, 32, 32, device=device), torch.zeros(1, device=device))
    return 3 * CHOSEN.batch * counter.get_total_flops()


def describe():
    return f"network {CHOSEN.network}, 32x32 RGB, batch {CHOSEN.batch}"


def main():
    import diffusers  # noqa: F401 (as a whole: what `unet` leaves out of it would slow or break the other side)

    device = common.torch_device(CHOSEN)
    common.heading()
    images = np.random.default_rng(0).integers(0, 256, (CHOSEN.images, 32, 32, 3), np.uint8)
    parts = {"bookkeeping": bookkeeping, "taa": taa, "throughput": throughput}
    for part in parts if CHOSEN.what == "all" else [CHOSEN.what]:
        parts[part](images, device)


if __name__ == "__main__":
    main()
