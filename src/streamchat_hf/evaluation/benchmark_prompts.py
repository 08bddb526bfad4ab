"""What OVO-Bench and StreamingBench ask, word for word, and which piece of the video they show with it.

Pure functions over the entries of the published annotation files. The wording is that of the benchmarks' own code
(both MIT), spelling included: a model that is asked otherwise has no number to compare with published ones.

ET-Bench needs none of this: its prompt is the annotation's `q`, and its clip the whole video.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# OVO-Bench: which task stands in which list of a result file.
OVOBENCH_GROUPS = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}

_OVOBENCH_CHOICE = """
Question: {question}
Options:
{options}

Respond only with the letter corresponding to your chosen option (e.g., A, B, C). \n\
Do not include any additional text or explanation in your response.
"""
_OVOBENCH_FORWARD = {
    "REC": """
You're watching a video in which people may perform a certain type of action repetively. \n\
The person performing this kind of action are referred to as 'they' in the following statement.
You're task is to count how many times have different people in the video perform this kind of action in total.
One complete motion counts as one. \n\
Now, answer the following question: How many times did they {activity}?
Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.
Do not include any additional text or explanation in your response.
""",
    "SSR": """
You're watching a tutorial video which contain a sequential of steps. \n\
The following is one step from the whole procedures: \n\
{step}
Your task is to determine if the man or woman in the video is currently performing this step.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response.
""",
    "CRR": """
You're responsible of answering questions based on the video content. \n\
The following question are relevant to the latest frames, i.e. the end of the video.
{question}
Decide whether existing visual content, especially latest frames, i.e. frames that near the end of the video, \
provide enough information for answering the question.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response.
""",
}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def ovobench_prompt(annotation: Mapping[str, Any], poll: int | None = None) -> str:
    """Return what OVO-Bench asks.

    Args:
        annotation: An entry of `ovo_bench_new.json`.
        poll: Of a forward task (REC, SSR, CRR), which entry of its `test_info`; the others have none.

    Raises:
        ValueError: For a task that is none of the twelve, and for a poll where there is none or the other way round.
    """
    info = _poll(annotation, poll)
    if info is None:
        options = zip(_LETTERS, annotation["options"], strict=False)
        lines = " ".join(f"{letter}. {option};" for letter, option in options)
        return _OVOBENCH_CHOICE.format(question=annotation["question"], options=lines)
    names = {"REC": annotation, "SSR": info, "CRR": annotation}[annotation["task"]]
    return _OVOBENCH_FORWARD[annotation["task"]].format_map(names)


def ovobench_clip(annotation: Mapping[str, Any], poll: int | None = None) -> tuple[float, float]:
    """Return the piece of the video that is shown, as (start, end) in seconds: all up to the next full second.

    The end may lie beyond the end of the video; what is there is shown.

    Args:
        annotation: An entry of `ovo_bench_new.json`.
        poll: Of a forward task, which entry of its `test_info`.
    """
    info = _poll(annotation, poll)
    return 0.0, float(math.ceil((annotation if info is None else info)["realtime"]))


def ovobench_clip_name(annotation: Mapping[str, Any], poll: int | None = None) -> str:
    """Return the name of this clip's file in OVO-Bench's folder of chunked videos."""
    return f"{annotation['id']}.mp4" if _poll(annotation, poll) is None else f"{annotation['id']}_{poll}.mp4"


def _poll(annotation: Mapping[str, Any], poll: int | None) -> Mapping[str, Any] | None:
    task = annotation["task"]
    if not any(task in tasks for tasks in OVOBENCH_GROUPS.values()):
        raise ValueError(f"OVO-Bench has no task {task!r}")
    if (task in OVOBENCH_GROUPS["forward"]) != (poll is not None):
        raise ValueError(
            f"OVO-Bench asks {task} {'without' if poll is not None else 'for each entry of test_info,'} poll"
        )
    return None if poll is None else annotation["test_info"][poll]


_CHOICE = """\
You are an advanced video question-answering AI assistant. You have been provided with some frames from the video and \
a multiple-choice question related to the video. Your task is to carefully analyze the video and provide the best \
answer to question, choosing from the four options provided. Respond with only the letter (A, B, C, or D) of the \
correct option.

Question: {question}

Options:
{options}

