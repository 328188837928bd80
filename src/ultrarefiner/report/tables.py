"""The evaluation's tables as the report reads them: checked, typed, and in one order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.summary import MACRO, POOLED
from ultrarefiner.evaluation.volumes import MEASURES

SCORE_COLUMNS = (
    *("dataset", "evaluation", "member", "fold", "case", "group", "label", "method"),
    *("trained_on", "prompt_source", "dice", "hd95_px", "empty_prediction", "empty_truth"),
    *("oracle", "selection", "seen", "area_share", "overlay", "border"),
)
SUMMARY_COLUMNS = (
    *("dataset", "evaluation", "member", "method", "trained_on", "oracle", "seen", "selection"),
    *("subgroup", "fold", "metric", "n", "mean", "std", "ci_low", "ci_high"),
    *("misses", "false_positives"),
)
COMPARISON_COLUMNS = (
    *("dataset", "evaluation", "member", "method", "reference", "trained_on", "oracle", "seen"),
    *("metric", "n", "groups", "mean_method", "mean_reference", "mean_difference"),
    *("ci_low", "ci_high", "wilcoxon_p", "holm_p", "group_wilcoxon_p", "group_holm_p"),
    *("better", "worse", "equal", "rank_biserial", "cohens_dz"),
)
GAP_COLUMNS = (
    *("dataset", "evaluation", "method", "oracle_method", "trained_on", "seen", "n"),
    *("dice_coarse", "dice_method", "dice_oracle", "gap", "closed", "closed_low", "closed_high"),
)
CALIBRATION_COLUMNS = (
    *("dataset", "method", "trained_on", "evaluation", "member", "bin", "low", "high"),
    *("pixels", "mean_probability", "lesion_share", "ece", "brier", "ece_near"),
)
OVERLAP_COLUMNS = ("case", "dataset", "other_case", "other_dataset", "kind")
HISTORY_COLUMNS = ("epoch", "train_loss", "val_dice")

# Rows of the summary that stand for all datasets together, not for one.
JOINT = {
    POOLED: "All datasets, pooled over cases",
    MACRO: "All datasets, mean of the datasets' means (macro)",
}
EVALUATIONS = {"folds": "cross-validation", "holdout": "hold-out", "unseen": "trained elsewhere"}
# A row whose weights saw the dataset must never look like a test on unseen images.
MARKS = {"yes": "†", "unknown": "‡"}
FOOTNOTES = {
    "†": "† weights trained on this dataset: not zero-shot.",
    "‡": "‡ not known whether the weights were trained on this dataset.",
    "§": "§ shares images with the training set; the shared ones are not among the tested.",
}
GUARDED = "-guarded"
_FLAGS = ("oracle", "empty_prediction", "empty_truth")
_NUMBERS = (
    *("dice", "iou", "hd95_px", "hd95_mm", "hd95_share", "assd_px", "nsd", "precision", "recall"),
    *("area_share", "n", "mean", "std", "median", "ci_low", "ci_high", "misses"),
    *("false_positives", "mean_method", "mean_reference", "mean_difference", "wilcoxon_p"),
    *("holm_p", "groups", "group_wilcoxon_p", "group_holm_p", "better", "worse", "equal"),
    *("rank_biserial", "cohens_dz", "dice_coarse", "dice_method", "dice_oracle", "gap"),
    *("closed", "closed_low", "closed_high", "bin", "low", "high", "pixels"),
    *("mean_probability", "lesion_share", "ece", "brier", "ece_near"),
    *("epoch", "train_loss", "val_dice", "val_coarse_dice", "images"),
    *(
        f"{metric}_{end}"
        for metric in ("dice", "iou", "hd95_px", *MEASURES)
        for end in ("mean", "low", "high")
    ),
    *(*MEASURES, "volume_ml", "true_volume_ml", "volume_share"),
    *("volumes", "slices", "seconds", "slices_per_second"),
)
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
_NO_PROMPT = {"", "none", "-"}
# Kinds of method that refine masks without the truth.
REFINING = ("refined", "end_to_end")
# The coarse model inside another stands beside the whole.
_PLACES = {"coarse": 0, "refined": 1, "end_to_end": 2, "inner": 2, "oracle": 3}


@dataclass(frozen=True)
class Method:
    """A method of the study, as it is applied to a dataset.

    Attributes:
        name: Its name on the shelf: ``ultrasam-box@all``.
        kind: ``coarse`` (no prompt), ``refined``, ``end_to_end`` (coarse model and refiner trained
            as one), ``inner`` (the coarse model inside such a one), or ``oracle`` (prompted from
            the truth).
        seen: Whether its weights were trained on the dataset: ``yes``, ``no`` or ``unknown``.
    """

    name: str
    kind: str
    seen: str = "no"

    @property
    def oracle(self) -> bool:
        """Whether the truth made its prompts."""
        return self.kind == "oracle"

    @property
    def refines(self) -> bool:
        """Whether it refines masks without the truth."""
        return self.kind in REFINING

    @property
    def may_lead(self) -> bool:
        """Whether it can be best or leading: it never saw the truth, nor its weights the dataset."""
        return not self.oracle and self.seen != "yes"

    @property
    def base(self) -> str:
        """The name without the training set."""
        return self.name.partition("@")[0]

    @property
    def at(self) -> str:
        """``@`` and the training set; empty where that is the dataset itself."""
        return at_of(self.name)

    @property
    def mark(self) -> str:
        """The sign of weights that saw, or may have seen, the dataset."""
        return MARKS.get(self.seen, "")

    @property
    def label(self) -> str:
        """The name to show; an oracle and weights that saw the dataset never go without a mark."""
        name = f"{self.name} {self.mark}".strip()
        return f"{name} (oracle – upper bound)" if self.oracle else name


def at_of(name: str) -> str:
    """Return ``@`` and the training set of a method's name; empty where it has none."""
    return "".join(name.partition("@")[1:])


