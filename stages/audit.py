"""Audits the images of a generator that someone else trained: which training images does it give out?

    python -m stages.audit --generated GENERATED --train TRAIN [--heldout HELDOUT] [--out audit]

GENERATED is a folder or a zip of images, an array file (.npz or .npy), or a saved DDPMPipeline or DDIMPipeline of diffusers, which is
then sampled. TRAIN are the images that it was trained on, HELDOUT images of the same kind that it was not trained on: each a folder,
a zip or an array file.

An audit is an experiment with one arm, whose params.yaml `settings` makes. Its phases run in this process, in a folder of its own, of
which these results are left:

    report.html    the page
    leaks.csv      the leak list, see stages.report.leaks
    metrics.json   all numbers
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

from stages import audit_sources
from stages.run import cli, files, processes

ARM, SEED = "generated", 0
MOST_NEIGHBOURS = 50  # as in the paper
ATTACKED = 1000  # training images of which a pipeline is asked whether it knows them, at most
SAMPLED = 256  # images that a pipeline is asked for, where no number is given
RESULTS = {"report.html": Path("report.html"), "leaks.csv": files.REPORT / "leaks.csv", "metrics.json": files.SUMMARY}


@dataclass(frozen=True)
class Options:
    """What may be said of an audit beside its images.

    size          side in pixels to which all images are brought; None: that of the generated images, where sizes differ
    num_images    generated images to look at, the first ones; None: all there are, and SAMPLED of a pipeline
    num_steps     steps of a pipeline's sampler
    show_images   generated images that the page shows beside training images
    device        auto, cpu or cuda
    threads       CPU threads; no result but the images of a pipeline depends on them
    """

    size: int | None = None
    num_images: int | None = None
    num_steps: int = 50
    show_images: int = 0
    device: str = "auto"
    threads: int = os.cpu_count() or 1


@dataclass(frozen=True)
class Outcome:
    """What an audit came to: of M generated images, N training images and H held-out images.

    leaks        frame, one row per training image that is given out, the clearest first; columns of stages.report.leaks
    images       frame, one row per generated image; columns of images.parquet of stages.score
    excess       float, generated images that are copies beyond chance; low and high are its 95 % interval. None without held-out images
    num_copies   generated images that count as copies of a training image
    num_generated, num_train, num_heldout   M, N, H
    metrics      what summary.json holds: dict
    settings     params.yaml of the audit: dict
    note         what was done to the images, a sentence; "" for nothing
    unseen       what such a search cannot see, a sentence: tried on altered training images
    """

    leaks: object
    images: object
    excess: float | None
    low: float | None
    high: float | None
    num_copies: int
    num_generated: int
    num_train: int
    num_heldout: int
    metrics: dict
    settings: dict
    note: str
    unseen: str


def settings(sources, size, options):
    """params.yaml of an audit: the one place that says what an audit measures.

    sources   dict role -> audit_sources.Source
    size      side in pixels that folders are resized to; None: they are not
    Returns   dict
    """
    generated = sources["generated"]
    generator, sample = {generated.kind: str(generated.link)}, {}
    if generated.kind == "folder" and size:
        generator["resize"] = True
    if generated.kind == "pipeline":
        sample = {"num_images": options.num_images or SAMPLED, "batch_size": 64, "num_steps": options.num_steps}
    elif options.num_images:
        sample = {"num_images": options.num_images}
    # Only of a model can be told whom it was trained on, and only beside images that it was not.
    attacked = {"membership": {"num_images": ATTACKED}} if generated.kind == "pipeline" and "heldout" in sources else {}
    return {
        "seeds": [SEED],
        "data": {"name": "train_and_heldout", "root": "images", "split_seed": 0} | ({"size": size} if size else {}),
        "compute": {"device": options.device, "threads": options.threads, "precision": "fp32"},
        "score": {
            "neighbours": min(MOST_NEIGHBOURS, sources["train"].num // 2),
            "thresholds": [0.4, 0.5, 0.6],
            "grid_step": 0.02,
            "variants": True,  # copies that are mirrored, shifted, cropped or of another brightness are leaks too
            "headline": {"protocol": "l2_from_gen", "threshold": 0.5, "weights": "raw"},
        },
        **attacked,
        "report": {"show_images": options.show_images},
        "arms": {ARM: {"generator": generator, "sample": sample}},
        **NOT_USED,
    }


# fmt: off
NOT_USED = {  # sections that params.yaml must have, and that nothing reads where nothing is trained
    "model": {"block_channels": [1], "attention_levels": [], "layers_per_block": 1, "norm_groups": 1},
    "diffusion": {"num_timesteps": 1000, "beta_start": 1.0e-4, "beta_end": 0.02},
    "train": {"batch_size": 1, "learning_rate": 1.0e-4, "warmup_steps": 0, "grad_clip_norm": 1.0, "ema_decay": 0.0, "flip": False},
    "sample": {"num_images": 1, "parts": 1, "batch_size": 1, "protocol": "paper", "num_steps": 50, "weights": ["raw"]},
}
# fmt: on


def main(arguments):
    asked = vars(_parser().parse_args(arguments))
    options = Options(**{field.name: asked[field.name] for field in fields(Options)})
    outcome = run({role: asked[role] for role in audit_sources.ROLES}, options, asked["out"])
    print("\n".join(told(outcome, asked["out"])))


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m stages.audit",
        description="Finds out which training images a generator gives out, from images that it made.",
    )
    add = parser.add_argument
    add("--generated", required=True, help="folder, .zip, .npz or .npy of images, or a saved pipeline of diffusers")
    add("--train", required=True, help="the images that it was trained on: folder, .zip, .npz or .npy")
    add("--heldout", help="images of the same kind that it was not trained on; without them there is no excess")
    add("--out", default="audit", help="folder of the results (default: audit)")
    add("--size", type=_whole(4), help="side in pixels of all images (default: that of the generated ones)")
    add("--num-images", type=_whole(1), help=f"generated images to look at (default: all; of a pipeline {SAMPLED})")
    add("--num-steps", type=_whole(1), default=Options.num_steps, help="steps of a pipeline's sampler (default: 50)")
    add("--show-images", type=_whole(0, 24), default=0, metavar="N", help="pairs of images on the page (default: 0)")
    add("--device", choices=["auto", "cpu", "cuda"], default=Options.device, help="default: auto")
    add("--threads", type=_whole(1), default=Options.threads, help="CPU threads (default: all)")
    return parser


def _whole(least, most=None):
    """A type for argparse: a whole number in a range."""

    def number(text):
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            limits = f"at least {least}" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} found, expected a whole number, {limits}")
        return int(text)

    return number


def run(images, options, out=None):
    """An audit, from the images to the results.

    images    dict role -> path (text or pathlib.Path), or array [M,H,W,C] or [M,H,W] uint8; heldout None: there are none
    options   Options
    out       folder of the results; None: none are written
    Returns   Outcome
    Raises    ValueError: images that cannot be audited, or a folder `out` that holds what is not of an audit
    The working directory of the process is another one meanwhile.
    """
    out = None if out is None else Path(out).absolute()
    if out is not None:
        _check_out(out, [path for path in images.values() if isinstance(path, (str, Path))])
    with _work_folder(out) as work:
        sources = audit_sources.look(images, work, options.num_images)
        sources, size, note = audit_sources.to_one_size(sources, options.size, work)
        experiment = settings(sources, size, options)
        with _in_words_of_the_user(sources, work), contextlib.chdir(work):
            _write_experiment(sources, experiment, note)
            _run_phases(experiment)
            outcome = _read(experiment, note)
            if out is not None:
                _publish(out)
    return outcome


def told(outcome, out):
    """What the command says in the end: list of lines."""
    score, at = outcome.settings["score"], outcome.settings["score"]["headline"]
    lines = [outcome.note] if outcome.note else []
    lines.append(
        f"{len(outcome.leaks):,} of {outcome.num_train:,} training images are given out: {outcome.num_copies:,} of "
        f"{outcome.num_generated:,} generated images count as copies ({at['protocol']} at {at['threshold']:g}, "
        f"{score['neighbours']} neighbours)."
    )
    if outcome.excess is None:
        lines.append(
            "There are no held-out images, so nothing says how many of these hits are chance: each is a candidate, and no proof of a copy."
        )
    else:
        lines.append(
            f"Beyond chance, as {outcome.num_heldout:,} held-out images show it, that is {outcome.excess:.1f} "
            f"[{outcome.low:.1f}, {outcome.high:.1f}] generated images (95 % interval)."
        )
    if found := outcome.metrics[ARM]["raw"].get("membership"):
        lines.append(
            f"Which images it was trained on can be told from the model itself with an AUC of {found['auc']:.2f} (0.5: not at all, 1: of each "
            "image), as far as training and held-out images do not differ by themselves."
        )
    lines.append(outcome.unseen)
    shown = outcome.settings["report"]["show_images"]
    about = {
        "report.html": f"the page: {f'shows up to {shown} pairs of images' if shown else 'shows no image'}, names training images",
        "leaks.csv": "the leak list: shows no image, names training images",
        "metrics.json": "all numbers: neither shows nor names an image",
    }
    return lines + [f"{Path(out) / name}: {meaning}" for name, meaning in about.items()]


# The folders.


def _check_out(out, sources):
    """Raises ValueError if the folder of the results holds what no audit wrote, or what was changed since, or shares a place with images.

    out       pathlib.Path, absolute
    sources   paths of images
    """
    for path in map(Path, sources):
        if path.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(path.resolve()):
            raise ValueError(
                f"the folder of the results, {out}, and the images in {path} lie in each other: give another (out)"
            )
    if not out.exists():
        return
    foreign = [out]
    if out.is_dir():
        own = {}
        with contextlib.suppress(OSError, ValueError):
            own = dict(json.loads((out / files.CHECKSUMS).read_text(encoding="utf-8")))
        found = [path for path in sorted(out.rglob("*")) if path.is_symlink() or not path.is_dir()]
        foreign = [
            p for p in found if own.get(str(p.relative_to(out))) != files.checksum(p) and p != out / files.CHECKSUMS
        ]
    if foreign:
        raise ValueError(
            f"{foreign[0]}{f' and {len(foreign) - 1} more' if foreign[1:] else ''} is not of an earlier audit, or was changed since: "
            "move it away, or give another folder (out)"
        )


@contextlib.contextmanager
def _work_folder(out):
    """The folder of the experiment. It holds images, so git ignores it wherever it lies.

    It lies beside `out`, or where the system keeps temporary files. Of an audit that was interrupted it stays, and the next one in the
    same folder takes it up: a pipeline then goes on where it stood.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="redistribute-audit-") as work:
            yield Path(work).resolve()
        return
    work = out.with_name(f".{out.name}-unfinished")
    if work.exists() and not (work / "lock").exists():
        raise ValueError(f"{work} is not of an audit: move it away, or give another folder (out)")
    lock = processes.FileLock(work / "lock")
    if not lock.try_acquire():
        raise ValueError(
            f"process {lock.holder()} is making an audit in {out}: wait for it, or give another folder (out)"
        )
    (work / ".gitignore").write_text("*\n")
    try:
        yield work.resolve()
    except Exception:
        shutil.rmtree(work, ignore_errors=True)
        raise
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.release()


