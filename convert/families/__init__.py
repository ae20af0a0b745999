"""One declarative file per model family: a module with a `FAMILY` and nothing else."""