def read_table(path: str | Path, columns: Sequence[str], maker: str) -> pd.DataFrame:
    """Read a CSV as numbers, flags and text.

    Args:
        path: The CSV.
        columns: Columns that it must have.
        maker: The rule that writes it, for the message.

    Raises:
        UltraRefinerError: The file is absent, lacks a column, or a cell is not what it must be.
    """
    path = Path(path)
    if not path.is_file():
        raise UltraRefinerError(f"{path} is missing; run the rule that makes it ({maker}).")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise UltraRefinerError(f"cannot read {path}: {error}. Run {maker} again.") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UltraRefinerError(
            f"{path} lacks the column(s) {', '.join(missing)}; run {maker} again."
        )
    for name in table.columns:
        if name in _FLAGS:
            table[name] = _flags(table[name], path, maker)
        elif name in _NUMBERS:
            table[name] = _numbers(table[name], path, maker)
    return table


def _flags(column: pd.Series, path: Path, maker: str) -> pd.Series:
    text = column.str.strip().str.lower()
    wrong = text[~text.isin(list(_TRUTH))]
    if len(wrong):
        raise UltraRefinerError(
            f"{path}: {column.name} is '{wrong.iloc[0]}', not true or false; run {maker} again."
        )
    return text.map(_TRUTH).astype(bool)


def _numbers(column: pd.Series, path: Path, maker: str) -> pd.Series:
    # An empty cell is a value that does not exist (no pixel spacing, no test possible).
    text = column.str.strip()
    values = pd.to_numeric(text.mask(text.eq("")), errors="coerce").astype(float)
    wrong = text[values.isna() & ~text.str.lower().isin({"", "nan"})]
    if len(wrong):
        raise UltraRefinerError(
            f"{path}: {column.name} is '{wrong.iloc[0]}', not a number; run {maker} again."
        )
    return values


def read_scores(path: str | Path, reference: str) -> pd.DataFrame:
    """Read the scores of all cases, sorted, with the ``kind`` of each row's method.

    Args:
        path: ``scores.csv``.
        reference: The coarse method that the others are compared with.

    Returns:
        The rows; ``fold`` is Int64, without a value for an ensemble.

    Raises:
        UltraRefinerError: The table is wrong (see `read_table`) or empty, a case is scored twice,
            or ``reference`` is not in it.
    """
    scores = read_table(path, SCORE_COLUMNS, "summarise_scores")
    if scores.empty:
        raise UltraRefinerError(f"{path} has no rows; nothing was scored. Run score_masks again.")
    scores["fold"] = _folds(scores, Path(path))
    # In cross-validation a case is tested in one fold; elsewhere every fold's model predicts it.
    place = scores["fold"].astype(object).where(scores["evaluation"].ne("folds"), "folds")
    keys = ["dataset", "evaluation", "member", "method", "case"]
    twice = scores[keys].assign(place=place.astype(str)).duplicated()
    if twice.any():
        row = scores[twice].iloc[0]
        raise UltraRefinerError(
            f"{path}: {row['case']} is scored twice for {row['method']} ({row['evaluation']}); a "
            "case is tested once by each model. Run summarise_scores again."
        )
    names = set(scores["method"].str.partition("@")[0])
    if reference not in names:
        known = ", ".join(sorted(names))
        raise UltraRefinerError(
            f"{path} has no rows of the reference method '{reference}' (it has {known}); "
            "compare.coarse in the config names it first."
        )
    scores = with_kinds(scores, reference)
    order = ["dataset", "evaluation", "method", "member", "fold", "case"]
    return scores.sort_values(order, ignore_index=True)


