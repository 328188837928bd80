"""Draw every figure: box plots, scatters, reliability, the cross-dataset matrix, training curves."""

from ultrarefiner.jobs import job
from ultrarefiner.report.figures import plot_scores

with job(snakemake):
    plot_scores(
        scores=snakemake.input.scores,
        summary=snakemake.input.summary,
        calibration=snakemake.input.calibration,
        overlaps=snakemake.input.overlaps,
        points=snakemake.input.get("points"),
        point_tables=list(snakemake.input.get("point_tables", [])),
        output=snakemake.output.figures,
        **dict(snakemake.params.items()),
    )
