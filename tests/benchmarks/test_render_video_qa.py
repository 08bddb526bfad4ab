import json

import pytest

import render_video_qa as render


def row(architecture: str, tower: str, seed: int, share: float) -> dict:
    scores = {"first_colour": share, "changes": share / 2, "mean": 0.75 * share}
    return {"architecture": architecture, "tower": tower, "seed": seed, "accuracy": scores}


RESULT = {
    "rows": [
        row("streamchat", "with time", 0, 0.8),
        row("streamchat", "with time", 1, 0.6),
        row("llava", "frames alone", 0, 0.5),
    ],
    "chance": 0.25,
    "settings": {
        **{"kinds": ["first_colour", "changes"], "questions": 400, "steps": 9, "frames": 16, "visual_tokens": 9},
        **{"tower": "shipped", "machine": "a machine"},
    },
    "versions": {"torch": "2.13.0"},
}


def test_the_page_shows_the_numbers_of_the_stored_run():
    page = render.PAGE.read_text()
    assert page == render.rendered(page, json.loads(render.RESULT.read_text()))


def test_every_model_has_a_row_with_the_mean_over_its_seeds():
    lines = render.table(RESULT).splitlines()
    assert lines[0] == "| model | tower | first colour | changes | mean |"
    assert lines[2:5] == [
        "| StreamChat | with time | 70.0 | 35.0 | 52.5 |",
        "| LLaVA-NeXT-Video | frames alone | 50.0 | 25.0 | 37.5 |",
        "| chance |  | 25.0 | 25.0 | 25.0 |",
    ]


def test_details_say_where_and_how():
    text = " ".join(render.table(RESULT).split())
    assert (
        "Per cent of 400 questions about new worlds, of each seed (0, 1). The tower of the shipped tiny checkpoint,"
        in text
    )
    assert (
        "16 frames, visual tokens of a frame: 9, 9 updates of 32 questions. On cpu (a machine); torch 2.13.0." in text
    )
    own = {**RESULT, "settings": {**RESULT["settings"], "tower": "given"}}
    assert "A tower of one's own" in render.table(own)


def test_main_writes_the_page(tmp_path, monkeypatch):
    paths = {"RESULT": tmp_path / "result.json", "PAGE": tmp_path / "page.md"}
    for name, path in paths.items():
        monkeypatch.setattr(render, name, path)
    with pytest.raises(SystemExit, match="does not exist"):
        render.main()
    paths["RESULT"].write_text(json.dumps(RESULT))
    paths["PAGE"].write_text(f"before\n{render.BEGIN}{render.END}after\n")
    render.main()
    assert paths["PAGE"].read_text() == f"before\n{render.BEGIN}{render.table(RESULT)}{render.END}after\n"
