"""The figures of the report: data frames in, inline SVG (or one PNG as a data address) out; None where there is nothing to draw.

Colours are names of CSS variables that the page sets for a light and for a dark screen, and all ink is the page's own text
colour, so that one SVG suits both. Arms differ by colour, marker and line style, for readers who see few colours or print.
The same data give the same bytes.
"""

import base64
import io
import math
import re
from html import escape

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from PIL import Image

INK = "#010101"  # becomes currentColor
ARM_COLOURS = [f"#0{i}0{i}fe" for i in range(1, 9)]  # become var(--arm-1) ... var(--arm-8)
MARKERS = "os^DvPX<>"  # 9 markers, 8 colours: 72 arms before two look the same
LINES = ["-", "--", "-.", (0, (1, 1.2))]
STYLE = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "redistribute",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
# Of a line over the epochs: more cannot be seen, and 17 arms of 2,000 epochs would make a page of megabytes.
MAX_POINTS = 200
MAX_GALLERY_PX = 96


def mq_curve(results, arms, weights, protocol, marks, column="share", reference=True, bands=None):
    """Share of the generated images (or excess share) against the threshold, one line per arm, the mean of its seeds.

    marks      the thresholds of the tables: a marker there
    column     "share" or "excess_share"
    reference  also draw what held-out real images reach in the place of generated ones
    bands      frame with arm, threshold, low and high (shares), drawn around the lines; None for none
    """
    rows = results[(results.weights == weights) & (results.protocol == protocol)]
    rows = rows[rows[column].notna()]
    if rows.empty:
        return None
    means = rows.groupby(["arm", "threshold"], sort=True)[[column, "simplicity", "num_images"]].mean()
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(arms) + 1)
        for number, arm in enumerate(arms):
            if arm in means.index:
                line = means.loc[arm]
                marked = [i for i, threshold in enumerate(line.index) if np.isclose(threshold, marks).any()]
                axes.plot(line.index, 100 * line[column], label=arm, markevery=marked, **_look(number))
                if bands is not None:
                    band = bands[bands.arm == arm].sort_values("threshold")
                    colour = _look(number)["color"]
                    axes.fill_between(band.threshold, 100 * band.low, 100 * band.high, color=colour, alpha=0.12, lw=0)
        real = means.loc[means.index[0][0]]
        if reference and column == "share" and real.simplicity.notna().any():
            axes.plot(
                real.index,
                100 * real.simplicity / real.num_images,
                color=INK,
                alpha=0.5,
                lw=1,
                label="held-out real images",
            )
        name = "memorised, MQ" if column == "share" else "excess"
        axes.set(xlabel="threshold δ of the ratio (no unit)", ylabel=f"{name} (% of generated images)")
        axes.set_title(f"{protocol}, {weights} weights")
        return _svg(figure, f"{name} against the threshold, protocol {protocol}, {weights} weights")


def excess_against_fidelity(rounds, arms, weights, threshold, protocol, fidelity, fidelity_label):
    """Curves of memorisation over fidelity: a line per arm and seed, a marker per round, with 95 % intervals of the
    excess and, where rounds has them in the column <fidelity>_error, of the fidelity.

    Rings mark the points that no other point of the figure beats in both directions. Up to the shaded height there are points whose
    excess is not distinguishable from 0.

    rounds           frame as Report.rounds
    fidelity         column of rounds; fidelity_label names it at the axis
    """
    rows = rounds[(rounds.weights == weights) & rounds[fidelity].notna()]
    if rows.empty:
        return None
    held_out = rows.excess.notna().all()
    shares = rows[["excess", "excess_low", "excess_high", "count"]].mul(100 / rows.num_images, axis=0)
    shares = shares.assign(arm=rows.arm, seed=rows.seed, x=rows[fidelity], y=shares["excess" if held_out else "count"])
    shares["x_error"] = rows.get(f"{fidelity}_error")
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(arms), height=4.2)
        for number, arm in enumerate(arms):
            for i, (_, of_seed) in enumerate(shares[shares.arm == arm].groupby("seed", sort=False)):
                _draw_curve(axes, of_seed, _look(number) | {"markersize": 5}, held_out, arm if i == 0 else None)
        front = undominated(shares.x.to_numpy(), shares.y.to_numpy())
        axes.plot(shares.x[front], shares.y[front], "o", mfc="none", mec=INK, ms=10, mew=0.9, label="undominated")
        axes.axhline(0, color=INK, alpha=0.4, lw=1)
        if held_out and (unclear := shares.y[shares.excess_low <= 0]).size:
            axes.axhspan(min(0, unclear.min()), max(0, unclear.max()), color=INK, alpha=0.06, lw=0)
        axes.margins(0.1)
        if shares.x.max() > 10 * shares.x.min() > 0:  # one very unfaithful arm would push all others together
            _log_scale(axes, "x")
        what = "excess" if held_out else "memorised, MQ"
        axes.set(
            xlabel=f"{fidelity_label}, lower = more faithful",
            ylabel=f"{what} at {threshold:g} (% of generated images)",
        )
        axes.set_title(f"{protocol}, {weights} weights")
        return _svg(figure, f"{what} against {fidelity}, a line per arm and seed, a point per round")


