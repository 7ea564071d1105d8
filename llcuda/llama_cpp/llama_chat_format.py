"""Chat formats by llama-cpp-python's names, and handlers of a caller's own.

A model's own template is used unless a format is asked for. The formats here are Jinja templates
that know the roles system, user and assistant; "chatml-function-calling" knows tools, too.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llcuda._lazy import missing_name
from llcuda.chat.template import ChatTemplate
from llcuda.llama_cpp.llama_grammar import LlamaGrammar
from llcuda.llama_cpp.responses import as_chat, as_chat_chunks
from llcuda.params import wrong_argument, wrong_value

Message = Mapping[str, Any]

_CHATML_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_CHATML_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_CHATML = "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_END
# The system message goes into the first message of the user.
_SYSTEM_APART = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set turns = messages[1:] if messages[0].role == 'system' else messages %}"
)
_TURNS = "{% for m in turns %}"
_TOOLS = (
    _SYSTEM_APART + "{% if tools or system %}<|im_start|>system\n{{ system }}"
    "{% if tools %}{{ '\\n\\n' if system else '' }}"
    "You can call functions. Each line between <tools> and </tools> describes one:\n<tools>\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>\n"
    "To call one, answer with its name and its arguments as JSON:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
    "{% endif %}<|im_end|>\n{% endif %}"
    + _TURNS
    + "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n"
    "{% elif m.tool_calls %}<|im_start|>assistant\n{{ m.content or '' }}"
    "{% for call in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n"
    "{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}" + _CHATML_END
)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A chat format: the template that makes a prompt of messages, and what ends an answer.

    Attributes:
        template: The Jinja template.
        stop: Texts that end an answer, beside the tokens that end a text.
    """

    template: str
    stop: Sequence[str] = ()


FORMATS: Mapping[str, ChatFormat] = {
    "alpaca": ChatFormat(
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ m.content }}\n\n"
        "{% elif m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% else %}### Response:\n{{ m.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}",
        ("### Instruction:",),
    ),
    "chatml": ChatFormat(_CHATML, ("<|im_end|>",)),
    "chatml-function-calling": ChatFormat(_TOOLS, ("<|im_end|>",)),
    "gemma": ChatFormat(
        _SYSTEM_APART + _TURNS + "<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ system ~ '\\n\\n' if loop.first and system else '' }}{{ m.content }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<end_of_turn>",),
    ),
    "llama-2": ChatFormat(
        _SYSTEM_APART
        + _TURNS
        + "{% if m.role != 'assistant' %}{{ '' if loop.first else bos_token }}[INST] "
        "{% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
        "{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
        ("</s>",),
    ),
    "llama-3": ChatFormat(
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
        "{% endif %}",
        ("<|eot_id|>",),
    ),
    "mistral-instruct": ChatFormat(
        _SYSTEM_APART + _TURNS + "{% if m.role != 'assistant' %}[INST] "
        "{{ system ~ '\\n\\n' if loop.first and system else '' }}{{ m.content }} [/INST]"
        "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
        ("</s>",),
    ),
    "openchat": ChatFormat(
        "{% for m in messages %}"
        "{% if m.role != 'system' %}GPT4 Correct {{ m.role | capitalize }}: {% endif %}"
        "{{ m.content }}<|end_of_turn|>{% endfor %}"
        "{% if add_generation_prompt %}GPT4 Correct Assistant:{% endif %}",
        ("<|end_of_turn|>",),
    ),
    "qwen": ChatFormat(_CHATML, ("<|im_end|>", "<|endoftext|>")),
    "vicuna": ChatFormat(
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} "
        "{% elif m.role == 'user' %}USER: {{ m.content }} "
        "{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        ("USER:",),
    ),
    "zephyr": ChatFormat(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("</s>",),
    ),
}
_HANDLERS: dict[str, Callable[..., Any]] = {}


