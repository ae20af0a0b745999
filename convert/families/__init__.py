"""One declarative file per model family: a module with a `FAMILY`, or with a `REWRITE` into one."""
