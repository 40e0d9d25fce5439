"""Tasks, a folder each: what it can be asked for, its pipeline, and how its answers are shown.

A folder has `about.py` with the record `TASK` (see `hf_any3d.tasks.records`), `settings.py`, `pipeline.py` and
`answer.py`. `hf_any3d.registry.TASKS` has the records by the names of the pipelines; command line, service, many files
and demo are made from them.
"""