def _publish(out):
    """Puts the results into their folder, in one step."""
    from stages.report import html

    with files.publish(out) as folder:
        folder.mkdir()
        for name, path in RESULTS.items():
            shutil.copyfile(path, folder / name)
        page = (folder / "report.html").read_text(encoding="utf-8")
        files.write_text(folder / "report.html", html.without_links(page, {str(RESULTS["leaks.csv"]): "leaks.csv"}))


# The experiment.


def _write_experiment(sources, experiment, note):
    """Makes the current folder one where the experiment can run."""
    import yaml

    from stages import rules

    shutil.rmtree("images", ignore_errors=True)
    Path("images").mkdir()
    for source in sources.values():
        source.link.symlink_to(source.path)
    number = experiment["arms"][ARM]["sample"].get("num_images", sources["generated"].num)
    held_out = audit_sources.count(sources["heldout"].num) if "heldout" in sources else "none"
    about = [
        f"An audit of {audit_sources.count(number)}; the generator was trained on {audit_sources.count(sources['train'].num)}; "
        f"{held_out} held out.",
        *([note] if note else []),
        f"score.neighbours is half of the training images, at most {MOST_NEIGHBOURS}.",
        f"{', '.join(NOT_USED)}: no effect, as nothing is trained.",
    ]
    comment = "".join(f"# {line}\n" for line in about)
    files.write_text("params.yaml", comment + yaml.safe_dump(experiment, sort_keys=False))
    rules.load()


