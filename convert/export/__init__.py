"""A checkpoint as one file of another format, where users have no other tool that honours its KV heads."""
