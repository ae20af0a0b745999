"""The embedded demo checkpoint, the corpus it was trained on, and the script that remakes it."""
