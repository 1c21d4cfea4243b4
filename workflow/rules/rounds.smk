# From params.yaml to the final models. A wildcard key names an instance of plan.yaml.
rule plan:
    input:
        predecessors("plan"),
    output:
        receipt("plan"),
    log:
        "logs/plan/plan.log",
    conda:
        "../../environment.yml"
    message:
        "plan"
    shell:
        "exec python workflow/scripts/repro.py plan {output} > {log} 2>&1"


rule data:
    input:
        predecessors("data"),
    output:
        receipt("data"),
    log:
        "logs/data/data.log",
    conda:
        "../../environment.yml"
    message:
        "data"
    shell:
        "exec python workflow/scripts/repro.py data {output} > {log} 2>&1"


rule shard:
    input:
        predecessors_of("shard"),
    output:
        receipt("shard@{key}"),
    log:
        "logs/shard/{key}.log",
    priority: most_work_first("shard")
    conda:
        "../../environment.yml"
    message:
        "shard {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py shard@{wildcards.key} {output} > {log} 2>&1"


rule train:
    input:
        predecessors_of("train"),
    output:
        receipt("train@{key}"),
    log:
        "logs/train/{key}.log",
    priority: most_work_first("train")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT["compute"]["threads"]
    resources:
        gpu=GPUS,
    message:
        "train {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py train@{wildcards.key} {output} > {log} 2>&1"


rule aggregate:
    input:
        predecessors_of("aggregate"),
    output:
        receipt("aggregate@{key}"),
    log:
        "logs/aggregate/{key}.log",
    priority: most_work_first("aggregate")
    conda:
        "../../environment.yml"
    message:
        "aggregate {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py aggregate@{wildcards.key} {output} > {log} 2>&1"


rule redistribute:
    input:
        predecessors_of("redistribute"),
    output:
        receipt("redistribute@{key}"),
    log:
        "logs/redistribute/{key}.log",
    priority: most_work_first("redistribute")
    conda:
        "../../environment.yml"
    message:
        "redistribute {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py redistribute@{wildcards.key} {output} > {log} 2>&1"
