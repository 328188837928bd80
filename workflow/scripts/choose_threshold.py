"""Choose a model's threshold on its validation cases."""

from pathlib import Path

from ultrarefiner.jobs import job
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.training.prediction import choose_threshold

with job(snakemake):
    choose_threshold(
        model=snakemake.input.model,
        card=snakemake.input.card,
        prepared=[Path(cases).parent for cases in snakemake.input.cases],
        splits=snakemake.input.splits,
        fold=int(snakemake.wildcards.fold),
        flips=snakemake.params.flips,
        output=snakemake.output.threshold,
        device=snakemake.params.device,
        shelf=Shelf(snakemake.resources.shelf, int(snakemake.resources.shelf_mb * 1e6)),
    )
