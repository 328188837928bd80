"""Draw box plots, scatters and training curves."""

from ultrarefiner.jobs import job
from ultrarefiner.report.plots import plot_scores

with job(snakemake):
    plot_scores(
        scores=snakemake.input.scores,
        output=snakemake.output.figures,
        **dict(snakemake.params.items()),
    )
