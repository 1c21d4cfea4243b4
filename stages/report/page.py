"""The page of the report: numbers in, HTML out. Needs nothing beyond Python itself, so that renewing the page is quick.

One file without scripts or addresses: it can be mailed, and read on a phone, in light or dark. Every text that comes from
outside passes through `escape`; only SVG of report_figures goes in as it is.
"""

import math
import re
from html import escape
from typing import NamedTuple

DASH = "–"
PHASES = [
    "plan",
    "data",
    "shard",
    "train",
    "aggregate",
    "redistribute",
    "sample",
    "score",
    "quality",
    "similarity",
    "clip",
    "detect",
    "analyse",
    "report",
]
CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #ffffff; --quiet: #5b6168; --line: #d5d9de; --tint: #f3f5f7;
  --arm-1: #0072b2; --arm-2: #cf4f00; --arm-3: #00805c; --arm-4: #b0479a; --arm-5: #8a6a00; --arm-6: #2f8fcb;
  --arm-7: #5b4fc4; --arm-8: #666666; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --paper: #15181b; --quiet: #9aa2aa; --line: #3a4047;
  --tint: #1e2226; --arm-1: #56b4e9; --arm-2: #f58a4b; --arm-3: #2fc79b; --arm-4: #e79cc8; --arm-5: #f0c342;
  --arm-6: #a5d6f5; --arm-7: #aaa0ff; --arm-8: #b8b8b8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.9rem, 3vw, 2.5rem) 4rem; max-width: 80rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 0.2rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; }
