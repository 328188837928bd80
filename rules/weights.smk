# Only files that are absent now can be made by this rule. One that is there is a plain input: Snakemake
# would delete an output before making it again, and weights that somebody put there are not ours to
# delete.
rule fetch_weights:
    input:
        code=code_of("fetch_weights"),
    output:
        weights="resources/weights/{weights_file}",
    log:
        f"results/{RUN}/logs/fetch_weights/{{weights_file}}.log",
    benchmark:
        f"results/{RUN}/benchmarks/fetch_weights/{{weights_file}}.tsv"
    wildcard_constraints:
        weights_file=any_of(absent_files()),
    # Before all else: a file that cannot be had is best known now.
    priority: 100
    # Where Snakemake itself runs: compute nodes often have no internet.
    localrule: True
    params:
        name=lambda wildcards: name_of_file(wildcards.weights_file),
        mirrors=CFG.weights.mirrors,
        accepted=CFG.weights.accept,
    message:
        "Fetch {wildcards.weights_file}"
    script:
        "../workflow/scripts/fetch_weights.py"