def undominated(x, y):
    """Which points no other point beats: none is lower in one and at most as high in the other. x, y [P] float; returns [P] bool."""
    beaten = (x[None] <= x[:, None]) & (y[None] <= y[:, None]) & ((x[None] < x[:, None]) | (y[None] < y[:, None]))
    return ~beaten.any(axis=1)


def _draw_curve(axes, of_seed, look, held_out, label):
    """The rounds of one run, joined in their order."""
    if held_out:
        bars = [of_seed.y - of_seed.excess_low, of_seed.excess_high - of_seed.y]
        x_bars = of_seed.x_error if of_seed.x_error.notna().all() else None
        axes.errorbar(of_seed.x, of_seed.y, np.maximum(bars, 0), x_bars, elinewidth=0.8, label=label, **look)
    else:
        axes.plot(of_seed.x, of_seed.y, label=label, **look)


def roc(curves, arms):
    """ROC curves with both axes in powers of ten, as what is found with few false alarms matters most.

    curves   dict name -> (false shares, found shares), two [P] arrays that end at 1
    arms     all arms: each has one colour in all figures of the page; a name that is none is drawn in grey
    """
    drawn = {name: curve for name, curve in curves.items() if (curve[1] > 0).any()}
    if not drawn:
        return None
    least = min(false[false > 0].min() for false, _ in drawn.values())
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(drawn))
        for name, (false, found) in drawn.items():
            look = _look(arms.index(name)) if name in arms else {"color": INK, "alpha": 0.5, "linestyle": "-"}
            axes.plot(100 * np.maximum(false, least), 100 * found, **{**look, "marker": "none"}, label=name)
        axes.plot([100 * least, 100], [100 * least, 100], color=INK, alpha=0.4, lw=1, linestyle=":")
        axes.set(xlabel="held-out images taken for training images (%)", ylabel="training images found (%)")
        axes.set_ylim(bottom=100 * least)
        for which in "xy":
            _log_scale(axes, which)
        return _svg(figure, "Training images found against false alarms")


def auc_against_fidelity(rounds, arms, fidelity, fidelity_label):
    """Curves of the membership AUC over fidelity: a line per arm and seed, a marker per round, with 95 % intervals.

    rounds           frame as Report.rounds, of one kind of weights, with the columns of membership where there are such
    fidelity         column of rounds; fidelity_label names it at the axis
    """
    if "membership_auc" not in rounds or rounds.membership_auc.isna().all():
        return None
    rows = rounds[rounds.membership_auc.notna() & rounds[fidelity].notna()]
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(arms))
        for number, arm in enumerate(arms):
            for i, (_, of_seed) in enumerate(rows[rows.arm == arm].groupby("seed", sort=False)):
                auc = of_seed.membership_auc
                low, high = (of_seed[f"membership_auc_{end}"].fillna(auc) for end in ("low", "high"))
                label = arm if i == 0 else None
                axes.errorbar(
                    of_seed[fidelity], auc, [auc - low, high - auc], elinewidth=0.8, label=label, **_look(number)
                )
        axes.axhline(0.5, color=INK, alpha=0.4, lw=1)
        if rows[fidelity].max() > 10 * rows[fidelity].min() > 0:
            _log_scale(axes, "x")
        axes.set(xlabel=f"{fidelity_label}, lower = more faithful", ylabel="membership AUC (0.5 = chance)")
        return _svg(figure, f"membership AUC against {fidelity}, a line per arm and seed, a point per round")


def share_against_size(means, arms, mark):
    """Share of the generated images that are memorised (%) against the number of training images, one line per arm.

    means   frame with arm, num_train, share
    mark    share to mark
    """
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(arms))
        for number, arm in enumerate(arms):
            rows = means[means.arm == arm].sort_values("num_train")
            if len(rows):
                axes.plot(rows.num_train, 100 * rows.share, label=arm, **_look(number))
        axes.axhline(100 * mark, color=INK, alpha=0.4, lw=1)
        axes.set(xlabel="training images", ylabel="memorised (% of generated images)")
        axes.set_ylim(bottom=0)
        _log_scale(axes, "x")
        return _svg(figure, "Memorised share against the number of training images")


