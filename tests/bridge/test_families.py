"""Which families are known."""

from types import SimpleNamespace

import pytest

from bridge_helpers import FAMILIES as TESTED
from bridge_helpers import tiny_model
from streamchat_hf.bridge.families import FAMILIES, family_of


def test_every_family_is_tested():
    assert set(FAMILIES) == set(TESTED)
    for name, family in FAMILIES.items():
        assert family_of(tiny_model(name).config) is family


def test_another_is_refused_by_name():
    with pytest.raises(ValueError, match="'gpt2' cannot be bridged, only llava_onevision"):
        family_of(SimpleNamespace(model_type="gpt2"))
