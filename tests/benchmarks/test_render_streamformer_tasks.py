import json

import pytest

import render_streamformer_tasks
from streamformer_tasks import TASKS, verdict


def result(values):
    """One seed of image only at 0.5 on all tasks, and of causal at the values."""
    row = {"seed": 0, "steps": 9, "commit": "abc"}
    metrics = [dict.fromkeys(TASKS, 0.5), dict(zip(TASKS, values, strict=True))]
    variants = ("image only", "causal")
    rows = [{**row, "variant": name, "metrics": values} for name, values in zip(variants, metrics, strict=True)]
    return {"rows": rows, "verdict": verdict(rows)}


def test_every_task_is_told_once():
    lines = render_streamformer_tasks.findings(result([0.9, 0.4, 0.6, 0.7, 0.5, 0.45])["verdict"])
    assert lines == [
        "- Needs time, and the causal tower is more than two standard deviations above image only: "
        "action recognition (90.0 against 50.0), temporal localization (60.0 against 50.0), "
        "temporal grounding (70.0 against 50.0).",
        "- Needs time, and the causal tower is **not** that far above image only: "
        "video text retrieval (40.0 against 50.0).",
        "- Needs no time, and the causal tower is not below image only: "
        "video object segmentation (50.0 against 50.0).",
        "- Needs no time, and the causal tower is **below** image only: referring segmentation (45.0 against 50.0).",
    ]


def test_the_page_is_what_the_result_says():
    page = render_streamformer_tasks.PAGE.read_text()
    assert render_streamformer_tasks.rendered(page, json.loads(render_streamformer_tasks.RESULT.read_text())) == page
    other = render_streamformer_tasks.rendered(page, result([0.25] * 6))
    assert "| all six, causal | 1 | 25.0 |" in other and "Code: abc." in other
    with pytest.raises(ValueError, match="end of tasks"):
        render_streamformer_tasks.rendered(page.replace("end of tasks", ""), result([0.25] * 6))
