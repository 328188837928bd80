"""What is left of a run whose Snakemake was killed: jobs, processes, locks; and how to go on."""
