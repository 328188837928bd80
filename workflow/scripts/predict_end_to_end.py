"""Segment the cases of a part with an end-to-end model that never saw them."""

from pathlib import Path

from ultrarefiner.jobs import job
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.training.prediction import predict_coarse

with job(snakemake):
    predict_coarse(
        model=snakemake.input.model,
        card=snakemake.input.card,
        threshold=snakemake.input.threshold,
        prepared=Path(snakemake.input.cases).parent,
        splits=snakemake.input.splits,
        part=snakemake.wildcards.part,
        shelf=Shelf(snakemake.resources.shelf, int(snakemake.resources.shelf_mb * 1e6)),
        **dict(snakemake.params.items()),
        **dict(snakemake.output.items()),
    )
