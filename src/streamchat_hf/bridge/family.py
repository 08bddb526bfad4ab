"""What StreamBridge has to know about a family of video LLMs: the adapter between its frames and its input."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from streamchat_hf.bridge.language_input import LanguageInput
from streamchat_hf.bridge.rounds import Frame, Round


class Family:
    """The adapter of a family. A new one says what the plain model does with a video; everything else stays.

    A family must have a `video_token_id` that stands for visual tokens in its input, frames that are encoded one by
    one with the same result as in a whole video, and full attention with a `DynamicCache`. An adapter gives

    - `frame_size`: how frames are resized,
    - `encode`: frames to visual tokens, by the model's `get_video_features`,
    - `run`: how the frames of a round stand in the input, exactly as the model's own processor writes one video,
    - `positions`: if they are not 0, 1, 2, ..., by the model's `get_rope_index`,
    - `frame_tokens` and `run_tokens`: how many tokens `run` takes, for each frame and beside them,
    - `forward`: if visual tokens are more than embeddings.

    Held by tests: one call with a whole video gives the same logits as bridging its frames, within 1e-4.

    Args:
        model: a model of the family, loaded.
        tokenizer: its tokenizer.

    Attributes:
        model, tokenizer: as given.
        video_token_id: stands for a visual token in the input.
        run_tokens: tokens that the frames of a round take together, beside those of each.
    """

    run_tokens = 0

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.video_token_id: int = model.config.video_token_id

    def frame_size(self, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
        """Height and width to which a frame is resized; `settings` are those of the model's video processor."""
        raise NotImplementedError

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """The visual tokens `(T, k, D)` of frames `(T, 3, H, W)`, and the rows and columns in which they lie."""
        raise NotImplementedError

    def frame_tokens(self, frame: Frame) -> int:
        """How many tokens a frame takes in the input."""
        return len(frame.rows)

    def run(self, frames: Sequence[Frame]) -> tuple[list[int], torch.Tensor]:
        """The frames of a round in the input: its tokens, and `(V, D)` what stands for the visual ones among them."""
        rows = torch.cat([frame.mean.to(self.model.dtype) for frame in frames])
        return [self.video_token_id] * len(rows), rows

    def positions(self, ids: torch.Tensor, rounds: Sequence[Round]) -> torch.Tensor:
        """Where each of the tokens `(L,)` stands, as `forward` takes it: `(1, L)`, or `(3, 1, L)` for M-RoPE.

        Args:
            ids: the whole input.
            rounds: what it is made of.
        """
        return torch.arange(len(ids), device=ids.device)[None]

    def forward(self, part: LanguageInput, past: DynamicCache) -> torch.Tensor:
        """Reads what follows `past`, and adds it there; the logits `(1, vocabulary)` of its last token."""
        embeds = self.model.get_input_embeddings()(part.ids)  # (L, D)
        if len(part.rows):
            embeds[part.ids == self.video_token_id] = part.rows.to(embeds.dtype)
        output = self.model(
            inputs_embeds=embeds[None],
            position_ids=part.positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def flatten(self, front: Sequence[int], rounds: Sequence[Round]) -> LanguageInput:
        """What the language model reads of all this."""
        ids, rows = list(front), []
        for each in rounds:
            ids += each.opening
            if each.frames:
                run_ids, run_rows = self.run(each.frames)
                ids += run_ids
                rows.append(run_rows)
            ids += each.text
        device = self.model.device
        tokens = torch.tensor(ids, device=device)
        seen = torch.cat(rows).to(device) if rows else torch.empty(0, 0, device=device)
        return LanguageInput(tokens, seen, self.positions(tokens, rounds), self.video_token_id)
