"""What all arms came to, as summary.json has it (stages.report.entries says how it is laid out), and the few numbers of metrics.json."""

import numpy as np

from stages.report import columns, excess, sections, trade_off
from stages.report.columns import FIDELITY, FIDELITY_HELDOUT
from stages.report.entries import PROTOCOLS, mean_and_sd, rounded
from stages.report.results import TRAINING


def summarise(report):
    """Per arm the mean over its seeds, with <name>_sd beside it (n - 1 in the denominator) where there are several.

    excess_low and excess_high: with one seed the paired interval of the score phase, over the generated images; with several
    the 95 % t-interval of the mean over seeds, which also holds what differs from one training to the next (`excess.over_seeds`).

    Returns   dict, as in summary.json
    """
    metrics = {}
    for arm in report.arms:
        of_arm = report.results[report.results.arm == arm]
        metrics[arm] = {"num_seeds": of_arm.seed.nunique(), "num_images": int(of_arm.num_images.iloc[0])}
        metrics[arm]["fd_mean_image"] = rounded(of_arm.fd_mean_image.iloc[0])
        for weights in of_arm.weights.unique():
            metrics[arm][weights] = _of_weights(report, arm, weights, of_arm[of_arm.weights == weights])
        of_arm = report.training[report.training.arm == arm]
        if not of_arm.empty:
            metrics[arm]["training"] = _training(of_arm)
    for arm, weights, entry in trade_off.entries_of(report):
        metrics[arm][weights] |= entry
    return metrics


def headline(report):
    """What `dvc metrics show` and `dvc metrics diff` show: what the headline is of, and what each arm came to under it.

    Returns   dict: headline: weights, protocol, threshold; arms: by name memorised (MQ), excess, excess_low, excess_high (numbers of
              generated images), the two fidelities, membership_auc where it was measured, and against_training_less with verdict and
              difference where there is one
    """
    weights, protocol, threshold = report.headline
    arms = {}
    for arm in report.arms:
        entry = report.metrics[arm][weights]
        cell = entry[protocol][f"{threshold:g}"]
        arms[arm] = {"memorised": cell["count"]} | {n: cell[n] for n in ("excess", "excess_low", "excess_high")}
        arms[arm] |= {name: entry[name] for name in (FIDELITY, FIDELITY_HELDOUT)}
        if "membership" in entry:
            arms[arm]["membership_auc"] = entry["membership"]["auc"]
        if "against_training_less" in entry:
            found = entry["against_training_less"]
            arms[arm]["against_training_less"] = {"verdict": found["verdict"], "difference": found.get("difference")}
    return {"headline": report.headline._asdict(), "arms": arms}


def _of_weights(report, arm, weights, rows):
    """rows   those of the arm and weights: one per seed, protocol and threshold"""
    entry = mean_and_sd(rows.drop_duplicates("seed"), columns.of("score"))
    for section in sections.having("summary"):
        entry |= section.summary(report, arm, weights)
    for protocol in PROTOCOLS:
        of_protocol = rows[rows.protocol == protocol]
        entry[protocol] = {
            f"{threshold:g}": _memorised(of_protocol[np.isclose(of_protocol.threshold, threshold)])
            for threshold in report.settings["score"]["thresholds"]
        }
    return entry


def _memorised(rows):
    """rows   one row per seed, at one threshold"""
    if len(rows) == 1:
        return mean_and_sd(rows, ["count", "distinct", "excess", "excess_low", "excess_high", "simplicity"])
    entry = mean_and_sd(rows, ["count", "distinct", "excess", "simplicity"])
    entry["excess_low"], entry["excess_high"] = map(rounded, excess.over_seeds(rows))
    return entry


def _training(rows):
    """rows   one row per seed of `Report.training`"""
    entry = mean_and_sd(rows, TRAINING)
    spent = [name for name in rows.columns if name.startswith("spent.") and rows[name].notna().all()]
    if spent:
        entry["spent"] = {name.removeprefix("spent."): rounded(rows[name].max()) for name in spent}
    return entry
