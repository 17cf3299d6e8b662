"""The recipes of benchmarks/recipes.py that change the code, which changes too."""

import importlib.util

import pytest
from processes import ROOT

SPECIFICATION = importlib.util.spec_from_file_location("recipes", ROOT / "benchmarks" / "recipes.py")
recipes = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(recipes)


@pytest.mark.parametrize("name", [name for name, recipe in recipes.RECIPES.items() if recipe.changes])
def test_a_recipe_fits_the_code(name):
    for file, text in recipes.changed_files(recipes.RECIPES[name], ROOT).items():
        assert text != (ROOT / file).read_text()
        compile(text, file, "exec")
