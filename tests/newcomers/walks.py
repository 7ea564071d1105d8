"""What a newcomer does with a script that does not run: read the error, write what it says.

A script in scripts/walked/ is the shortest honest use of a peer, its import changed. Its walk here
has the message that each next run ends in, and the edit that it tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.newcomers.habits import run, with_model

SCRIPTS = Path(__file__).parent / "scripts" / "walked"


class Step(NamedTuple):
    """A step of a walk.

    Attributes:
        told: A pattern of the message that the script ends in.
        edits: Code of the script, and what the reader of the message writes in its place.
    """

    told: str
    edits: dict[str, str]


WALKS: dict[str, list[Step]] = {
    "ollama_attributes": [
        Step(
            r"ImportError: .*'ChatResponse'.*; write llcuda\.ChatCompletion",
            {"ChatResponse": "ChatCompletion"},
        ),
        Step(
            r"ImportError: .*'generate'.*; write llcuda\.chat\(\"demo\", \"Hello\"\)\.content",
            {
                ", generate": "",
                'generate(model="demo", prompt="Who are you?")["response"]': (
                    'chat("demo", "Who are you?").content'
                ),
            },
        ),
        Step(
            "no attribute 'content'; write answer.content",
            {"response.message.content": "response.content"},
        ),
    ],
    "transformers_pipeline": [
        Step(
            r"ImportError: .*'pipeline'.*; write .*llcuda\.quick_infer\(\"Hello\", \"demo\"\)",
            {
                "from llcuda import pipeline": "import llcuda",
                'pipe = pipeline("text-generation", model="demo")\n': "",
                'pipe("Once upon a time", max_new_tokens=32)[0]["generated_text"]': (
                    'llcuda.quick_infer("Once upon a time", "demo", max_new_tokens=32)'
                ),
            },
        ),
        Step("max_new_tokens: llcuda calls it max_tokens", {"max_new_tokens": "max_tokens"}),
    ],
    "vllm_offline": [
        Step(
            r"ImportError: .*'LLM'.*; write llcuda\.InferenceEngine\(\"demo\", n_parallel=4\)",
            {"LLM, S": "InferenceEngine, S", "LLM(model=": "InferenceEngine("},
        ),
        Step(
            r"TypeError: unknown keyword max_tokens: a keyword of submit\(\), infer\(\)",
            {", max_tokens=16": ""},
        ),
        Step(
            r"'generate'; write .*engine\.batch_infer\(\[",
            {"llm.generate(prompts, ": "llm.batch_infer(prompts, "},
        ),
        Step(
            "max_tokens: expected a whole number, not SamplingParams; give its fields as keywords",
            {
                "sampling_params = SamplingParams(temperature=0.8, top_p=0.95)\n": "",
                "prompts, sampling_params": "prompts, max_tokens=16, temperature=0.8, top_p=0.95",
            },
        ),
        Step("'outputs'; write result.text", {"output.outputs[0].text": "output.text"}),
    ],
    "llm_library": [
        Step(
            r"'get_model'; write .*engine = llcuda\.InferenceEngine\(\"demo\"\)",
            {"llm.get_model": "llm.InferenceEngine"},
        ),
        Step(
            r"'prompt'; write engine\.chat\(\"Hello\"\)\.result\(\)\.content",
            {"model.prompt(": "model.chat(", 'briefly.")': 'briefly.").result()'},
        ),
        Step("'text'; write answer.content", {"response.text()": "response.content"}),
    ],
    "sentence_transformers": [
        Step(
            r"ImportError: .*'SentenceTransformer'.*; write llcuda\.embed\(\"demo\", .*pooling=",
            {
                "from llcuda import SentenceTransformer": "import llcuda",
                'model = SentenceTransformer("demo")\n': "",
                "model.encode([": 'llcuda.embed("demo", [',
                'outside!"])': 'outside!"], pooling="mean")',
            },
        ),
    ],
    "xllamacpp_server": [
        Step(
            r"'CommonParams'; write llcuda\.InferenceEngine\(\"demo\", ctx_size=512, n_parallel=4",
            {
                "params = xlc.CommonParams()\n": "",
                'params.model.path = "demo"\n': "",
                "params.n_parallel = 2\n": "",
                "xlc.Server(params)": 'xlc.InferenceEngine("demo", n_parallel=2)',
            },
        ),
        Step(
            r"'handle_chat_completions'; write engine\.chat\(\"Hello\"\)\.result\(\)\.content",
            {
                "handle_chat_completions": "chat",
                '{"messages": [': "[",
                '}], "max_tokens": 32}\n)': "}], max_tokens=32\n).result()",
            },
        ),
        Step(
            "choices; write answer.content",
            {'result["choices"][0]["message"]["content"]': "result.content"},
        ),
    ],
}


def source(name: str) -> str:
    """Return a script.

    Args:
        name: The name of the file, without its end.
    """
    return (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")


def edited(name: str, text: str, edits: Mapping[str, str]) -> str:
    """Return the text of a script after the edits of a step."""
    for old, new in edits.items():
        assert old in text, f"{name}: {old!r}"
        text = text.replace(old, new)
    return text


def walk(name: str) -> None:
    """Run a script to its first error, make the edits, and again, until it runs to its end.

    Args:
        name: As that of `source`.

    Raises:
        AssertionError: The message of an error does not tell the edits.
    """
    text = source(name)
    for told, edits in WALKS[name]:
        try:
            run(name, text)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            assert re.search(told, message), f"{name}: {message}"
        else:
            raise AssertionError(f"{name} runs without {edits}")
        text = edited(name, text, edits)
    run(name, text)


def finished(name: str, model: str) -> str:
    """Return a script as it is at the end of its walk, on another model than the demo.

    Args:
        name: As that of `source`.
        model: What takes the place of "demo".
    """
    text = source(name)
    for _told, edits in WALKS[name]:
        text = edited(name, text, edits)
    return with_model(text, model)
