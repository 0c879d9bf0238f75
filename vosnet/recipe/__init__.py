"""Recipes: YAML -> validated, frozen settings, every problem reported at once with its line."""

from vosnet.recipe.load import LoadedRecipe, load_recipe, parse_recipe
from vosnet.recipe.problems import Problem, RecipeError
from vosnet.recipe.resolved import recipe_differences, recipe_hash, resolved_text, resolved_values
from vosnet.recipe.schema import Recipe
from vosnet.recipe.sections import open_stream

__all__ = [
    "LoadedRecipe",
    "Problem",
    "Recipe",
    "RecipeError",
    "load_recipe",
    "open_stream",
    "parse_recipe",
    "recipe_differences",
    "recipe_hash",
    "resolved_text",
    "resolved_values",
]
