"""How the numbers were made: protocol, selection, prompts, statistics, versions, commands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from ultrarefiner.report.book import Data
from ultrarefiner.report.end_to_end import end_to_end_statements, guard_statements, joint_rows
from ultrarefiner.report.finetuning import finetuned, finetuning_statements
from ultrarefiner.report.tables import GUARDED, at_of


def statements(data: Data, provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was done, as pairs of a term and a sentence or two.

    Args:
        data: The evaluation's tables.
        provenance: What made the numbers; its ``config`` is the study's, defaults included.
    """
    config = provenance.get("config") or {}
    splits = config.get("splits") or {}
    lines = [
        ("Protocol", _protocol(splits)),
        ("Selection", _selection(data)),
        ("Training sets", _trainsets(data, config)),
        ("Hold-out", _holdout(data, splits)),
        ("Tests on other datasets", _unseen(data)),
        ("Ensembles", _ensembles(data, config)),
        ("Threshold", _threshold(data)),
        ("Prompt source", _prompts(data)),
        *finetuning_statements(config),
        *end_to_end_statements(config),
        *guard_statements(config, data.scores["member"].eq("mean").any()),
        ("Volumes", _volumes(data)),
        ("Pretraining overlap", _seen(data, bool(finetuned(config) or joint_rows(config)))),
        ("Statistics", _statistics(config.get("report") or {})),
    ]
    return [(term, text) for term, text in lines if text]


def _protocol(splits: Mapping[str, Any]) -> str:
    if not splits:
        return ""
    folds, run = splits.get("folds"), splits.get("run", "all")
    ran = "all were run" if run == "all" else f"run: {', '.join(map(str, run))}"
    text = f"{folds} outer folds ({ran}), seed {splits.get('seed', '–')}. "
    if splits.get("protocol") == "seed":
        return text + (
            "Protocol: seed. Folds are made by image and the model is selected on the fold that is "
            "reported, as the original did; these numbers are optimistic."
        )
    share = splits.get("validation")
    part = f" ({100 * share:g} % of the training groups)" if isinstance(share, float) else ""
    return text + (
        f"Protocol: nested. Groups (by: {splits.get('group', 'auto')}) never cross a fold; epoch "
        f"and threshold are chosen on validation cases{part}, the test cases of a fold are used "
        "once, to report."
    )


def _selection(data: Data) -> str:
    found = sorted({str(value) for value in data.scores["selection"] if value})
    where = {"validation": "validation cases, which are not among the reported ones"}
    return (
        "The weights of the epoch with the highest Dice are kept, judged on: "
        + "; ".join(where.get(value, f"the {value.replace('_', ' ')}") for value in found)
        + "."
    )


def _trainsets(data: Data, config: Mapping[str, Any]) -> str:
    unions = config.get("trainsets") or {}
    text = "A name without @ is trained on the dataset it is tested on. "
    if not unions and not any(at_of(name) for name in set(data.scores["method"])):
        return "Each dataset has models of its own."
    named = [f"{name} = {', '.join(members)}" for name, members in sorted(unions.items())]
    text += "What follows @ is the training set"
    text += f": {'; '.join(named)}. " if named else ". "
    return text + (
        "Fold k of a union is fold k of each member; an image that two members share is never on "
        "both sides of a fold."
    )


def _holdout(data: Data, splits: Mapping[str, Any]) -> str:
    rows = data.scores[data.scores["evaluation"].eq("holdout")]
    if rows.empty:
        return ""
    counts = rows.groupby("dataset")["case"].nunique()
    told = ", ".join(f"{name} {count} cases" for name, count in counts.items())
    share = splits.get("holdout") or 0.0
    part = f"{100 * share:g} % of the groups of each dataset" if share else "An official test part"
    return f"{part} kept out of every fold and every phase: {told}."


def _unseen(data: Data) -> str:
    rows = data.scores[data.scores["evaluation"].eq("unseen")]
    if rows.empty:
        return ""
    return (
        f"Models were applied to datasets that they were not trained on: "
        f"{', '.join(sorted(set(rows['dataset'])))}. Images that are also in a training set are "
        "left out of the test."
    )


def _ensembles(data: Data, config: Mapping[str, Any]) -> str:
    joint = set(data.scores["member"]) - {"single"}
    if not joint:
        return ""
    by_fold = any(row.on == "fold" for row in finetuned(config).values())
    words = {
        "mean": "mean: the folds' probabilities are averaged and cut at 0.5"
        + (
            " (of finetuned refiners: a pixel is lesion where at least half of the folds' masks "
            "say so)"
            if by_fold
            else ""
        ),
        "vote": "vote: a pixel is lesion if more than half of the folds' masks say so",
    }
    return (
        "Cases that are in no fold are predicted by all folds' models together – "
        + "; ".join(words[name] for name in ("mean", "vote") if name in joint)
        + " – and by each alone. No member was trained on such a case."
    )


def _threshold(data: Data) -> str:
    if not data.scores["method"].str.contains("-tuned", regex=False).any():
        return "Probabilities are cut at 0.5."
    return (
        "Probabilities are cut at 0.5. Methods called -tuned are cut at the threshold that has "
        "the highest mean Dice on the fold's validation cases."
    )


