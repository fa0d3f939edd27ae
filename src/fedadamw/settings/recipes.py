"""The recipes that come with the package: named experiments."""

from pathlib import Path

RECIPE_FOLDER = Path(__file__).parent.parent / "recipes"


def list_recipes() -> dict[str, str]:
    """Return the names of the recipes, each with the first line of its comment."""
    files = sorted(RECIPE_FOLDER.rglob("*.yaml"))
    return {
        file.relative_to(RECIPE_FOLDER).with_suffix("").as_posix(): file.read_text().splitlines()[0].removeprefix("# ")
        for file in files
    }