@dataclass
class ChatFormatterResponse:
    """What a chat formatter returns.

    Attributes:
        prompt: The text of the prompt.
        stop: A text, or texts, that end the answer.
        stopping_criteria: Functions that end the answer.
        added_special: Whether the prompt begins with the text of BOS, so that none is added.
    """

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: Any = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """A function that makes a prompt of messages."""

    def __call__(self, *, messages: Sequence[Message], **kwargs: Any) -> ChatFormatterResponse:
        """Return the prompt of these messages; other parameters of the call come as keywords."""


class Jinja2ChatFormatter:
    """A chat formatter by a Jinja template.

    Args:
        template: The text of the template.
        eos_token: The text of the token that ends a text; it ends an answer, too.
        bos_token: The text of the token that begins a text.
        add_generation_prompt: Whether a prompt ends with the beginning of an answer.
        stop_token_ids: Taken for compatibility: the tokens that end a text end every answer.
    """

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.template = template
        self.eos_token = eos_token
        self.bos_token = bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = stop_token_ids
        self._program = ChatTemplate(template, bos=bos_token, eos=eos_token)

    def __call__(
        self, *, messages: Sequence[Message], tools: Any = None, **kwargs: Any
    ) -> ChatFormatterResponse:
        """Return the prompt of messages.

        Args:
            messages: Objects with "role" and "content".
            tools: OpenAI's definitions of tools.
            **kwargs: Further variables of the template.
        """
        variables = {name: value for name, value in kwargs.items() if value is not None}
        prompt = self._program.render(messages, tools, self.add_generation_prompt, **variables)
        return ChatFormatterResponse(prompt, stop=[self.eos_token], added_special=True)

    def to_chat_handler(self) -> ChatFormat:
        """Return what `Llama` takes as `chat_handler`."""
        names = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        if not self.add_generation_prompt:
            names["add_generation_prompt"] = ""
        assignments = "".join(
            f"{{% set {name} = {json.dumps(text)} %}}" for name, text in names.items()
        )
        stop = [text for text in (self.eos_token,) if text]
        return ChatFormat(assignments + self.template, stop)


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> ChatFormatter:
    """Return the formatter of a tokenizer_config.json.

    Args:
        tokenizer_config: The file as a dict, with "chat_template", "bos_token" and "eos_token".
        add_generation_prompt: Whether an empty message of the assistant ends the messages.
    """
    if not isinstance(tokenizer_config, Mapping):
        raise wrong_value("tokenizer_config", tokenizer_config, "expected a mapping")
    texts: dict[str, str] = {}
    for key in ("chat_template", "bos_token", "eos_token"):
        if not isinstance(text := tokenizer_config.get(key), str):
            raise wrong_argument("tokenizer_config", f"{key!r} is missing, or not a text")
        texts[key] = text
    program = ChatTemplate(texts["chat_template"], bos=texts["bos_token"], eos=texts["eos_token"])

    def formatter(*, messages: Sequence[Message], **kwargs: Any) -> ChatFormatterResponse:
        ending = [{"role": "assistant", "content": ""}] if add_generation_prompt else []
        prompt = program.render([*messages, *ending], add_generation_prompt=False)
        stop = [texts["eos_token"], texts["bos_token"]]
        return ChatFormatterResponse(prompt, stop=stop, added_special=True)

    return formatter


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> Callable[..., Any]:
    """Return the handler of a tokenizer_config.json; see `hf_tokenizer_config_to_chat_formatter`.

    Args:
        tokenizer_config: The file as a dict.
        add_generation_prompt: As that of the formatter.
    """
    formatter = hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    return chat_formatter_to_chat_completion_handler(formatter)


