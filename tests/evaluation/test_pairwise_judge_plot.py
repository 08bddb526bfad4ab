import pytest
from matplotlib.figure import Figure
from PIL import Image

from streamchat_hf.evaluation.pairwise_judge_plot import COLOURS, plot_judgement
from streamchat_hf.evaluation.pairwise_judge_score import score_outcomes

OUTCOMES = {
    "overall": [("a", "win"), ("b", "win"), ("c", "tie"), ("d", "loss")],
    "accuracy": [("a", "tie"), ("b", "tie"), ("c", "tie"), ("d", "loss")],
}
RESULT = {
    "models": {"a": "you/streamchat", "b": "you/other"},
    "scores": {name: score_outcomes(outcomes) for name, outcomes in OUTCOMES.items()},
}


def test_a_picture_is_written(tmp_path):
    plot_judgement(RESULT, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (960, 420)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS.values()} <= colours


def test_every_bar_is_wins_then_ties_then_losses_in_percent(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure))
    plot_judgement(RESULT, tmp_path / "plot.png")
    [axes] = drawn[0].axes
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0, 50), (50, 25), (75, 25), (0, 0), (0, 75), (75, 25)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["overall", "accuracy"]
    assert [text.get_text() for text in axes.texts] == ["50", "25", "25", "75", "25"]
    lines = [list(line.get_xdata()) for line in axes.lines]
    assert lines == [[100 * edge for edge in score["win"]["interval"]] for score in RESULT["scores"].values()]
    assert axes.get_title() == "you/streamchat against you/other, 4 questions"


def test_nothing_judged_is_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no question has been judged"):
        plot_judgement({**RESULT, "scores": {"overall": score_outcomes([])}}, tmp_path / "plot.png")
