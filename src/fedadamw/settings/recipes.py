"""The recipes that come with the package: named experiments."""

from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with the first line of its comment."""
    files = sorted(RECIPES.rglob("*.yaml"))
    return {
        file.relative_to(RECIPES).with_suffix("").as_posix(): file.read_text().splitlines()[0].removeprefix("# ")
        for file in files
    }
