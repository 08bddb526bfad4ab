from pathlib import Path

import pytest

from streamchat_hf import package_data as module
from streamchat_hf.package_data import package_data


@pytest.mark.parametrize("name", ["recipes", "model_cards"])
def test_it_lies_at_the_root_of_a_checkout(name):
    assert package_data(name) == Path(__file__).parents[1] / name


def test_it_lies_in_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "streamchat_hf" / "recipes").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "streamchat_hf" / "package_data.py"))
    assert package_data("recipes") == tmp_path / "streamchat_hf" / "recipes"


def test_what_is_nowhere_is_an_error():
    with pytest.raises(FileNotFoundError, match="no_such_folder is neither in"):
        package_data("no_such_folder")