def _prompts(data: Data) -> str:
    methods = data.scores.drop_duplicates("method")
    # A guard, and a threshold, come after the prompts.
    plain = methods["method"].where(
        methods["kind"].ne("end_to_end"), methods["method"].str.partition("-")[0]
    )
    kinds = plain.str.replace(GUARDED, "").groupby(methods["kind"]).apply(_bases)
    parts = []
    if len(names := kinds.get("refined", [])):
        parts.append(
            f"Prompts of {', '.join(names)} are made from the masks of {data.reference} on the same "
            "images, without the truth."
        )
    if len(names := kinds.get("end_to_end", [])):
        parts.append(
            f"Prompts of {', '.join(names)} are made from the masks of the coarse model inside, "
            "without the truth."
        )
    if len(names := kinds.get("oracle", [])):
        parts.append(f"Prompts of {', '.join(names)} are made from the truth: upper bounds.")
    return " ".join(parts)


def _volumes(data: Data) -> str:
    if data.volumes is None:
        return ""
    lines = data.volumes[0]
    modes = sorted(set(lines["mode"]) - {"slices"})
    text = (
        f"Volumes of {', '.join(sorted(set(lines['dataset'])))} are scored whole, all slices at "
        "once, with the spacing along rows, columns and slices where it is known; a lesion that is "
        "missed in all slices has Dice 0 and the volume's diagonal as its distances. "
    )
    if modes:
        text += (
            "Propagated masks come from the prompt of a key slice, through the slices beside it."
        )
    return text.strip()


def _bases(names: Iterable[str]) -> list[str]:
    """Return the names of methods without their training sets, each once."""
    return sorted({name.partition("@")[0] for name in names})


def _seen(data: Data, trained_here: bool) -> str:
    rows = data.scores[~data.scores["kind"].isin(["coarse", "inner"])]
    if rows.empty:
        return ""
    parts = []
    for value, words in (
        ("yes", "† trained on the dataset"),
        ("unknown", "‡ not known"),
        ("no", "not trained on the dataset"),
    ):
        mine = rows[rows["seen"].eq(value)][["dataset", "method"]].drop_duplicates()
        names = [
            f"{name} ({', '.join(_bases(found['method']))})"
            for name, found in mine.groupby("dataset")
        ]
        if names:
            parts.append(f"{words}: {'; '.join(names)}")
    return (
        "Weights of refiners, as their authors say what they were trained on – "
        + ". ".join(parts)
        + "."
        + (" Of those trained here: the weights that they began from." if trained_here else "")
    )


def _statistics(report: Mapping[str, Any]) -> str:
    samples = f"{report['bootstrap']} samples" if "bootstrap" in report else "samples"
    seed = f", seed {report['seed']}" if "seed" in report else ""
    return (
        f"Intervals: 95 % percentile bootstrap, {samples} of whole groups (patients or clusters of "
        f"near-duplicates){seed}. Tests: two-sided Wilcoxon signed-rank on paired differences over "
        "the same cases, and on the mean difference of each group; effect sizes dz and "
        "rank-biserial. Holm's correction over all comparisons of a metric in the study; oracles "
        "are a family of their own."
    )


def commands(provenance: Mapping[str, Any]) -> str:
    """Return what to type to make the same numbers."""
    revision = str(provenance.get("git_revision") or "")
    lines = ["# In a clone of the project, with the datasets at the paths of the configuration:"]
    if revision.endswith("+changes"):
        lines.append("# the code had changes that this revision does not have")
    clean = revision.removesuffix("+changes")
    if clean and " " not in clean:
        lines.append(f"git checkout {clean}")
    lines += [
        "make install",
        "# Save the configuration below as study.yaml, then:",
        ".venv/bin/snakemake --configfile study.yaml --cores all",
    ]
    return "\n".join(lines)


def config_yaml(config: Any) -> str:
    """Return the study's configuration as YAML; empty for none."""
    if not config:
        return ""
    # By way of JSON: paths and tuples become what YAML can say.
    plain_config = json.loads(json.dumps(config, default=str))
    return yaml.safe_dump(plain_config, sort_keys=False, allow_unicode=True, width=100)


def describe_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return provenance as ``lines`` (name, value) and ``tables`` (title, columns, rows)."""
    lines, tables = [], []
    for name, value in provenance.items():
        title = name.replace("_", " ").capitalize()
        if name == "config":
            continue
        if isinstance(value, Mapping) and value:
            rows = [[str(key), plain(item)] for key, item in value.items()]
            tables.append((title, ["", ""], rows))
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            columns = list(dict.fromkeys(str(key) for item in value for key in item))
            rows = [[plain(item.get(key)) for key in columns] for item in value]
            tables.append((title, columns, rows))
        else:
            lines.append((title, plain(value)))
    return {"lines": lines, "tables": tables}


def plain(value: Any) -> str:
    """Return any plain value in words."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "–"
    return str(value)
