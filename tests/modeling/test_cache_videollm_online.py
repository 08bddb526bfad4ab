"""The window of a stream: same as a whole forward, moved keys same as recomputed ones, nothing broken apart."""

import itertools
import random
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from streamchat_hf.modeling.cache_videollm_online import BLOCKS, FIRST_CAPACITY, LiveCache
from streamchat_hf.modeling.rotary_streamchat import rotate
from videollm_online_helpers import CLOSE, END, INTERVAL, OPEN, V, tiny_config

TOKENS = 5  # of a frame
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPT = [2, 20, 21, 22]
QUESTION_IN_RUN = [6, 9, 30, 31, 7, 8]  # "]", "User: q", "\nAssistant:"
STANDING_IN_RUN = [6, 9, 30, 31, *OPEN]  # "]", "User: q", "\n["


def language_model(kind: str = "llama", layers: int = 3):
    torch.manual_seed(0)
    config, model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    model = model(config(vocab_size=61, num_hidden_layers=layers, max_position_embeddings=512, **SIZES)).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model


def live_cache(layers: int = 3, **changes) -> LiveCache:
    return LiveCache(tiny_config(text_config={"num_hidden_layers": layers}, **changes))


class Stream:
    """Reads a conversation with random frames into a cache, and keeps every embedding that it still holds.

    `twin(dropped, embeds, logits)` is called with all that is read.
    """

    def __init__(self, model, cache: LiveCache, seed: int = 0, twin=lambda *read: None):
        self.model, self.cache, self.twin = model, cache, twin
        self.generator = torch.Generator().manual_seed(seed)
        self.embeds = torch.empty(1, 0, 32)
        self.dropped: list[tuple[int, int]] = []
        forget = cache._forget

        def spied(ranges, rotary_emb):
            self.dropped = [pair for pair in ranges if pair[0] < pair[1]]
            self.embeds = without(self.embeds, 1, self.dropped)
            forget(ranges, rotary_emb)

        cache._forget = spied

    @torch.no_grad()
    def read(self, ids: list[int], frames: int = 0) -> torch.Tensor:
        """Logits `(L, vocabulary)` of the tokens read."""
        embeds = self.model.get_input_embeddings()(torch.tensor([ids]).masked_fill(torch.tensor([ids]) == V, 0))
        is_frame = (torch.tensor(ids) == V).nonzero()[:, 0]
        embeds[0, is_frame] = torch.randn(len(is_frame), 32, generator=self.generator)
        self.dropped = []
        self.cache.make_room(len(ids), self.model.model.rotary_emb)
        self.embeds = torch.cat((self.embeds, embeds), dim=1)
        output = self.model(inputs_embeds=embeds, past_key_values=self.cache, use_cache=True)
        self.cache.was_read(ids, frames)
        self.twin(self.dropped, embeds, output.logits)
        return output.logits[0]

    def frames(self, count: int = 1) -> torch.Tensor:
        return self.read(self.cache.next_frames(count)[0], count)

    def stand(self, question: list[int]) -> torch.Tensor:
        """A question that frames follow."""
        self.cache.hear(question)
        return self.frames()

    def answer(self, *words: int, question: list[int] | None = None) -> torch.Tensor:
        """A question, if there is one, and an answer."""
        if question is None:
            self.cache.begin_response()
        else:
            self.cache.hear(question)
        logits = self.read(list(self.cache.pending))
        for word in words:
            self.cache.pending = [word]
            logits = self.read([word])
        self.cache.end_response()
        return logits