def over_epochs(epochs, arms, column, label, log=False):
    """A column of the epochs frame against the epoch, one line per arm (the mean of its seeds), a marker at the end of a round.

    Arms that stay at zero are left out; None when all do.
    """
    means = epochs.groupby(["arm", "epoch"], sort=True)[[column, "round"]].mean()
    drawn = [arm for arm in arms if arm in means.index and means.loc[arm][column].fillna(0).any()]
    if not drawn:
        return None
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(drawn))
        for arm in drawn:
            line = means.loc[arm]
            x, y = _thinned(line.index.to_numpy(float), line[column].to_numpy(float))
            ends = line.index[line["round"] != line["round"].shift(-1)].to_numpy(float)
            look = _look(arms.index(arm))
            axes.plot(x, y, **{**look, "marker": "none", "linewidth": 1.2})
            at = np.searchsorted(x, ends, side="right") - 1  # the last point of the round, not a step into the next
            axes.plot(x[at], y[at], **{**look, "linestyle": "none"})
            axes.plot([], [], label=arm, **look)
        axes.set(xlabel="epoch, counted over all rounds", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log:
            _log_scale(axes)
        else:
            axes.set_ylim(bottom=0)
        return _svg(figure, f"{label} over the epochs")


def skip_histogram(histogram, arms):
    """How many training images were skipped how often, one outline per arm (the mean of its seeds); arms that never skip are left out."""
    drawn = [arm for arm in arms if (histogram[histogram.arm == arm].skips > 0).any()]
    if not drawn:
        return None
    width = math.ceil((histogram.skips.max() + 1) / 50)
    edges = np.arange(0, histogram.skips.max() + width + 1, width)
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(drawn))
        for arm in drawn:
            rows = histogram[histogram.arm == arm]
            images, _ = np.histogram(rows.skips, edges, weights=rows.images / rows.seed.nunique())
            look = _look(arms.index(arm))
            axes.stairs(images, edges - 0.5, color=look["color"], linestyle=look["linestyle"], linewidth=1.4, label=arm)
        axes.set(xlabel=f"skips of a training image over all rounds (bins of {width})", ylabel="training images")
        axes.set_ylim(bottom=0)
        return _svg(figure, "Training images by the number of their skips")


def loss_by_timestep(curves, arm, labels):
    """Fig. 3: mean loss of each group of images against the timestep, with a band over the middle half of the images.

    curves   frame: group, timestep, mean, low, high
    labels   what to call each group, by name, in the order of the legend
    """
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(labels))
        for position, (group, label) in enumerate(labels.items()):
            rows = curves[curves.group == group]
            if rows.empty:
                continue
            look = {**_look(position), "marker": "none"}
            x, mean = _thinned(rows.timestep.to_numpy(float), rows["mean"].to_numpy())
            low, high = (_thinned(rows.timestep.to_numpy(float), rows[name].to_numpy())[1] for name in ("low", "high"))
            axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
            axes.plot(x, mean, label=label, **look)
        axes.set(xlabel="timestep t (0 = clean)", ylabel="loss (mean squared error)")
        axes.set_title(arm)
        _log_scale(axes)
        return _svg(figure, f"Loss against timestep, {arm}")


def two_histograms(values, label, title):
    """Shares (%) of groups of images by some value; the same bins for all groups.

    values   dict name -> [n] numbers
    """
    looks = {name: _look(position) for position, name in enumerate(values)}
    return _outlines(values, looks, label, "images of the group (%)", title)


def histogram(values, arms, label):
    """Shares (%) of the images of each arm by some value, one outline per arm and the same bins for all.

    values   dict arm -> [n] finite numbers; arms without any are left out
    arms     all arms: each has one colour in all figures of the page
    """
    drawn = {arm: numbers for arm, numbers in values.items() if len(numbers)}
    if not drawn:
        return None
    looks = {arm: _look(arms.index(arm)) for arm in drawn}
    return _outlines(drawn, looks, label, "images of the arm (%)", None)


def _outlines(values, looks, label, ylabel, title):
    together = np.concatenate(list(values.values()))
    num_bins = min(30, max(map(len, values.values())) // 3 + 3)  # fewer images, wider bins
    edges = np.linspace(together.min(), max(together.max(), together.min() + 1e-6), num_bins + 1)
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(values))
        for name, numbers in values.items():
            percent = 100 * np.histogram(numbers, edges)[0] / len(numbers)
            look = looks[name]
            axes.stairs(percent, edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.4, label=name)
        axes.set(xlabel=label, ylabel=ylabel)
        axes.set_ylim(bottom=0)
        if title:
            axes.set_title(title)
        return _svg(figure, f"{label}, {title}" if title else label)


