"""StreamWorld as a densely captioned video: what an annotator would have written down, in the world's own words."""

from typing import TypedDict

from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_dialogue import vocabulary


class StreamWorldCaption(TypedDict):
    """What is true from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def streamworld_captions(world: World) -> list[StreamWorldCaption]:
    """Return one caption for every interval in which nothing changes.

    They are the captions of a line for `streamchat data synthesize`, beside `"video"` and `"duration"`.

    Args:
        world: What to describe.

    Returns:
        Captions such as `"a red circle , left"`, `"three red ones"` or `"nothing"`, of words of `vocabulary()` only.

    Raises:
        ValueError: For a world with colours or shapes that no word names.
    """
    captions = [StreamWorldCaption(start=start, end=end, text=text) for start, end, text in world.captions()]
    unnamed = {word for caption in captions for word in caption["text"].split()} - set(vocabulary())
    if unnamed:
        raise ValueError(f"no word names {', '.join(sorted(unnamed))}")
    return captions
