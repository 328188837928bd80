"""The evaluation's tables as the report reads them: checked, typed, and in one order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.summary import MACRO, POOLED

SCORE_COLUMNS = (
    "dataset",
    "fold",
    "case",
    "group",
    "label",
    "method",
    "prompt_source",
    "dice",
    "empty_prediction",
    "empty_truth",
    "oracle",
    "selection",
    "area_share",
)
SUMMARY_COLUMNS = (
    "dataset",
    "method",
    "oracle",
    "selection",
    "subgroup",
    "fold",
    "metric",
    "n",
    "mean",
    "std",
    "ci_low",
    "ci_high",
    "misses",
    "false_positives",
)
COMPARISON_COLUMNS = (
    "dataset",
    "method",
    "reference",
    "oracle",
    "metric",
    "n",
    "mean_method",
    "mean_reference",
    "mean_difference",
    "ci_low",
    "ci_high",
    "holm_p",
)
HISTORY_COLUMNS = ("epoch", "train_loss", "val_dice")

# Rows of the summary that stand for all datasets together, not for one.
JOINT = {
    POOLED: "All datasets, pooled over cases",
    MACRO: "All datasets, mean of the datasets' means (macro)",
}
_FLAGS = ("oracle", "empty_prediction", "empty_truth")
_TEXTS = (
    "dataset",
    "case",
    "group",
    "label",
    "method",
    "reference",
    "prompt_source",
    "selection",
    "subgroup",
    "metric",
)
_NUMBERS = (
    *("dice", "iou", "hd95_px", "hd95_mm", "assd_px", "nsd", "precision", "recall", "area_share"),
    *("n", "mean", "std", "median", "ci_low", "ci_high", "misses", "false_positives"),
    *("mean_method", "mean_reference", "mean_difference", "holm_p"),
    *("groups", "group_holm_p"),
    *("epoch", "train_loss", "val_dice"),
)
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
_NO_PROMPT = {"", "none", "-"}
_KINDS = ("coarse", "refined", "oracle")


@dataclass(frozen=True)
class Method:
    """A method of the study.

    Attributes:
        name: Its name on the shelf.
        kind: ``coarse`` (no prompt), ``refined``, or ``oracle`` (prompted from the truth).
    """

    name: str
    kind: str

    @property
    def oracle(self) -> bool:
        """Whether the truth made its prompts."""
        return self.kind == "oracle"

    @property
    def label(self) -> str:
        """The name to show; an oracle never goes without its mark."""
        return f"{self.name} (oracle – upper bound)" if self.oracle else self.name


def read_table(path: str | Path, columns: tuple[str, ...], maker: str) -> pd.DataFrame:
    """Read a CSV and check that it has ``columns``; flags become bool, names stay text.

    Args:
        path: The file.
        columns: Columns that must be there; more are welcome.
        maker: The rule that makes the file, for the error message.

    Raises:
        UltraRefinerError: The file is absent, empty, lacks a column, or a flag is not true/false.
    """
    path = Path(path)
    if not path.is_file():
        raise UltraRefinerError(f"{path} is missing; run the rule {maker} first.")
    kinds = dict.fromkeys((*_FLAGS, *_TEXTS), str)
    try:
        table = pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values={})
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UltraRefinerError(f"cannot read {path}: {error}. Run {maker} again.") from error
    absent = [name for name in columns if name not in table.columns]
    if absent:
        raise UltraRefinerError(
            f"{path} lacks the column(s) {', '.join(absent)}; delete it and run {maker} again."
        )
    for name in table.columns:
        if name in _FLAGS:
            flags = table[name].str.strip().str.lower().map(_TRUTH)
            if flags.isna().any():
                wrong = table[name][flags.isna()].iloc[0]
                raise UltraRefinerError(f"{path}: {name} is '{wrong}', not true or false.")
            table[name] = flags.astype(bool)
        elif name in _NUMBERS:
            table[name] = _numbers(table[name], path, maker)
    return table


def _numbers(column: pd.Series, path: Path, maker: str) -> pd.Series:
    if pd.api.types.is_numeric_dtype(column):
        return column
    # An empty cell is a value that does not exist (no pixel spacing, no test possible).
    text = column.astype(str).str.strip()
    values = pd.to_numeric(text.mask(text.eq("")), errors="coerce")
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

    Raises:
        UltraRefinerError: The table is wrong (see `read_table`) or empty, a case is scored twice,
            or ``reference`` is not in it.
    """
    scores = read_table(path, SCORE_COLUMNS, "summarise_scores")
    if scores.empty:
        raise UltraRefinerError(f"{path} has no rows; nothing was scored. Run score_masks again.")
    twice = scores.duplicated(["dataset", "method", "case"])
    if twice.any():
        row = scores[twice].iloc[0]
        raise UltraRefinerError(
            f"{path}: {row['case']} is scored twice for {row['method']}; a case is tested in one "
            "fold only. Run summarise_scores again."
        )
    if reference not in set(scores["method"]):
        known = ", ".join(sorted(set(scores["method"])))
        raise UltraRefinerError(
            f"{path} has no rows of the reference method '{reference}' (it has {known}); "
            "compare.coarse in the config names it first."
        )
    scores["fold"] = scores["fold"].astype(int)
    prompted = ~scores["prompt_source"].str.strip().str.lower().isin(_NO_PROMPT)
    refined = prompted & scores["method"].ne(reference)
    scores["kind"] = refined.map({True: "refined", False: "coarse"})
    scores.loc[scores["oracle"], "kind"] = "oracle"
    return scores.sort_values(["dataset", "method", "case"], ignore_index=True)


def list_methods(scores: pd.DataFrame, reference: str, dataset: str | None = None) -> list[Method]:
    """Return the methods in showing order: reference, other coarse, refined, oracles last."""
    rows = scores if dataset is None else scores[scores["dataset"].eq(dataset)]
    pairs = rows[["method", "kind"]].drop_duplicates().itertuples(index=False)
    methods = [Method(name, kind) for name, kind in pairs]
    return sorted(methods, key=lambda m: (_KINDS.index(m.kind), m.name != reference, m.name))


def leading_method(scores: pd.DataFrame, dataset: str, reference: str) -> str:
    """Return the refined method with the highest mean Dice; never an oracle.

    Without refined methods it is the reference.
    """
    rows = scores[scores["dataset"].eq(dataset) & scores["kind"].eq("refined")]
    if rows.empty:
        return reference
    means = rows.groupby("method")["dice"].mean()
    return str(means.index[means.eq(means.max())][0])


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