def _run_phases(experiment):
    """Runs every phase of the experiment but the plan, in the order of the pipeline, in the current folder."""
    from stages import phases

    for instance in phases.instances(experiment):
        if instance.phase != "plan":
            takes_arguments = instance.arm is not None or phases.declared(instance.phase).get("reference")
            phases.module(instance.phase).main(instance.arguments.split() if takes_arguments else [])


def _read(experiment, note):
    from stages.report import results
    from stages.report.sections import blind_spots

    report = results.read(experiment)
    (at,) = report.rounds.to_dict("records")
    ends = {"excess": "excess", "low": "excess_low", "high": "excess_high"}
    return Outcome(
        leaks=report.leaks,
        images=files.load_table(files.folder("results/score", report.first_place(ARM)) / "images.parquet"),
        **{name: float(at[column]) if at["num_heldout"] else None for name, column in ends.items()},
        **{name: int(at[column]) for name, column in NUMBERS.items()},
        metrics=files.load_json(files.SUMMARY),
        settings=experiment,
        note=note,
        unseen=blind_spots.sentence(),
    )


NUMBERS = {"num_copies": "count", "num_generated": "num_images", "num_train": "num_train", "num_heldout": "num_heldout"}


@contextlib.contextmanager
def _in_words_of_the_user(sources, work):
    """Sentences on files and keys of the experiment name those of the user instead."""
    try:
        yield
    except ValueError as error:
        sentence = str(error)
        for source in sources.values():
            for link in (str(work / source.link), str(source.link)):
                sentence = sentence.replace(link, source.name)
        for key, name in {" (params.yaml)": "", "data.root": "the folder", "generator.folder": "the folder"}.items():
            sentence = sentence.replace(key, name)
        raise ValueError(sentence) from error


if __name__ == "__main__":
    cli.run(main)
