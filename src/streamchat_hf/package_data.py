"""Folders that ship inside the wheel and lie at the root of a checkout: recipes, model cards."""

from pathlib import Path


def package_data(name: str) -> Path:
    """Finds a folder of files that are no code.

    Args:
        name: `"recipes"` or `"model_cards"`.

    Raises:
        FileNotFoundError: If it is neither in the package nor at the root of a checkout.
    """
    package = Path(__file__).parent
    found = [folder for folder in (package / name, package.parents[1] / name) if folder.is_dir()]
    if not found:
        raise FileNotFoundError(f"{name} is neither in {package} nor in {package.parents[1]}")
    return found[0]
