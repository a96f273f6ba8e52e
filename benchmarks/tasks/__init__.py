"""The tasks of evaluate.py: name on the command line, and the module that measures it.

A task is a module with `add_options(parser)`, `run(options) -> rows` and `text(rows)`; the first
line of its docstring is its description. One that measures has `figure(rows)` as well, and its rows
are recorded in results/NAME.jsonl, a `-` of the name being a `_`. The report shows the tasks in
this order. Naming a module here does not import it.
"""

TASKS = {
    "dynamics": "benchmarks.tasks.dynamics",
    "lm": "benchmarks.tasks.lm",
    "ablation": "benchmarks.tasks.ablation",
    "memory": "benchmarks.tasks.memory",
    "goals": "benchmarks.tasks.goals",
    "talk": "benchmarks.tasks.talk",
    "gating": "benchmarks.tasks.gating",
    "stability": "benchmarks.tasks.stability",
    "mirror": "benchmarks.tasks.mirror",
    "setpoint": "benchmarks.tasks.setpoint",
    "zombie": "benchmarks.tasks.zombie",
    "srb": "benchmarks.tasks.srb",
    "phase-slip": "benchmarks.tasks.phase_slip",
    "report": "benchmarks.report",
}
