"""Recipes: one TOML file that takes a checkpoint through conversion, uptraining and evaluation."""