p, dl { max-width: 46rem; }
a { color: var(--arm-1); }
.quiet, figcaption { color: var(--quiet); font-size: 0.9rem; }
.headline { margin-top: 1rem; max-width: 52rem; padding: 0.8rem 1rem; background: var(--tint); border-left: 4px solid var(--arm-1); }
.headline p { max-width: none; margin: 0.3rem 0; }
.scroll { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; line-height: 1.25; }
tbody th { text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--paper); }
thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
dt { font-weight: 600; margin-top: 0.5rem; }
dd { margin: 0; }
figure { margin: 0.5rem 0; min-width: 0; }
figure svg { width: 100%; max-width: 34rem; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 0.9rem; }
.gallery figcaption { font-size: 0.78rem; line-height: 1.35; overflow-wrap: anywhere; }
.pair { display: flex; gap: 3px; }
.grid img { width: 5rem; image-rendering: pixelated; background: var(--tint); display: block; margin-left: auto; }
.grid tbody th { white-space: normal; min-width: 8rem; max-width: 14rem; font-weight: normal; }
.pair img { width: calc(50% - 1.5px); image-rendering: pixelated; background: var(--tint); }
pre { overflow-x: auto; padding: 0.8rem; background: var(--tint); font-size: 0.82rem; line-height: 1.4; }
summary { cursor: pointer; }
@media (max-width: 30rem) { body { font-size: 0.95rem; } th, td { padding: 0.3rem 0.5rem; } }
"""


class View(NamedTuple):
    """A table of the page as plain text: rows are dicts of cells by column, notes are numbered from 1; all may be empty."""

    title: str
    caption: str
    rows: list = ()
    notes: list = ()


def page(body, machines):
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Redistribute: report</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n{machines}\n</main>\n"
        "</body>\n</html>\n"
    )


def body(
    settings,
    params_text,
    metrics,
    per_seed,
    figures,
    galleries,
    leaks,
    analyses,
    trade_off,
    published,
    quality,
    similarity,
    prompts,
):
    """The part of the page that follows from the artifacts alone.

    metrics    as in metrics.json
    per_seed   dicts, one an arm, seed and weights, at the headline protocol and threshold
    figures    SVG by name, None where there is nothing to draw
    galleries  per arm its dicts: generated and train (data addresses, or None where no pictures are shown), image, ratio, key, copies (0: does not count)
    leaks      per arm of the gallery's run: training images given out, and generated images that are their copies
    analyses   list of report_analyses.Block, [] where nothing was analysed
    trade_off  View of report_trade_off
    published  list of Views of report_tables
    quality    HTML of the section that report_quality makes
    similarity, prompts   HTML of the sections of report_similarity and report_prompts, "" where the phases are left out
    """
    params_block = f"<details><summary>params.yaml</summary>\n<pre>{escape(params_text)}</pre>\n</details>"
    return "\n".join(
        [
            _top(settings, metrics, per_seed[0], published, analyses, similarity, prompts),
            _arms(settings, metrics),
            quality,
            similarity,
            prompts,
            _seeds(settings, per_seed),
            _published(published),
            _curves(settings, figures),
            _trade_off(settings, figures, trade_off),
            _gallery(settings, metrics, galleries, leaks, per_seed[0]["num_train"]),
            _training(settings, metrics, figures),
            _analyses(analyses),
            f'<section>\n<h2 id="settings">Settings</h2>\n{params_block}\n</section>',
        ]
    )


def headline(settings, metrics):
    """A few sentences: which arm memorises least, against the baseline, and whether the intervals tell them apart."""
    weights, protocol, threshold = _headline(settings)
    arms = list(settings["arms"])
    cell = {arm: metrics[arm][weights][protocol][f"{threshold:g}"] for arm in arms}
    fidelity = {arm: metrics[arm][weights]["fd_pixels"] for arm in arms}
    baseline, others = arms[0], arms[1:]
    held_out = all(cell[arm]["excess"] is not None for arm in arms)
    what = "excess" if held_out else "count"
    # Compared by share, as arms may differ in how many images they generate.
    share = {arm: _per_image(cell[arm], metrics[arm]) for arm in arms}

    def told(arm):
        if not held_out:
            return f"{arm} has {tally(cell[arm]['count'])} memorised images of {metrics[arm]['num_images']:,}"
        return f"{arm} has an excess of {interval_text(cell[arm])} images of {metrics[arm]['num_images']:,}"

    def compared(arm):
        return f"(fd_pixels {number(fidelity[arm])} against {number(fidelity[baseline])}, lower is better)"

    if not others:
        sentences = [f"{told(baseline)}. There is no other arm to compare it with."]
    else:
        faithful = [arm for arm in others if fidelity[arm] <= fidelity[baseline]]
        best = min(faithful or others, key=lambda arm: share[arm][what])
        change = _change(share[best][what], share[baseline][what])
        sentences = [f"{told(best)}, the baseline {told(baseline)}: {change}."]
        if best in faithful:
            sentences.append(f"{best} is no less faithful than the baseline {compared(best)}.")
        lower = [arm for arm in others if arm not in faithful and share[arm][what] <= share[best][what]]
        if lower:
            least = min(lower, key=lambda arm: share[arm][what])
            also = "" if least == best else f"{told(least)}, but "
            sentences.append(
                f"{also}{least} is less faithful than the baseline {compared(least)}: images far from the data count less often "
                "as memorised, so its result may in part be lost fidelity."
            )
        if held_out:
            apart = [arm for arm in others if _apart(share[arm], share[baseline])]
            less = [arm for arm in apart if share[arm]["excess"] < share[baseline]["excess"]]
            places = {
                "below the baseline's": less,
                "above the baseline's": [arm for arm in apart if arm not in less],
                "overlapping the baseline's, so not told apart,": [arm for arm in others if arm not in apart],
            }
            parts = [f"{place} for {_listed(names)}" for place, names in places.items() if names]
            sentences.append(f"95 % intervals: {'; '.join(parts)}.")
    if similarity := {arm: found for arm in arms if (found := metrics[arm][weights].get("similarity"))}:
        least = min(similarity, key=lambda arm: similarity[arm]["percentile_95"])
        told_of = ", ".join(
            f"{arm} {number(similarity[arm]['percentile_95'])}" for arm in dict.fromkeys([least, baseline])
        )
        sentences.append(f"Similarity to the nearest training image, 95th percentile: {told_of}.")
    if not held_out:
        sentences.append("There is no held-out set, so nothing says how much of these counts is memorisation.")
    if len(settings["seeds"]) == 1:
        sentences.append("One training run an arm: the intervals do not hold what another seed would change.")
    return sentences


def text_table(settings, metrics, width=120):
    """The headline table as plain text, at most `width` columns: where it is wider, without what the page shows too, then with
    names cut."""
    weights, protocol, threshold = _headline(settings)
    fid_protocol = next(iter(metrics[next(iter(settings["arms"]))][weights].get("fid", {})), None)
    rows = []
    for arm in settings["arms"]:
        of_weights, training = metrics[arm][weights], metrics[arm].get("training")
        at = of_weights[protocol][f"{threshold:g}"]
        rows.append(
            {
                "arm": arm,
                **{f"MQ {t}": tally(cell["count"]) for t, cell in of_weights[protocol].items()},
                "excess [95 %]": interval_text(at),
                "simplic.": tally(at["simplicity"]),
                "distinct": tally(at["distinct"]),
                "fd_pixels": number(of_weights["fd_pixels"]),
                **({"FID": number(of_weights["fid"][fid_protocol])} if fid_protocol else {}),
                **({"Sim": f"{found['percentile_95']:.3f}"} if (found := of_weights.get("similarity")) else {}),
                "skip %": _percent(training["skipped_share"]) if training else DASH,
                "augm %": _percent(training["augmented_share"]) if training else DASH,
                "moved": tally(training["moved"]) if training else DASH,
                "seeds": str(metrics[arm]["num_seeds"]),
            }
        )
    for left_out in ("simplic.", "distinct"):  # the page has them
        if sum(2 + max(map(len, [head, *(row[head] for row in rows)])) for head in rows[0]) - 2 > width:
            rows = [{head: cell for head, cell in row.items() if head != left_out} for row in rows]
    heads, rows = list(rows[0]), [list(row.values()) for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    widths[0] = max(8, min(widths[0], width - sum(w + 2 for w in widths[1:])))
    lines = [f"{protocol}, {weights} weights; excess{' and distinct' if 'distinct' in heads else ''} at {threshold:g}"]
    if fid_protocol:
        lines[0] += f"; FID by {fid_protocol}"
    if "Sim" in heads:
        lines[0] += "; Sim: 95th percentile"
    for row in [heads, ["-" * w for w in widths], *rows]:
        name = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "…"
        lines.append(
            "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        )
    return "\n".join(line[:width].rstrip() for line in lines)


def machines(settings, records, unreadable, commit, now):
    """When and where: from the records that stages leave in logs/timing, as far as they are there. In no hash.

    records     dicts of the stages' records, those of instances that params.yaml no longer names included
    unreadable  number of records that could not be read
    """
    records = [record for record in records if _in_plan(settings, record)]
    phases = [p for p in PHASES if any(r["phase"] == p for r in records)] or PHASES[2:]
    rows = []
    for arm in [*settings["arms"], None]:
        of_arm = [r for r in records if r["arm"] == arm]
        if arm is None and not of_arm:
            continue
        row = {"arm": arm or "all arms"}
        for phase in phases:
            seconds = [r["seconds"] for r in of_arm if r["phase"] == phase]
            row[phase] = duration(sum(seconds)) if seconds else DASH
        row["all phases"] = duration(sum(r["seconds"] for r in of_arm)) if of_arm else DASH
        row["training stages recorded"] = DASH
        if arm is not None and "generator" not in (recipe := settings["arms"][arm]):
            expected = recipe["rounds"] * recipe["shard"]["num_shards"] * len(settings["seeds"])
            row["training stages recorded"] = f"{sum(r['phase'] == 'train' for r in of_arm)} of {expected}"
        rows.append(row)
    versions = sorted({(name, version) for r in records for name, version in r["versions"].items()})
    facts = [
        ("Device", _seen(r["device"] for r in records)),
        ("Threads a stage", _seen(r["threads"] for r in records)),
        ("Machine", _seen(r["machine"] for r in records)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions) or DASH),
        ("Last stage finished", max((r["finished"] for r in records), default=DASH)),
        ("This page made", now),
        ("Commit checked out then", commit or DASH),
    ]
    note = "Sums over seeds, rounds and shards of the last run of each stage; stages that ran side by side count one by one. "
    note += "A dash, or fewer training stages than there are: results that came from a cache bring no record with them."
    if unreadable:
        note += f" {unreadable} records could not be read."
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return (
        '<section>\n<h2 id="machines">Wall time and machines</h2>\n'
        f"<p class=quiet>{note} No hash covers this section.</p>\n"
        f"{html_table(rows)}\n<dl>{listed}</dl>\n</section>"
    )


def number(value):
    """For people: 1,234, 0.0123, a dash for nothing."""
    if value is None or math.isnan(value):
        return DASH
    if float(value).is_integer() or abs(value) >= 10_000:
        text = f"{value:,.0f}"
    elif abs(value) >= 100:
        text = f"{value:,.1f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def tally(value):
    """A count, or a mean of counts: 1,234, 730, 56.3."""
    if value is None or math.isnan(value):
        return DASH
    whole = float(value).is_integer() or abs(value) >= 100
    return f"{value:,.{0 if whole else 1}f}".replace("-", "−")


def duration(seconds):
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _top(settings, metrics, row, published, analyses, similarity, prompts):
    weights, protocol, threshold = _headline(settings)
    sentences = "".join(f"<p>{escape(s)}</p>" for s in headline(settings, metrics))
    seeds = len(settings["seeds"])
    held_out = f"{row['num_heldout']:,}" if row["num_heldout"] else "none"
    sizes = f"{row['num_train']:,} training images, {held_out} held out"
    links = [("arms", "Arms"), ("quality", "Quality"), *([("similarity", "Similarity")] if similarity else [])]
    links += [("prompts", "Prompts")] if prompts else []
    links += [("published", "Published")] if published else []
    links += [("curves", "Memorisation"), ("trade_off", "Trade-off"), ("gallery", "Leaks"), ("training", "Training")]
    links += [("analyses", "Analyses")] if analyses else []
    links += [("settings", "Settings"), ("machines", "Wall time")]
    nav = " · ".join(f'<a href="#{name}">{title}</a>' for name, title in links)
    return (
        f"<header>\n<h1>Redistribute: {escape(settings['data']['name'])}</h1>\n"
        f"<p class=quiet>{len(settings['arms'])} arms, {seeds} seed{'s' * (seeds > 1)} each; {sizes}. Headline: protocol "
        f"{escape(protocol)}, threshold {threshold:g}, {escape(weights)} weights.</p>\n"
        f"<nav>{nav}</nav>\n</header>\n"
        f'<section class=headline aria-label="Result">{sentences}</section>'
    )


def _arms(settings, metrics):
    _, protocol, threshold = _headline(settings)
    arms = list(settings["arms"])
    at = f"{threshold:g}"
    rows, details = [], []
    for arm in arms:
        for which in _weights(metrics[arm]):
            values = metrics[arm][which]
            cell = values[protocol][at]
            change = DASH
            if arm != arms[0] and which in metrics[arms[0]]:
                base = _per_image(metrics[arms[0]][which][protocol][at], metrics[arms[0]])
                change = _relative(_per_image(cell, metrics[arm])["excess"], base["excess"])
            rows.append(
                {
                    "arm": arm,
                    "weights": which,
                    **{f"MQ\u00a0{t}": with_sd(c, "count") for t, c in values[protocol].items()},
                    f"excess at {at} [95 %]": interval_text(cell),
                    "excess against baseline": change,
                    f"simplicity at {at}": with_sd(cell, "simplicity"),
                    f"distinct at {at}": with_sd(cell, "distinct"),
                    "fd_pixels": with_sd(values, "fd_pixels", number),
                    "fd_pixels held out": with_sd(values, "fd_pixels_heldout", number),
                }
            )
            details += [
                {
                    "arm": arm,
                    "weights": which,
                    "protocol": name,
                    "threshold": t,
                    "MQ": with_sd(c, "count"),
                    "excess [95 %]": interval_text(c),
                    "simplicity": with_sd(c, "simplicity"),
                    "distinct": with_sd(c, "distinct"),
                }
                for name, of_protocol in values.items()
                if isinstance(of_protocol, dict) and at in of_protocol
                for t, c in of_protocol.items()
            ]
    seeds = len(settings["seeds"])
    spread = f" Means of {seeds} seeds ± standard deviation." if seeds > 1 else ""
    interval = (
        "the t-interval of the mean over seeds: it holds the training's own chance as well, and is wide with few seeds"
        if seeds > 1
        else "paired over the generated images of the one seed; another training would add to it"
    )
    meanings = {
        "MQ": "Generated images whose ratio is at or below the threshold (code_sq: below): far closer to the nearest training "
        f"image than to the {settings['score']['neighbours']} nearest on average. Images that are merely simple count too, as "
        "unseen real ones do.",
        "excess": "MQ against training images less MQ of the same generated images against as many held-out images of the "
        f"same classes. Images that are merely simple count on both sides and drop out. The interval is {interval}.",
        "excess against baseline": f"The excess compared with that of {arms[0]}, the first arm.",
        "simplicity": "MQ that held-out real images reach in the place of generated ones. A label for the data set, not a "
        "floor to subtract.",
        "distinct": "Different training images among the hits: one image given out fifty times counts once here.",
        "fd_pixels": "Fréchet distance between the pixels of generated and training images, lower is more faithful. An "
        "undertrained model has a low MQ as well: read the two together.",
        "fd_pixels held out": "The same distance to the held-out images.",
        "raw, ema": "The weights as trained, and their running average.",
    }
    explained = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in meanings.items())
    return (
        f'<section>\n<h2 id="arms">Arms</h2>\n'
        f"{html_table(rows, f'Protocol {protocol}, {_images(metrics)}.{spread}')}\n"
        f"<details><summary>What the columns mean</summary><dl>{explained}</dl></details>\n"
        f"<details><summary>All protocols and thresholds</summary>{html_table(details)}</details>\n</section>"
    )


def _seeds(settings, per_seed):
    if len(settings["seeds"]) == 1:
        return ""
    _, protocol, threshold = _headline(settings)
    rows = [
        {
            "arm": r["arm"],
            "seed": str(r["seed"]),
            "weights": r["weights"],
            f"MQ\u00a0{threshold:g}": tally(r["count"]),
            f"excess at {threshold:g} [95 %]": interval_text(r),
            "distinct": tally(r["distinct"]),
            "fd_pixels": number(r["fd_pixels"]),
            "fd_pixels held out": number(r["fd_pixels_heldout"]),
            "skipped\u00a0%": _percent(r["skipped_share"]),
            "augmented\u00a0%": _percent(r["augmented_share"]),
            "moved": tally(r["moved"]),
        }
        for r in per_seed
    ]
    caption = f"Protocol {protocol}. The intervals here are paired, over the generated images of the one seed."
    return f'<section>\n<h2 id="seeds">Seeds</h2>\n{html_table(rows, caption)}\n</section>'


def _curves(settings, figures):
    _, protocol, _ = _headline(settings)
    mean = " Lines are means over seeds." if len(settings["seeds"]) > 1 else ""
    no_held_out = "There is no held-out set, so there is no excess to draw."
    panels = [
        _figure(
            figures["mq"], f"MQ against the threshold, protocol {protocol}.{mean} Markers: the thresholds of the table."
        ),
        _figure(figures["mq_beside"], "The same images under the other protocol. Its ratios are on another scale."),
        _figure(figures["excess"], f"Excess against the threshold, protocol {protocol}.{mean}", no_held_out),
    ]
    return f'<section>\n<h2 id="curves">Memorisation</h2>\n<div class=panels>{"".join(panels)}</div>\n</section>'


def _trade_off(settings, figures, view):
    weights, _, threshold = _headline(settings)
    caption = (
        f"Memorisation against fidelity at threshold {threshold:g}, {{}} weights, a point an arm and seed, 95 % paired intervals. "
        "Further down is less memorised, further left is closer to the training images. Dashed: what the baseline comes to when "
        "it is stopped early."
    )
    panels = [_figure(figures["fidelity"], caption.format(weights))]
    if figures["fidelity_beside"]:
        panels.append(_figure(figures["fidelity_beside"], caption.format("raw" if weights == "ema" else "ema")))
    return f'<section>\n<h2 id="trade_off">Trade-off</h2>\n<div class=panels>{"".join(panels)}</div>\n{_shown(view)}\n</section>'


def _published(views):
    if not views:
        return ""
    return f'<section>\n<h2 id="published">Published numbers</h2>\n{chr(10).join(map(_shown, views))}\n</section>'


def _shown(view):
    title = f"<h3>{escape(view.title)}</h3>\n" if view.title else ""
    table = html_table(view.rows, view.caption) if view.rows else f"<p class=quiet>{escape(view.caption)}</p>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in view.notes)
    return title + table + (f"\n<ol class=quiet>{notes}</ol>" if notes else "")


def _gallery(settings, metrics, galleries, leaks, num_train):
    weights, protocol, threshold = _headline(settings)
    parts = []
    for arm, pairs in galleries.items():
        images, copies = leaks[arm]
        figures = "".join(
            f"<figure>{_pair(p)}<figcaption>{p['ratio']:.3f} · {_copies(p['copies'])} · {escape(str(p['key']))}</figcaption></figure>"
            for p in pairs
        )
        num_images = f"{metrics[arm]['num_images']:,}"
        told = f"{copies:,} of {num_images} generated images are copies of {images:,} of the {num_train:,} training images."
        if not images:
            told = f"No training image counts as given out by {num_images} generated images. The closest pairs:"
        elif images > len(pairs):
            told += f" The {len(pairs)} clearest:"
        parts.append(
            f"<h3>{escape(arm)}</h3>\n<p class=quiet>{told}</p>\n<div class=gallery>{figures or 'No images.'}</div>"
        )
    return (
        f'<section>\n<h2 id="gallery">Training images that leaked</h2>\n<p class=quiet>Left the generated image, right the '
        f"nearest training image, below its ratio ({escape(protocol)}, {escape(weights)} weights, seed {settings['seeds'][0]}), "
        f"the number of generated images that are copies of it at threshold {threshold:g}, and its key. Lowest ratio first, each "
        "training image once. Merely simple images count as well: excess, above, says how many hits are more than that. The list, for all arms, seeds and weights: artifacts/report/leaks.csv and leaks.parquet. In "
        f"the CSV an apostrophe stands before a key that a spreadsheet would take for a formula.</p>\n{chr(10).join(parts)}\n"
        "</section>"
    )


def _pair(pair):
    """A generated image and its training image side by side; nothing where pictures are not shown."""
    if pair["generated"] is None:
        return ""
    return (
        f'<div class=pair><img src="{pair["generated"]}" alt="generated image {pair["image"]}">'
        f'<img src="{pair["train"]}" alt="training image {escape(str(pair["key"]))}"></div>'
    )


def _copies(number):
    return "not counted" if number == 0 else "1 copy" if number == 1 else f"{number:,} copies"


def _round_length(train):
    return f"{tally(train['steps'])} steps" if "steps" in train else f"{tally(train['epochs'])} epochs"


def _training(settings, metrics, figures):
    trained = {arm: recipe for arm, recipe in settings["arms"].items() if "generator" not in recipe}
    if not trained:
        return ""
    base = metrics[next(iter(trained))]["training"]["forward_images"]
    spent = sorted({name for arm in trained for name in metrics[arm]["training"].get("spent", {})})
    rows = []
    for arm, recipe in trained.items():
        t = metrics[arm]["training"]
        rows.append(
            {
                "arm": arm,
                "rounds": str(recipe["rounds"]),
                "shards": str(recipe["shard"]["num_shards"]),
                "a round": _round_length({**settings.get("train", {}), **recipe["train"]}),
                "optimiser steps": tally(t["optimizer_steps"]),
                "forward images": tally(t["forward_images"]),
                "against baseline": f"{t['forward_images'] / base:.2f} ×",
                "skipped\u00a0%": _percent(t["skipped_share"]),
                "augmented\u00a0%": _percent(t["augmented_share"]),
                "moved": tally(t["moved"]),
                **{name: number(t.get("spent", {}).get(name)) for name in spent},
            }
        )
    never = "No arm skipped an image."
    panels = [
        _figure(figures["loss"], "Loss of all images visited, skipped ones included. Markers: the end of a round."),
        _figure(figures["skipped"], _left_out(settings, metrics, "skipped_share", "skipped"), never),
        _figure(
            figures["augmented"],
            _left_out(settings, metrics, "augmented_share", "augmented"),
            "No arm augmented an image.",
        ),
        _figure(figures["skips"], "How often each training image was skipped, wherever it was.", never),
    ]
    seeds = f" a seed, means of {len(settings['seeds'])} seeds" if len(settings["seeds"]) > 1 else ""
    caption = (
        f"Sums over rounds and shards{seeds}. Forward images: passes through the network in training, the second pass of augmented "
        "images included. Moved: images that changed shard, each time counted."
    )
    return (
        f'<section>\n<h2 id="training">Training</h2>\n{html_table(rows, caption)}\n'
        f"<div class=panels>{''.join(panels)}</div>\n</section>"
    )


def _analyses(blocks):
    if not blocks:
        return ""
    parts = []
    for block in blocks:
        panels = "".join(_figure(svg, caption) for svg, caption in block.panels)
        details = f"<details><summary>Each move</summary>{html_table(block.details)}</details>" if block.details else ""
        parts.append(
            f"<h3>{escape(block.title)}</h3>\n<p class=quiet>{escape(block.text)}</p>\n"
            f"{html_table(block.rows) if block.rows else ''}\n<div class=panels>{panels}</div>{details}"
        )
    return (
        '<section>\n<h2 id="analyses">Analyses</h2>\n<p class=quiet>Figures show the first seed, tables all of them.</p>\n'
        f"{chr(10).join(parts)}\n</section>"
    )


def _left_out(settings, metrics, name, done):
    arms = [arm for arm in settings["arms"] if metrics[arm].get("training", {}).get(name) == 0]
    text = f"Images {done} in training."
    return text + (f" Not drawn, because nothing was {done}: {', '.join(arms)}." if arms else "")


def _figure(svg, caption, absent="There is nothing to draw."):
    if svg is None:
        return f"<p class=quiet>{escape(absent)}</p>"
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def html_table(rows, caption=None):
    """Rows of plain texts by column; the first column names the row and stays in view when the table scrolls."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in rows[0])
    lines = []
    for first, *cells in (row.values() for row in rows):
        lines.append(
            f"<tr><th scope=row>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        )
    above = f"<p class=quiet>{escape(caption)}</p>\n" if caption else ""
    label = escape(caption or ", ".join(rows[0]))
    return (
        f'{above}<div class=scroll role=region tabindex=0 aria-label="{label}">\n<table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table></div>"
    )


def _headline(settings):
    h = settings["score"]["headline"]
    return h["weights"], h["protocol"], h["threshold"]


def _weights(metrics_of_arm):
    return [weights for weights in ("raw", "ema") if weights in metrics_of_arm]


def _images(metrics):
    nums = sorted({m["num_images"] for m in metrics.values()})
    return " or ".join(f"{n:,}" for n in nums) + " generated images an arm and seed"


def interval_text(cell):
    if cell["excess"] is None or math.isnan(cell["excess"]):
        return DASH
    return f"{tally(cell['excess'])} [{tally(cell['excess_low'])}, {tally(cell['excess_high'])}]"


def _per_image(cell, metrics_of_arm):
    names = ("count", "excess", "excess_low", "excess_high")
    return {name: None if cell[name] is None else cell[name] / metrics_of_arm["num_images"] for name in names}


def _apart(cell, other):
    return cell["excess_high"] < other["excess_low"] or cell["excess_low"] > other["excess_high"]


def _change(value, base):
    if value == base:
        return "the same"
    if base <= 0:
        return "no percentage, as the baseline has none" if value <= 0 else "more than the baseline"
    percent = round(100 * abs(value - base) / base)
    return f"{percent} % {'less' if value < base else 'more'}"


def _relative(value, base):
    if value is None or base is None or base <= 0:
        return DASH
    return f"{100 * (value - base) / base:+.0f} %".replace("-", "−")


def with_sd(cell, name, show=tally):
    sd = cell.get(f"{name}_sd")
    return show(cell[name]) + (f" ± {show(sd)}" if sd else "")


def _percent(share):
    if math.isnan(share):
        return DASH
    return f"{100 * share:.2f}" if 0 < share < 0.1 else f"{100 * share:.1f}"


def _listed(names):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _seen(values):
    return "; ".join(sorted({str(value) for value in values})) or DASH


def _in_plan(settings, record):
    """Whether params.yaml still names the arm, seed, round and shard that a record is about."""
    if record["arm"] is None:
        return True
    if record["arm"] not in settings["arms"] or record["seed"] not in settings["seeds"]:
        return False
    recipe = settings["arms"][record["arm"]]
    if "generator" in recipe:
        return True
    after_name = record["key"].removeprefix(record["arm"])  # a name may itself hold "-round2"
    part_of_key = {name: int(value) for name, value in re.findall(r"-(round|shard)(\d+)", after_name)}
    return (
        part_of_key.get("round", 1) <= recipe["rounds"] and part_of_key.get("shard", 0) < recipe["shard"]["num_shards"]
    )
