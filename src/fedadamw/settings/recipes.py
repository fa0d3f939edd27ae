"""The recipes that come with the package: named experiments."""

from pathlib import Path

from fedadamw.validation import check_one_of

RECIPE_FOLDER = Path(__file__).parent.parent / "recipes"


def list_recipes() -> dict[str, str]:
    """Return the names of the recipes, each with the first line of its comment."""
    files = sorted(RECIPE_FOLDER.rglob("*.yaml"))
    return {
        file.relative_to(RECIPE_FOLDER).with_suffix("").as_posix(): file.read_text().splitlines()[0].removeprefix("# ")
        for file in files
    }


def read_recipe_text(name: str) -> str:
    """Return the recipe `name` as it is written, comments included; raises InputError if there is none."""
    check_one_of("recipe", name, list_recipes())
    return (RECIPE_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
