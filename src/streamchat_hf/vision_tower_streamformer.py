"""StreamFormer called as transformers' own models call their vision tower, as LLaVA does.

LLaVA-style models build their tower by `AutoModel.from_config(config.vision_config)` and hand it pictures
`(n, C, height, width)`; those for video flatten their videos to that shape first. This tower puts time back.

It is not among what travels with a checkpoint: transformers' classes build their tower from registered types only, so
whoever loads such a model has imported this package.

Letters: B videos, T frames, n = B * T pictures, N patches of a frame, D hidden size, C channels.
"""

import torch
from huggingface_hub.dataclasses import strict
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from streamchat_hf.modeling.configuration_streamformer import StreamFormerConfig
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel


@strict
class StreamFormerVisionConfig(StreamFormerConfig):
    """Configuration of [`StreamFormerVisionModel`]: all of [`StreamFormerConfig`], and how it is called.

    Args:
        frames_per_video: how many of the pictures that come in one row belong to one video, 16 in the paper's LLaVA
            (supplement, section 2.3). 1: every picture is alone.
        tie_last_hidden_states: the last of `hidden_states`, which LLaVA reads, is `last_hidden_state`, behind the
            final norm, as the authors' LLaVA has it. `False`: before that norm, as of SigLIP.

    Raises:
        ValueError: as [`StreamFormerConfig`], or if `frames_per_video` is not positive.
    """

    model_type = "streamformer_vision_model"
    _auto_class = None  # the code stays here

    frames_per_video: int = 1
    tie_last_hidden_states: bool = True

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """As in the base class; a plain StreamFormer's is taken for one of this kind, without the code it names."""
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if fields.get("model_type") == StreamFormerConfig.model_type:
            fields = {key: value for key, value in fields.items() if key != "auto_map"} | {
                "model_type": cls.model_type
            }
        return fields, kwargs

    def validate_architecture(self):
        """Checks that the numbers fit each other."""
        super().validate_architecture()
        if self.frames_per_video < 1:
            raise ValueError(f"frames_per_video={self.frames_per_video} must be at least 1")


class StreamFormerVisionModel(StreamFormerModel):
    """A StreamFormer with the calling convention of `SiglipVisionModel`, whose weights have StreamFormer's names.

    Example:
    ```python
    tower = StreamFormerVisionModel.from_pretrained("you/streamformer", frames_per_video=16, use_pooling_head=False)
    config = LlavaNextVideoConfig(
        vision_config=tower.config, text_config=text.config,
        vision_feature_layer=-1, vision_feature_select_strategy="full",  # there is no class token
    )
    model = LlavaNextVideoForConditionalGeneration(config)
    ```
    """

    config: StreamFormerVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _auto_class = None
    # The head summarises a frame. LLaVA reads patches: a tower without it takes the weights of one with it.
    _keys_to_ignore_on_load_unexpected = [r"^head\."]

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, frames_per_video: int | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encodes pictures, or the frames of videos, each of which sees the frames before it in its video.

        Args:
            pixel_values: `(n, C, height, width)` normalised pictures, video after video; or `(B, T, C, height, width)`
                videos, which say themselves how long they are.
            frames_per_video: T of such pictures; `None`: the configuration's. Of `(B, T, ...)` it is not read.
            **kwargs: `output_hidden_states`, `output_attentions`, `output_temporal_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` and `hidden_states` `(n, N, D)`, or of videos `(B, T*N, D)`, frame after frame;
            `pooler_output` `(n, D)`, or of videos that of the last frame `(B, D)`; `None` without a pooling head.

        Raises:
            ValueError: if the pictures do not make whole videos, or have another number of dimensions.
        """
        pictures = pixel_values.ndim == 4
        if pictures:
            frames = self.config.frames_per_video if frames_per_video is None else frames_per_video
            if frames < 1 or len(pixel_values) % frames:
                raise ValueError(
                    f"{len(pixel_values)} pictures are no whole videos of {frames} frames: "
                    "set frames_per_video, 1 where every picture is alone"
                )
            pixel_values = pixel_values.unflatten(0, (-1, frames))  # (n, ...) -> (B, T, ...)
        # transformers' models pass their own use_cache on, which is about text.
        output = super().forward(pixel_values, **{**kwargs, "use_cache": False})

        def as_asked(states: torch.Tensor | None) -> torch.Tensor | None:
            # (B, T, N, D) -> (n, N, D), or (B, T*N, D); hidden states that nobody has asked for are None
            return states if states is None else states.flatten(*((0, 1) if pictures else (1, 2)))

        pooled = output.pooler_output  # (B, T, D)
        if pooled is not None:
            pooled = pooled.flatten(0, 1) if pictures else pooled[:, -1]
        hidden_states = output.hidden_states
        return BaseModelOutputWithPooling(
            last_hidden_state=as_asked(output.last_hidden_state),
            pooler_output=pooled,
            hidden_states=None if hidden_states is None else tuple(as_asked(states) for states in hidden_states),
            attentions=output.attentions,
        )