def without(states: torch.Tensor, dim: int, ranges: list[tuple[int, int]]) -> torch.Tensor:
    for begin, end in reversed(ranges):
        kept = (states.narrow(dim, 0, begin), states.narrow(dim, end, states.shape[dim] - end))
        states = torch.cat(kept, dim)
    return states


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_read_in_parts_equals_one_forward(kind):
    model = language_model(kind)
    cache = live_cache(max_context=512)
    embeds = torch.randn(1, 400, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(inputs_embeds=embeds).logits
        parts = [
            model(inputs_embeds=part, past_key_values=cache, use_cache=True).logits
            for part in embeds.split([1, 6, 6, 40, 1, 1, 6, 139, 200], dim=1)
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=0)
    assert cache.get_seq_length() == 400


def test_memory_doubles_and_nothing_is_copied_while_there_is_room():
    model, cache = language_model(), live_cache(max_context=600)
    stream = Stream(model, cache)
    cache.hear(PROMPT)
    room = []
    for _ in range(140):
        stream.frames()
        room.append((cache.layers[0].keys.shape[2], cache.layers[0].keys.data_ptr()))
    assert [tokens for tokens, _ in room] == sorted(tokens for tokens, _ in room)
    assert len(set(room)) == 3
    assert {tokens for tokens, _ in room} == {FIRST_CAPACITY, 2 * FIRST_CAPACITY, 600}


class Recomputed(DynamicCache):
    """The naive twin: keeps every key as it came, and turns all of them to where they stand now, at every step."""

    def __init__(self, rotary_emb):
        super().__init__()
        self.inv_freq = rotary_emb.inv_freq.double()
        self.came_at: dict[int, torch.Tensor] = {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        here = torch.arange(key_states.shape[2]) + self.get_seq_length(layer_idx)
        keys, values = super().update(key_states, value_states, layer_idx)
        came_at = torch.cat((self.came_at.get(layer_idx, here[:0]), here))
        self.came_at[layer_idx] = came_at
        angles = torch.outer((torch.arange(len(came_at)) - came_at).double(), self.inv_freq).repeat(1, 2)
        return rotate(keys.double(), angles.cos(), angles.sin()).float(), values

    def forget(self, ranges) -> None:
        for number, layer in enumerate(self.layers):
            layer.keys, layer.values = without(layer.keys, 2, ranges), without(layer.values, 2, ranges)
            self.came_at[number] = without(self.came_at[number], 0, ranges)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_moved_keys_are_those_recomputed_at_their_new_positions(kind):
    model = language_model(kind)
    cache, recomputed = live_cache(max_context=80), Recomputed(model.model.rotary_emb)

    def twin(dropped, embeds, logits):
        recomputed.forget(dropped)
        expected = model(inputs_embeds=embeds, past_key_values=recomputed, use_cache=True).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

    stream = Stream(model, cache, twin=twin)
    cache.hear(PROMPT)
    for step in range(60):
        stream.frames()
        if step % 9 == 8:
            stream.answer(40, 41, question=QUESTION_IN_RUN if step % 2 else None)
        if step == 30:
            stream.stand(STANDING_IN_RUN)
    assert cache.forgotten > 200


def test_with_one_layer_what_is_left_is_a_conversation_of_its_own():
    # With more layers it is not: what is left has seen what was dropped.
    model, cache = language_model(layers=1), live_cache(layers=1, max_context=90)
    stream = Stream(model, cache)
    cache.hear(PROMPT)
    for step in range(50):
        logits = stream.answer(40, 41) if step % 7 == 6 else stream.frames(1 + step % 3)
        with torch.no_grad():
            afresh = model(inputs_embeds=stream.embeds).logits[0]
        torch.testing.assert_close(logits[-1], afresh[-1], atol=1e-4, rtol=0)
    assert cache.forgotten > 200


def test_positions_stay_contiguous_and_memory_constant():
    model, cache = language_model(), live_cache(max_context=100)
    stream, seen, memory = Stream(model, cache), [], set()
    model.model.rotary_emb.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["position_ids"][0].tolist()), with_kwargs=True
    )
    cache.hear(PROMPT)
    for number in range(300):
        before = cache.get_seq_length()
        stream.frames()
        here = before if not stream.dropped else cache.get_seq_length() - len(seen[-1])
        assert seen[-1] == list(range(here, here + len(seen[-1])))
        assert len(cache.ids) == cache.get_seq_length() <= 100
        if number > 30:
            memory.add(cache.visual_bytes)
    assert max(map(max, seen)) < 100
    assert memory == {2 * 3 * 2 * 100 * 8 * 4}  # keys and values, layers, heads, tokens, dimensions, bytes
    assert cache.ids[: len(PROMPT)] == PROMPT