The best option is:"""
_OPEN = """\
You are an advanced video question-answering AI assistant. You have been provided with a video and a question related \
to the video. Your task is to carefully analyze the video and provide the answer to the question. \n\
\n\
Question: {question}


Answer:"""
_SEQUENTIAL = """\
You are an advanced video question-answering AI assistant. You have been provided with a video and a multiple-choice \
question related to the video. Your task is to carefully analyze the video and the provided context to answer the \
question, choosing from the four options provided. Respond with only the letter (A, B, C, or D) of the correct option.

{context}

Here is the question. Answer it and don't confuse it with the previous conversation.
Question: {question}

Options:
{options}

The best option is:"""
_CONTEXT = (
    "Here are the contextual information related to the video. Please answer the questions based on the contextual "
    "information: "
)
_EARLIER = (
    "At timestamp {time_stamp}, the following question and answer occurred: Question: {question}; Options: {options}; "
    "Answer: {answer}; "
)
_PROACTIVE = """\
You are an advanced image question-answering AI assistant. You have been provided with images and a question related \
to the images. Your task is to carefully analyze the images and provide the answer to the question. You need to \
carefully confirm whether the images content meet the conditions of the question, and then output the correct content.

Question: {question}

The answer is:
"""


def streamingbench_seconds(time_stamp: str) -> int:
    """Return the seconds of a time such as 0:03:10 or 00:03:10."""
    seconds = 0
    for part in time_stamp.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def streamingbench_clip(question: Mapping[str, Any], context_time: int = -1) -> tuple[int, int]:
    """Return the piece of the video that is shown with a question of the real, omni and sqa tasks.

    Args:
        question: A question of `questions_real.json`, `questions_omni.json` or `questions_sqa.json`.
        context_time: Show only so many seconds (60 in the main table of the paper); 0 or less: all from the start.

    Returns:
        (start, end) in seconds.
    """
    end = streamingbench_seconds(question["time_stamp"])
    return (max(0, end - context_time) if context_time > 0 else 0), end


def streamingbench_prompt(question: Mapping[str, Any]) -> str:
    """Return what StreamingBench asks in its real and omni tasks; without `options`, an open question."""
    if "options" not in question:
        return _OPEN.format(question=question["question"])
    return _CHOICE.format(question=question["question"], options="\n".join(_options(question)))


def streamingbench_sqa_prompt(question: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> str:
    """Return what StreamingBench asks in its task of sequential questions (sqa).

    Args:
        question: The question.
        earlier: All earlier questions of the same video, in order. Their true answers are told.
    """
    told = (_EARLIER.format_map({**one, "options": ", ".join(_options(one))}) for one in earlier)
    context = _CONTEXT + "".join(told) if earlier else ""
    return _SEQUENTIAL.format(context=context, question=question["question"], options="\n".join(_options(question)))


def streamingbench_polls(question: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the clips, (start, end) in seconds, with which a proactive question is asked until the answer is yes.

    One for each second from the one after the question on, and to four seconds behind the true moment.
    """
    start = streamingbench_seconds(question["time_stamp"])
    true = streamingbench_seconds(question["ground_truth_time_stamp"])
    return [(start, end) for end in range(start + 1, true + 4 + 1)]


def streamingbench_poll_query(question: Mapping[str, Any]) -> str:
    """Return the question whether it is time; a dialog history holds this, and the model is asked it in the prompt."""
    output = question["ground_truth_output"]
    return f'{question["question"]} Is it the right time to output "{output}"? You can only answer yes or no.'


def streamingbench_says_yes(response: str) -> bool:
    """Whether the answer to this question counts as yes: these letters anywhere, so in "my eyes", too."""
    return "yes" in response.lower()


def streamingbench_proactive_prompt(query: str) -> str:
    """Return the prompt around `streamingbench_poll_query`, or around the question itself after a yes."""
    return _PROACTIVE.format(question=query)


def _options(question: Mapping[str, Any]) -> list[str]:
    options = list(question["options"])
    if len(options) != 4:
        raise ValueError(f"StreamingBench has four options, not {len(options)}: {question['question']}")
    return (
        options if options[0].startswith("A.") else [f"{a}. {text}" for a, text in zip("ABCD", options, strict=True)]
    )
