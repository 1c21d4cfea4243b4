# One rule per block of dvc.yaml: all have the same body, and a wildcard names the instance. A phase's module says what it needs of the machine.
for block in schedule.BLOCKS:

    rule:
        name:
            block
        input:
            predecessors_of(block),
        output:
            receipt(block),
        log:
            f"logs/{schedule.phase_of(block)}/{key_of(block)}.log",
        priority: most_work_first(block)
        conda:
            "../../environment.yml"
        threads: threads_of(block)
        resources:
            gpu=gpus_of(block),
        params:
            stage=name_of(block),
        message:
            title_of(block)
        shell:
            "exec python workflow/scripts/repro.py {params.stage} {output} > {log} 2>&1"
