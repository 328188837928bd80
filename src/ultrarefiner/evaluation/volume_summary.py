"""Volume scores summarised: prompt strategies beside modes, and modes compared with each other."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.parts import parse_part
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.comparisons import correct_by_holm
from ultrarefiner.evaluation.scores import (
    Block,
    Predictor,
    Row,
    by_predictor,
    one_for_each_method,
    plain,
)
from ultrarefiner.evaluation.statistics import (
    bootstrap_means,
    cohens_dz,
    group_means,
    paired_wilcoxon,
    percentile_interval,
)
from ultrarefiner.evaluation.summary import failures, of_method
from ultrarefiner.evaluation.volumes import MEASURES, VOLUME_COLUMNS, read_volume_scores
from ultrarefiner.io import item_seed, write_rows

MODES = ("slices", "memory", "masks")
"""How a volume is gone through: each slice by itself, or propagated, by memory or by masks."""
VOLUME_SUMMARY_COLUMNS = [
    *("dataset", "evaluation", "member", "fold", "method", "trained_on", "refiner", "prompt"),
    *("prompt_kind", "prompt_source", "mode", "oracle", "seen", "selection"),
    *("n", "volumes", "groups", "misses", "false_positives"),
    *(f"{measure}_{end}" for measure in MEASURES for end in ("mean", "low", "high")),
    *("slices", "seconds", "slices_per_second"),
]
VOLUME_COMPARISON_COLUMNS = [
    *("dataset", "evaluation", "member", "method", "mode", "reference", "oracle", "metric"),
    *("n", "groups", "mean_method", "mean_reference", "mean_difference", "ci_low", "ci_high"),
    *("wilcoxon_p", "holm_p", "group_wilcoxon_p", "group_holm_p", "better", "worse", "equal"),
    "cohens_dz",
]
_ABOUT = ("refiner", "prompt", "prompt_kind", "mode")
_log = logging.getLogger(__name__)


def summarise_volumes(
    tables: Sequence[str | Path],
    entries: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, str]],
    scores: str | Path,
    summary: str | Path,
    comparisons: str | Path,
    bootstrap: int = 2000,
    seed: int = 0,
) -> None:
    """Join tables of volume scores, and write what each method made of volumes, and how fast.

    The summary has a row for each dataset, evaluation and predictor (`VOLUME_SUMMARY_COLUMNS`):

    - ``prompt_kind``, ``prompt_source`` and ``mode`` tell the strategy: ``slices`` (each slice by
      itself, as coarse models do too), ``memory`` or ``masks`` (propagated from a key slice);
    - ``n`` volumes with a lesion, which the means are over, of all ``volumes``. A missed lesion
      counts with its policy value (0, or the volume's diagonal);
    - ``{measure}_mean`` and its 95 % percentile bootstrap interval over groups; empty where no
      volume has the measure (mm without a spacing);
    - ``misses``: volumes with a lesion in which nothing is predicted; ``false_positives``: those
      without one in which something is;
    - ``slices`` in all volumes, the ``seconds`` of the jobs that segmented them and encoded their
      images, and what follows of both. A job's start and the loading of weights are in it; the
      coarse model that prompts is not. Empty where a time is not known, or of an ensemble.

    The comparisons (`VOLUME_COMPARISON_COLUMNS`) are those of ``pairs``: a propagated method minus
    the one that has the same model and prompts and takes each slice by itself, over volumes with a
    lesion, in Dice and in HD95 (mm where every spacing is known, else voxels), with tests over
    volumes and over groups. Holm corrects all comparisons of a metric, oracles a family of their
    own.

    Args:
        tables: Tables of volume scores, in any order.
        entries: For each of them a dict of ``dataset``, ``method``, ``part``, ``refiner``,
            ``prompt``, ``prompt_kind`` (all empty for a coarse model), ``mode`` and ``benchmarks``,
            files of Snakemake that tell the jobs' seconds; none where they say nothing.
        pairs: Dicts of ``method`` (propagated) and ``reference`` (slice by slice).
        scores: Table to write: all rows, sorted by dataset, evaluation, method, member, fold and
            volume.
        summary: Table to write.
        comparisons: Table to write.
        bootstrap: Samples of each interval.
        seed: Seed of the samples.

    Raises:
        UltraRefinerError: There is no table, one cannot be read, or the methods are not scored on
            the same volumes.
    """
    if not tables:
        raise UltraRefinerError("no volume was scored; `datasets` names none that holds volumes")
    blocks = by_predictor(row for table in tables for row in read_volume_scores(table))
    write_rows(
        scores,
        VOLUME_COLUMNS,
        (
            {name: plain(row[name]) for name in VOLUME_COLUMNS}
            for block in blocks.values()
            for rows in block.values()
            for row in rows
        ),
    )
    known: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        part = parse_part(entry["part"])
        fold = None if part.evaluation == "folds" else part.fold
        who = Predictor(entry["method"], part.member, fold)
        known[entry["dataset"], part.evaluation, who].append(entry)
    lines = [
        line
        for (dataset, evaluation), block in blocks.items()
        for line in _summarise(dataset, evaluation, block, known, bootstrap, seed)
    ]
    write_rows(
        summary,
        VOLUME_SUMMARY_COLUMNS,
        ({name: plain(line[name]) for name in VOLUME_SUMMARY_COLUMNS} for line in lines),
    )
    modes = {(entry["dataset"], entry["method"]): entry["mode"] for entry in entries}
    found = [
        row | {"mode": modes[row["dataset"], row["method"]]}
        for key, block in blocks.items()
        for row in _compare(*key, one_for_each_method(block), pairs, bootstrap, seed)
    ]
    for metric in sorted({row["metric"] for row in found}):
        for oracle in (False, True):
            correct_by_holm([r for r in found if r["metric"] == metric and r["oracle"] is oracle])
    write_rows(
        comparisons,
        VOLUME_COMPARISON_COLUMNS,
        ({name: plain(row[name]) for name in VOLUME_COMPARISON_COLUMNS} for row in found),
    )
    _log.info("%d lines, %d comparisons", len(lines), len(found))


def _summarise(
    dataset: str,
    evaluation: str,
    block: Block,
    known: Mapping[tuple[Any, ...], Sequence[Mapping[str, Any]]],
    bootstrap: int,
    seed: int,
) -> Iterator[Row]:
    """Yield the lines of a dataset and evaluation."""
    values = np.stack([_measured(rows) for rows in block.values()], axis=1)
    groups = [row["group"] for row in next(iter(block.values()))]
    salt = item_seed(seed, "volumes", dataset, evaluation)
    low, high = percentile_interval(bootstrap_means(values, groups, bootstrap, salt))
    for i, (who, rows) in enumerate(block.items()):
        mine = known.get((dataset, evaluation, who))
        if not mine:
            raise UltraRefinerError(
                f"{who} is scored on volumes of {dataset} ({evaluation}) and is no method of this "
                "study; delete its tables of volume scores and run again"
            )
        slices = sum(row["slices"] for row in rows)
        seconds = _seconds(mine)
        lesions = [row for row in rows if not row["empty_truth"]]
        yield {
            "dataset": dataset,
            "evaluation": evaluation,
            "member": who.member,
            "fold": "all" if who.fold is None else str(who.fold),
            "method": who.method,
            **of_method(rows),
            **{name: mine[0][name] for name in _ABOUT},
            "n": len(lesions),
            "volumes": len(rows),
            "groups": len({row["group"] for row in lesions}),
            **failures(rows),
            **_means(values[:, i], low[i], high[i]),
            "slices": slices,
            "seconds": seconds,
            "slices_per_second": slices / seconds if seconds else None,
        }


def _measured(rows: Sequence[Row]) -> np.ndarray:
    """Return float64 (volumes, measures), NaN where there is no lesion or no such measure."""
    nothing = [math.nan] * len(MEASURES)
    return np.array([nothing if r["empty_truth"] else [r[name] for name in MEASURES] for r in rows])


def _means(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> Row:
    line: Row = {}
    for i, name in enumerate(MEASURES):
        there = values[:, i][~np.isnan(values[:, i])]
        line[f"{name}_mean"] = float(there.mean()) if len(there) else None
        line |= {f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return line


def _seconds(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Return how long the jobs of a predictor took; None where it is not known of one."""
    times = [
        [read_seconds(path) for path in entry["benchmarks"]] if entry["benchmarks"] else [None]
        for entry in entries
    ]
    found = [seconds for mine in times for seconds in mine]
    return None if None in found else math.fsum(found)


def read_seconds(path: str | Path) -> float | None:
    """Return the seconds that a benchmark file of Snakemake tells; None where there is no file.

    Raises:
        UltraRefinerError: It is no such file.
    """
    path = Path(path)
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        columns, cells = lines[0].split("\t"), lines[1].split("\t")
        seconds = float(cells[columns.index("s")])
    except (IndexError, ValueError) as error:
        raise UltraRefinerError(
            f"{path} is no benchmark file of Snakemake ({error}); delete it: the speed is then "
            "left out of the table."
        ) from error
    return seconds


def _compare(
    dataset: str,
    evaluation: str,
    methods: Mapping[str, list[Row]],
    pairs: Sequence[Mapping[str, str]],
    bootstrap: int,
    seed: int,
) -> Iterator[Row]:
    """Yield how propagated methods differ from slice-wise ones, but for the corrected p values."""
    for pair in pairs:
        method, reference = pair["method"], pair["reference"]
        if not {method, reference} <= set(methods):
            continue
        cases = [row for row in methods[method] if not row["empty_truth"]]
        others = [row for row in methods[reference] if not row["empty_truth"]]
        salt = item_seed(seed, "volume_modes", dataset, evaluation, method, reference)
        if not cases:
            continue
        known = not any(math.isnan(row["hd95_mm"]) for row in cases)
        for metric in ("dice", "hd95_mm" if known else "hd95_voxels"):
            yield {
                "dataset": dataset,
                "evaluation": evaluation,
                "member": cases[0]["member"],
                "method": method,
                "reference": reference,
                "oracle": cases[0]["oracle"],
                "metric": metric,
                **_difference(metric, cases, others, bootstrap, salt),
            }


def _difference(
    metric: str, cases: Sequence[Row], others: Sequence[Row], bootstrap: int, seed: int
) -> Row:
    mine = np.array([row[metric] for row in cases])
    theirs = np.array([row[metric] for row in others])
    groups = [row["group"] for row in cases]
    difference = mine - theirs
    gain = difference if MEASURES[metric].better == "higher" else -difference
    low, high = percentile_interval(bootstrap_means(difference, groups, bootstrap, seed))
    by_group = group_means(difference, groups)
    return {
        "n": len(difference),
        "groups": len(by_group),
        "mean_method": float(mine.mean()),
        "mean_reference": float(theirs.mean()),
        "mean_difference": float(difference.mean()),
        "ci_low": float(low),
        "ci_high": float(high),
        "wilcoxon_p": paired_wilcoxon(difference),
        "group_wilcoxon_p": paired_wilcoxon(by_group),
        "better": int((gain > 0).sum()),
        "worse": int((gain < 0).sum()),
        "equal": int((gain == 0).sum()),
        "cohens_dz": cohens_dz(by_group),
    }
