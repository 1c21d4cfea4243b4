"""Renews the table of docs/which_method.md from the results of an experiment: `python workflow/scripts/which_method.py [FOLDER]`.

FOLDER is a copy of the project where the experiment has run (here, if left out), such as experiments/digits_methods.yaml. What stands
between the two marks of the page is replaced: one row an arm, that with the least excess at equal fidelity first. Cost: images
passed through networks in training, those of a teacher included where it is asked, against the first arm.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages import experiments, rules
from stages.report import machines, trade_off
from stages.report.html import DASH, number
from stages.run import cli, files, params

PAGE = Path(__file__).parents[2] / "docs/which_method.md"
START, END = "<!-- table: workflow/scripts/which_method.py -->\n", "<!-- end -->\n"


def main(words):
    params.at_root()
    folder = Path(words[0] if words else ".")
    metrics, settings = files.load_json(folder / files.SUMMARY), rules.load(folder / params.PARAMS_FILE)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE} has no lines {START.strip()} and {END.strip()}, between which the table belongs")
    found = f"{told(settings, metrics, machines.checked_out(folder))}\n\n{table(settings, metrics)}\n"
    files.write_text(PAGE, f"{before}{START}\n{found}\n{END}{after}")
    print(f"{PAGE}: {len(experiments.trained(settings))} arms of {folder}")


def told(settings, metrics, commit):
    """What the table is of, in a sentence."""
    seeds, data = settings["seeds"], settings["data"]
    arms = experiments.trained(settings)
    num_images = metrics[next(iter(arms))]["num_images"]
    one = (
        f" **One seed ({seeds[0]}): the intervals hold for these models, and not for their methods.**"
        if len(seeds) == 1
        else ""
    )
    return (
        f"{data['name']}, {data.get('num_train', 'all')} training images, {len(seeds)} seed{'s' * (len(seeds) > 1)}, "
        f"{settings['score']['headline']['weights']} weights, {num_images:,} images a point; "
        f"commit {commit[:7] if commit else 'unknown'}.{one}"
    )


def table(settings, metrics):
    """The table in Markdown: one row an arm that is trained, by excess at equal fidelity, the arms without a verdict last."""
    weights = settings["score"]["headline"]["weights"]
    baseline, arms = trade_off.baseline_of(settings), experiments.trained(settings)
    cost = metrics[baseline]["training"]["forward_images"]

    def place(arm):
        difference = metrics[arm][weights].get("against_training_less", {}).get("difference")
        return (0.0 if arm == baseline else float("inf")) if difference is None else difference

    lines = [
        "| arm | excess at equal fidelity, % of the images [95 %] | against training less | membership AUC at equal fidelity [95 %] | fd_pixels_heldout in the end | cost, times the first arm |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm in sorted(arms, key=place):
        entry = metrics[arm][weights]
        cells = [
            *_difference(entry.get("against_training_less"), 100, arm == baseline),
            _difference(entry.get(trade_off.OF_MEMBERSHIP), 1, arm == baseline)[0],
            number(entry["fd_pixels_heldout"]),
            f"{metrics[arm]['training']['forward_images'] / cost:.2f}",
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(found, factor, is_baseline):
    """A difference with its interval, and its verdict."""
    if is_baseline:
        return "0", "the baseline"
    if found is None:
        return DASH, DASH
    if found["verdict"] is None:
        return DASH, f"none: {found['reason']}"
    value, low, high = (f"{factor * found[name]:+.2g}".replace("-", "\u2212") for name in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]", found["verdict"]


if __name__ == "__main__":
    cli.run(main)
