import pytest

from markers import between

BEGIN, END = "<!-- begin -->\n", "<!-- end -->\n"


def test_only_what_is_between_the_markers_changes():
    page = between(f"before\n{BEGIN}stale\n{END}after\n", BEGIN, END, "new\n")
    assert page == f"before\n{BEGIN}new\n{END}after\n"
    assert between(page, BEGIN, END, "new\n") == page


@pytest.mark.parametrize("page", [f"before\n{END}", f"{BEGIN}after\n", f"{END}{BEGIN}"])
def test_a_missing_marker_is_an_error(page):
    with pytest.raises(ValueError, match="needs the lines '<!-- begin -->' and '<!-- end -->'"):
        between(page, BEGIN, END, "new\n")