def test_a_block_is_dropped_at_once():
    model, cache = language_model(), live_cache(max_context=160)
    stream, drops = Stream(model, cache), 0
    cache.hear(PROMPT)
    for _ in range(200):
        stream.frames()
        drops += bool(stream.dropped)
        assert sum(end - begin for begin, end in stream.dropped) in (0, *range(160 // BLOCKS, 160 // BLOCKS + 12))
    assert 200 * 6 / (160 // BLOCKS + 6) * 0.8 < drops <= 200 * 6 / (160 // BLOCKS)


# One letter for each token. What is kept must read like a conversation: after the prompt, and the newest question if
# its turn is gone, whole turns of frames F, a question U or none, and an answer A; and a run of frames that is open.
# Instead of the answer more frames may follow a question.
LETTERS = {
    2: "P",
    V: "F",
    INTERVAL: ",",
    OPEN[0]: "(",
    OPEN[1]: "[",
    6: "]",
    7: "A",
    8: ":",
    9: "U",
    10: "/",
    END: "$",
}
RUN = rf"\(\[F{{{TOKENS}}}(,F{{{TOKENS}}})*"
STANDING = rf"(({RUN}\]|/)Uww(?=\())*"
CONVERSATION = re.compile(rf"Pwww(Uww\(?)?({STANDING}({RUN}\](Uww)?|/Uww)A:w*\$)*{STANDING}({RUN})?")


@pytest.mark.parametrize("seed", range(12))
def test_frames_and_turns_are_dropped_whole(seed):
    chance = random.Random(seed)
    model, cache = language_model(layers=1), live_cache(layers=1, max_context=chance.randrange(60, 130))
    stream = Stream(model, cache, seed)
    cache.hear(PROMPT)
    asked = None
    for _ in range(120):
        kind = chance.random()
        words = [chance.randrange(40, 60) for _ in range(chance.randrange(6))]
        if kind < 0.1:
            asked = [9, *(chance.randrange(40, 60) for _ in range(2))]
            stream.answer(*words, question=[6 if cache.open_run else 10, *asked, 7, 8])
        elif kind < 0.15:
            asked = [9, *(chance.randrange(40, 60) for _ in range(2)), OPEN[0]]
            stream.stand([6 if cache.open_run else 10, *asked, OPEN[1]])
        elif kind < 0.3 and cache.open_run:
            stream.answer(*words)
        else:
            stream.frames(chance.randrange(1, 4))
        text = "".join(LETTERS.get(token, "w") for token in cache.ids + cache.pending)
        assert CONVERSATION.fullmatch(text), text
        if asked is not None:
            begin, end = cache.question
            assert cache.ids[begin:end] == asked
    assert cache.forgotten


def test_the_prompts_own_question_is_kept_and_its_answer_is_not():
    model, cache = language_model(), live_cache(max_context=80)
    stream = Stream(model, cache)
    assert cache.hear([*PROMPT, 9, 30, 31, 7, 8])
    stream.read(list(cache.pending))
    cache.pending = [40]
    stream.read([40])
    cache.end_response()
    for _ in range(30):
        stream.frames()
    assert cache.ids[:9] == [*PROMPT, 9, 30, 31, *OPEN]


def test_the_newest_question_is_kept_and_older_ones_are_not():
    model, cache = language_model(), live_cache(max_context=80)
    stream = Stream(model, cache)
    cache.hear(PROMPT)
    for question in ([9, 30, 31], [9, 32, 33]):
        stream.frames(2)
        stream.answer(40, question=[6, *question, 7, 8])
        for _ in range(40):
            stream.frames()
        assert cache.ids[:9] == [*PROMPT, *question, *OPEN]
    stream.answer(41, question=[6, 9, 34, 35, 7, 8])
    assert cache.ids[slice(*cache.question)] == [9, 34, 35]


@pytest.mark.parametrize("ending", [OPEN, OPEN[1:], []])  # the line break one token with the text, or yet to come
@pytest.mark.parametrize("answered", [False, True])
def test_the_newest_question_is_kept_while_it_stands(ending, answered):
    model, cache = language_model(layers=1), live_cache(layers=1, max_context=160)
    stream = Stream(model, cache)
    cache.hear(PROMPT)
    stream.frames(6)
    stream.stand([6, 9, 30, 31, *ending])
    for step in range(60):
        logits = stream.answer(40, 41) if answered and step % 7 == 6 else stream.frames()
        asked = slice(*cache.question)
        assert cache.ids[asked] == [9, 30, 31, *ending[:-1]]
        assert cache.ids[asked.stop : asked.stop + 3] in ([*OPEN, V], [OPEN[1], V, V])
        with torch.no_grad():
            afresh = model(inputs_embeds=stream.embeds).logits[0]
        torch.testing.assert_close(logits[-1], afresh[-1], atol=1e-4, rtol=0)
        assert len(cache.ids) <= 160
    assert cache.ids[: asked.start] == PROMPT
    assert cache.forgotten > 200
    assert cache.visual_bytes == 2 * 2 * 160 * 8 * 4  # keys and values, heads, tokens, dimensions, bytes


def test_a_question_that_stands_is_forgotten_when_another_one_comes():
    model, cache = language_model(layers=1), live_cache(layers=1, max_context=80)
    stream = Stream(model, cache)
    cache.hear(PROMPT)
    for word in (30, 31, 32):
        stream.frames(3)
        stream.stand([6, 9, word, *OPEN])
    for _ in range(30):
        stream.frames()
    assert cache.ids[:8] == [*PROMPT, 9, 32, *OPEN]


@pytest.mark.parametrize(
    ("ids", "answers", "length", "opens"),
    [
        (PROMPT, False, 4, False),
        ([*PROMPT, *OPEN], False, 5, True),
        ([*PROMPT, OPEN[1]], False, 4, True),  # the prompt's last token took the line break in
        ([*PROMPT, *CLOSE[1:]], True, 4, False),
        ([*PROMPT, 9, 30, *CLOSE[1:]], True, 6, False),
    ],
)
def test_how_a_prompt_ends(ids, answers, length, opens):
    cache = live_cache()
    assert cache.hear(ids) is answers
    assert (cache.prompt_length, cache.open_run, cache.pending) == (length, opens, ids)


@pytest.mark.parametrize(("interval", "between"), [(INTERVAL, [INTERVAL]), (None, [])])
def test_what_is_read_with_frames(interval, between):
    cache, frame = live_cache(frame_token_interval_id=interval), [V] * TOKENS
    cache.hear(PROMPT)
    ids, last = cache.next_frames(2)
    assert ids == [*PROMPT, *OPEN, *frame, *between, *frame]
    assert last == [10, 15 + len(between)]
    cache.was_read(ids, frames=2)
    assert cache.next_frames(1) == ([*between, *frame], [len(between) + TOKENS - 1])
    cache.begin_response()
    assert cache.pending == CLOSE
    cache.was_read(CLOSE)
    cache.pending = [40]
    cache.end_response()
    assert cache.next_frames(1)[0] == [40, END, *OPEN, *frame]


def test_an_answer_that_ended_itself_is_ended_once():
    cache = live_cache()
    cache.pending = [END]
    cache.end_response()
    assert cache.pending == [END]


def test_reset_begins_anew_in_the_same_memory():
    model, cache = language_model(), live_cache(max_context=80)
    runs = []
    for _ in range(2):
        stream = Stream(model, cache)
        cache.hear(PROMPT)
        runs.append(torch.cat([stream.frames() for _ in range(30)]))
        address, memory = cache.layers[0].keys.data_ptr(), cache.visual_bytes
        del cache._forget
        cache.reset()
        assert (cache.ids, cache.pending, cache.open_run, cache.forgotten) == ([], [], False, 0)
        assert (cache.layers[0].keys.data_ptr(), cache.visual_bytes) == (address, memory)
    assert torch.equal(*runs)


def test_a_cache_made_in_inference_mode_can_go_on_outside_it():
    model, cache = language_model(), live_cache(max_context=80)
    stream = Stream(model, cache)
    cache.hear(PROMPT)
    with torch.inference_mode():
        stream.frames()
    for _ in range(20):
        stream.frames()


def test_what_cannot_be_is_refused():
    model = language_model()
    cache = live_cache(max_context=40)
    with pytest.raises(ValueError, match="a prompt for a stream cannot hold frames itself"):
        cache.hear([*PROMPT, V])
    with pytest.raises(ValueError, match="one stream, not 2 rows"):
        model(inputs_embeds=torch.zeros(2, 3, 32), past_key_values=cache, use_cache=True)
    stream = Stream(model, live_cache(max_context=40))
    stream.cache.hear(list(itertools.repeat(20, 30)))
    stream.frames()
    with pytest.raises(ValueError, match="8 tokens do not fit into max_context=40"):
        stream.cache.make_room(8, model.model.rotary_emb)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", None])
def test_keys_that_cannot_be_moved_are_named(kind):
    stream = Stream(language_model(), live_cache(max_context=40))
    stream.cache.hear(PROMPT)
    for _ in range(5):
        stream.frames()
    with pytest.raises(ValueError, match="keys of this language model cannot be moved"):
        stream.cache.make_room(6, kind and SimpleNamespace(rope_type=kind))


@pytest.mark.slow
def test_ten_thousand_frames_in_a_window_of_2048_tokens():
    model, cache = language_model(layers=1), live_cache(layers=1, max_context=2048)
    stream, memory = Stream(model, cache), set()
    cache.hear(PROMPT)
    for number in range(10_000):
        logits = stream.frames()
        if number == 1000 or number % 3000 == 2999:
            memory.add((cache.visual_bytes, max(len(cache.ids), 2000)))
            with torch.no_grad():
                afresh = model(inputs_embeds=stream.embeds).logits[0]
            torch.testing.assert_close(logits[-1], afresh[-1], atol=1e-4, rtol=0)
    assert len({held for held, _ in memory}) == 1
    assert cache.forgotten > 10_000 * (TOKENS + 1) - 2048