def with_kinds(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return rows of methods with their ``kind``, in the words of `Method`.

    No model's name has a hyphen, and a refined method is called ``{refiner}-{prompt}``. So what is
    prompted and has no hyphen is a model that was trained end to end; with one, a variant of it or
    the coarse model inside.
    """
    bases = rows["method"].str.partition("@")[0]
    heads = bases.str.partition("-")[0]
    prompted = ~rows["prompt_source"].str.strip().str.lower().isin(_NO_PROMPT)
    prompted &= bases.ne(reference)
    joint = heads.isin(bases[prompted & bases.eq(heads)])
    kinds = prompted.map({True: "refined", False: "coarse"})
    kinds = kinds.mask(joint, prompted.map({True: "end_to_end", False: "inner"}))
    return rows.assign(kind=kinds.mask(rows["oracle"], "oracle"))


def _folds(scores: pd.DataFrame, path: Path) -> pd.Series:
    numbers = _numbers(scores["fold"], path, "summarise_scores")
    if numbers[scores["member"].eq("single")].isna().any():
        raise UltraRefinerError(
            f"{path}: a row of a single model has no fold; run summarise_scores again."
        )
    return numbers.astype("Int64")


def evaluations_of(scores: pd.DataFrame, dataset: str) -> list[str]:
    """Return how a dataset was evaluated: ``folds``, ``holdout``, ``unseen``, in that order."""
    there = set(scores.loc[scores["dataset"].eq(dataset), "evaluation"])
    return [name for name in EVALUATIONS if name in there]


def main_rows(scores: pd.DataFrame, dataset: str, evaluation: str | None = None) -> pd.DataFrame:
    """Return the rows that stand for the methods on a dataset, each case once for each method.

    Cross-validation: all folds. Elsewhere: the ensemble ``mean``; without one the model of the
    first fold.

    Args:
        scores: As `read_scores` gives them.
        dataset: The dataset.
        evaluation: Which evaluation; the first that the dataset has when None.
    """
    known = evaluations_of(scores, dataset)
    evaluation = evaluation or known[0]
    rows = scores[scores["dataset"].eq(dataset) & scores["evaluation"].eq(evaluation)]
    if evaluation == "folds" or rows.empty:
        return rows
    if rows["member"].eq("mean").any():
        return rows[rows["member"].eq("mean")]
    single = rows[rows["member"].eq("single")]
    return single[single["fold"].eq(single["fold"].min())] if len(single) else rows


def with_lesion(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of images with a lesion: those that a mean of Dice is over.

    A mask of an image without one is right or wrong as a whole; that is counted elsewhere.
    """
    return rows[~rows["empty_truth"]]


def list_methods(rows: pd.DataFrame, reference: str) -> list[Method]:
    """Return the methods of rows, as `in_order` has them.

    Where the rows are of several datasets, a method has seen its dataset if it saw one of them.
    """
    methods = []
    for name, mine in rows.groupby("method"):
        seen = set(mine["seen"])
        worst = next((value for value in ("yes", "unknown") if value in seen), "no")
        methods.append(Method(str(name), str(mine["kind"].iloc[0]), worst))
    return in_order(methods, reference)


def in_order(methods: Iterable[Method], reference: str) -> list[Method]:
    """Return methods as they are shown: reference, other coarse, refined, end to end, oracles."""
    return sorted(methods, key=lambda m: (_PLACES[m.kind], m.base != reference, m.base, m.at))


def explain_names(methods: Iterable[Method]) -> str:
    """Return what the names of end-to-end and guarded methods mean; empty without any."""
    bases = {method.base: method.kind for method in methods}
    joint = sorted({base.partition("-")[0] for base, kind in bases.items() if kind == "end_to_end"})
    words = []
    if joint:
        words.append(f"Trained end to end: {', '.join(joint)}")
    if "inner" in bases.values():
        words.append("-coarse: the coarse model inside, by itself")
    if any(base.endswith(GUARDED) for base in bases):
        words.append(f"{GUARDED}: the coarse mask where the refined one is not trusted")
    return f"{'; '.join(words)}." if words else ""


def leading_method(rows: pd.DataFrame, reference: str) -> str:
    """Return the method that refines with the highest mean Dice over lesions; never an oracle.

    Methods whose weights were trained on the dataset lead only where there are no others. Without
    refined methods it is the reference.

    Args:
        rows: As `main_rows` gives them.
        reference: The coarse method that others are compared with.
    """
    refined = with_lesion(rows[rows["kind"].isin(REFINING)])
    if refined.empty:
        names = sorted({name for name in rows["method"] if name.partition("@")[0] == reference})
        return names[0] if names else reference
    fresh = refined[refined["seen"].ne("yes")]
    refined = refined if fresh.empty else fresh
    means = refined.groupby("method")["dice"].mean()
    best = means.index[means.eq(means.max())]
    # Without the training set: a guard that left all masks as they are comes after its method.
    return min(map(str, best), key=lambda name: (name.partition("@")[0], name))


def fixed(value: float, digits: int = 3) -> str:
    """Return a number with ``digits`` decimals, a true minus sign, and a dash for none."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """Return a number as `fixed` does, with a plus sign when it is above zero."""
    text = fixed(value, digits)
    return f"+{text}" if text[0].isdigit() and float(text) != 0.0 else text


def p_value(value: float) -> str:
    """Return a p value for reading: ``< 0.001`` or three decimals."""
    return "< 0.001" if value < 0.001 else fixed(value)
