# From the final models to the report. A wildcard key names an instance of plan.yaml.
rule sample:
    input:
        predecessors_of("sample"),
    output:
        receipt("sample@{key}"),
    log:
        "logs/sample/{key}.log",
    priority: most_work_first("sample")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT["compute"]["threads"]
    resources:
        gpu=GPUS,
    message:
        "sample {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py sample@{wildcards.key} {output} > {log} 2>&1"


rule score:
    input:
        predecessors_of("score"),
    output:
        receipt("score@{key}"),
    log:
        "logs/score/{key}.log",
    priority: most_work_first("score")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT["compute"]["threads"]
    resources:
        gpu=GPUS,
    message:
        "score {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py score@{wildcards.key} {output} > {log} 2>&1"


rule quality:
    input:
        predecessors_of("quality"),
    output:
        receipt("quality@{key}"),
    log:
        "logs/quality/{key}.log",
    priority: most_work_first("quality")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT["compute"]["threads"]
    resources:
        gpu=GPUS,
    message:
        "quality {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py quality@{wildcards.key} {output} > {log} 2>&1"


rule similarity:
    input:
        predecessors_of("similarity"),
    output:
        receipt("similarity@{key}"),
    log:
        "logs/similarity/{key}.log",
    priority: most_work_first("similarity")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT["compute"]["threads"]
    resources:
        gpu=1,
    message:
        "similarity {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py similarity@{wildcards.key} {output} > {log} 2>&1"


rule clip:
    input:
        predecessors_of("clip"),
    output:
        receipt("clip@{key}"),
    log:
        "logs/clip/{key}.log",
    priority: most_work_first("clip")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT["compute"]["threads"]
    resources:
        gpu=1,
    message:
        "clip {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py clip@{wildcards.key} {output} > {log} 2>&1"


rule detect:
    input:
        predecessors_of("detect"),
    output:
        receipt("detect@{key}"),
    log:
        "logs/detect/{key}.log",
    priority: most_work_first("detect")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT["compute"]["threads"]
    resources:
        gpu=1,
    message:
        "detect {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py detect@{wildcards.key} {output} > {log} 2>&1"


rule analyse:
    input:
        predecessors_of("analyse"),
    output:
        receipt("analyse@{key}"),
    log:
        "logs/analyse/{key}.log",
    priority: most_work_first("analyse")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT["compute"]["threads"]
    resources:
        gpu=GPUS,
    message:
        "analyse {wildcards.key}"
    shell:
        "exec python workflow/scripts/repro.py analyse@{wildcards.key} {output} > {log} 2>&1"


rule report:
    input:
        predecessors("report"),
    output:
        receipt("report"),
    log:
        "logs/report/report.log",
    conda:
        "../../environment.yml"
    message:
        "report"
    shell:
        "exec python workflow/scripts/repro.py report {output} > {log} 2>&1"
