"""Wins, ties and losses as bars (StreamChat, figure 5)."""

from pathlib import Path
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(f"a plot needs {error.name}: pip install 'streamchat-hf[bench]'") from None

from streamchat_hf.evaluation.pairwise_judge_score import OUTCOMES

# Colours that also those tell apart who see no red or no green.
COLOURS = dict(zip(OUTCOMES, ("#0072b2", "#bbbbbb", "#d55e00"), strict=True))


def plot_judgement(result: dict[str, Any], path: Path) -> None:
    """Draws what [`judge_answers`] returns.

    Args:
        result: a bar overall and one for each criterion, each of the shares of wins, ties and losses in percent; the
            lines are the intervals of the wins.
        path: the picture; its suffix decides the format.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the suffix is none of matplotlib's formats, or no question has been judged.
    """
    scores, models = result["scores"], result["models"]
    judged = sum(scores["overall"][outcome]["n"] for outcome in OUTCOMES)
    if not judged:
        raise ValueError("no question has been judged, so there is nothing to draw")
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for row, score in enumerate(scores.values()):
        left = 0.0
        for outcome in OUTCOMES:
            width = 100 * score[outcome]["share"]
            axes.barh(row, width, left=left, color=COLOURS[outcome], label=outcome if row == 0 else None)
            if width >= 4:  # a number that fits into its bar
                axes.text(left + width / 2, row + 0.2, f"{width:.0f}", ha="center", va="center")
            left += width
        if score["win"]["interval"] is not None:
            axes.plot([100 * edge for edge in score["win"]["interval"]], [row, row], "k|-", linewidth=1)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent of the questions")
    axes.set_title(f"{models['a']} against {models['b']}, {judged} questions", wrap=True)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