def similarity_histogram(similarity, arms, train):
    """Fig. 6: density of the similarities of generated images to their nearest training image, one row per arm, and behind each that of
    the training images to each other. As fine as the paper's from 1,990 images on, coarser for fewer.

    similarity   dict arm -> [n] similarities
    train        [N] similarities
    """
    edges = np.linspace(0, 1, min(199, max(20, min(map(len, similarity.values())) // 10)) + 1)

    def density(values):
        return np.histogram(np.clip(values, 0, 1), edges, density=True)[0]

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(4.8, 0.8 + 0.5 * len(similarity)), layout="constrained")
        rows = figure.subplots(len(similarity), sharex=True, squeeze=False)[:, 0]
        for axes, (arm, values) in zip(rows, similarity.items(), strict=True):
            colour = _look(arms.index(arm))["color"]
            axes.stairs(density(train), edges, color=INK, alpha=0.25, fill=True)
            axes.stairs(density(values), edges, color=colour, linewidth=1.4)
            axes.set(xlim=(0, 1), yticks=[])
            axes.set_ylim(bottom=0)
            axes.set_ylabel(arm, rotation=0, horizontalalignment="right", verticalalignment="center")
        rows[-1].set_xlabel("similarity to the nearest training image (1 = copy)")
        return _svg(figure, "Similarity to the nearest training image")


def skip_rates(rates, arms, mark):
    """Fig. 9 normalised: share of the training images at or below a skip rate, one line per arm.

    rates   dict arm -> [n] skip rates, skips per visit
    mark    skip rate to mark
    """
    shares = np.linspace(0, 1, 101)
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(rates))
        for arm, numbers in rates.items():
            look = _look(arms.index(arm))
            axes.plot(100 * np.quantile(numbers, shares), 100 * shares, **{**look, "marker": "none"}, label=arm)
        axes.axvline(100 * mark, color=INK, alpha=0.4, lw=1)
        axes.set(xlabel="skips of a training image (% of its visits)", ylabel="training images at or below (%)")
        return _svg(figure, "Training images by their skip rate")


def skip_by_timestep(percent, arms):
    """Skipped share by tenth of the timesteps, one line per arm: dict arm -> [10] percent."""
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes(len(percent))
        for arm, numbers in percent.items():
            axes.plot(np.arange(5, 100, 10), numbers, label=arm, **_look(arms.index(arm)))
        axes.set(xlabel="timestep (% of T, 0 = clean)", ylabel="skipped (% of the images visited)")
        axes.set_ylim(bottom=0)
        return _svg(figure, "Skipped share by timestep")


def png(image):
    """[H, W, C] uint8, C = 1 or 3, as the data address of a PNG; larger images shrink to 96 px, small ones grow in the browser."""
    step = math.ceil(max(image.shape[:2]) / MAX_GALLERY_PX)
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if step > 1:
        picture = picture.reduce(step)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _axes(num_labels, height=3.4):
    """A figure as wide as a phone can show with readable text; it grows with its legend."""
    figure = Figure(figsize=(4.8, height + 0.19 * math.ceil(num_labels / 2)), layout="constrained")
    return figure, figure.add_subplot()


def _look(number):
    return {
        "color": ARM_COLOURS[number % len(ARM_COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }


def _thinned(x, y):
    """Means of neighbouring epochs, at most MAX_POINTS of them."""
    size = math.ceil(len(x) / MAX_POINTS)
    starts = np.arange(0, len(x), size)
    lengths = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / lengths, np.add.reduceat(y, starts) / lengths


def _log_scale(axes, which="y"):
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    plain = FuncFormatter(lambda value, _: f"{value:g}")  # 0.02 reads better than a power, and powers need a maths font
    low, high = axis.get_view_interval()
    # Of 1, 2 and 5 hardly any lies on an axis that is less than a decade long.
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(5))
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _svg(figure, title):
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Metadata hold web addresses, as the two namespaces do; a style would hold for the whole page, which has it in its CSS.
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]+)"', text)[1]
    text = f'<svg viewBox="{view_box}" role="img"><title>{escape(title)}</title>' + text[text.index(">") + 1 :]
    text = re.sub(r"<defs>\s*<style.*?</defs>\s*", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # figure_1, axes_1, ...: the same in each figure of the page
    text = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", text)  # the page's own font
    text = text.replace(INK, "currentColor")
    for number, colour in enumerate(ARM_COLOURS, start=1):
        text = text.replace(colour, f"var(--arm-{number})")
    return text