def chat_formatter_to_chat_completion_handler(formatter: ChatFormatter) -> Callable[..., Any]:
    """Return a handler that answers the prompts of a formatter.

    Args:
        formatter: Makes the prompts. What the model writes is the content; calls are not looked
            for, and a function cannot be demanded.
    """

    def handler(
        *,
        llama: Any,
        messages: Sequence[Message],
        functions: Any = None,
        function_call: Any = None,
        tools: Any = None,
        tool_choice: Any = None,
        stop: str | Sequence[str] | None = None,
        response_format: Mapping[str, Any] | None = None,
        grammar: Any = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        stream: bool = False,
        **keywords: Any,
    ) -> Any:
        if isinstance(tool_choice, Mapping) or isinstance(function_call, Mapping):
            rule = "a formatter of your own cannot be held to a function"
            remedy = "give chat_format= a Jinja template"
            raise wrong_value("tool_choice", tool_choice or function_call, rule, remedy)
        given = {"functions": functions, "function_call": function_call}
        formatted = formatter(messages=messages, tools=tools, tool_choice=tool_choice, **given)
        stops = [*_texts(stop), *_texts(formatted.stop)]
        if grammar is None and (response_format or {}).get("type") == "json_object":
            schema = (response_format or {}).get("schema", {"type": "object"})
            grammar = LlamaGrammar.from_json_schema(schema)
        answer = llama.create_completion(
            llama.tokenize(formatted.prompt.encode(), not formatted.added_special, True),
            stop=[text for text in stops if text],
            grammar=grammar,
            logprobs=(top_logprobs or 0) if logprobs else None,
            stream=stream,
            stopping_criteria=formatted.stopping_criteria,
            **keywords,
        )
        return as_chat_chunks(answer) if stream else as_chat(answer)

    return handler


def _texts(stop: str | Sequence[str] | None) -> Sequence[str]:
    return [stop] if isinstance(stop, str) else stop or []


def register_chat_completion_handler(name: str) -> Callable[[Any], Any]:
    """Return a decorator that makes a function the handler of a `chat_format`.

    Args:
        name: The name; it replaces a format of the same name.
    """

    def decorate(handler: Any) -> Any:
        _HANDLERS[name] = handler
        return handler

    return decorate


def register_chat_format(name: str) -> Callable[[Any], Any]:
    """Return a decorator that makes a function the formatter of a `chat_format`.

    Args:
        name: The name; it replaces a format of the same name.
    """

    def decorate(formatter: Any) -> Any:
        _HANDLERS[name] = chat_formatter_to_chat_completion_handler(formatter)
        return formatter

    return decorate


def get_chat_completion_handler(name: str) -> Callable[..., Any] | ChatFormat:
    """Return what a name of a chat format stands for.

    Args:
        name: The name, or the text of a Jinja template.

    Raises:
        ArgumentError: There is no such format.
    """
    if not isinstance(name, str):
        raise wrong_value("chat_format", name, "expected the name of a format")
    if name in _HANDLERS:
        return _HANDLERS[name]
    if name in FORMATS:
        return FORMATS[name]
    if "{%" in name or "{{" in name:
        return ChatFormat(name)
    known = sorted({*FORMATS, *_HANDLERS})
    similar = difflib.get_close_matches(name, known, 1)
    meant = f"did you mean {similar[0]!r}? " if similar else ""
    raise wrong_value(
        "chat_format",
        name,
        f"it is none of {', '.join(known)}",
        f"{meant}leave it out for the model's own template, or give a Jinja template",
    )


def __getattr__(name: str) -> Any:
    """Return the formatter of a format by its function's name, such as format_mistral_instruct."""
    if name.startswith("format_"):
        wanted = name.removeprefix("format_").replace("_", "")
        for known, form in FORMATS.items():
            if known.replace("-", "") == wanted:
                return _formatter(form)
    told = "; images and audio cannot be read yet: give the messages as text"
    raise missing_name(__name__, name, told if name.endswith("ChatHandler") else "")


def _formatter(form: ChatFormat) -> ChatFormatter:
    """Return a format as a function that makes prompts."""
    program = ChatTemplate(form.template)

    def formatter(*, messages: Sequence[Message], **kwargs: Any) -> ChatFormatterResponse:
        return ChatFormatterResponse(program.render(messages), stop=list(form.stop))

    return formatter


__all__ = [
    "FORMATS",
    "ChatFormat",
    "ChatFormatter",
    "ChatFormatterResponse",
    "Jinja2ChatFormatter",
    "chat_formatter_to_chat_completion_handler",
    "get_chat_completion_handler",
    "hf_tokenizer_config_to_chat_completion_handler",
    "hf_tokenizer_config_to_chat_formatter",
    "register_chat_completion_handler",
    "register_chat_format",
]
