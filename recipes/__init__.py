"""Recipes: one TOML file that takes a checkpoint through conversion, uptraining and evaluation.

from gqa.recipes import load_recipe, run_recipe
run_recipe(load_recipe("demo", ["convert.groups=4"]))
"""

from typing import TYPE_CHECKING

from gqa.convert.lazy import lazily

if TYPE_CHECKING:
    from gqa.recipes.recipe import Recipe, load_recipe
    from gqa.recipes.run import run_recipe

__all__ = ["Recipe", "load_recipe", "run_recipe"]

__getattr__ = lazily(
    __name__,
    {
        "Recipe": "gqa.recipes.recipe:Recipe",
        "load_recipe": "gqa.recipes.recipe:load_recipe",
        "run_recipe": "gqa.recipes.run:run_recipe",
    },
)
