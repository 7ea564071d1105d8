"""The names of llama-cpp-python's dicts, for annotations: each is `dict[str, Any]`.

Requests and responses have OpenAI's shapes.
"""

from __future__ import annotations

from typing import Any

_DICTS = frozenset(
    """
    ChatCompletion ChatCompletionChoice ChatCompletionChunk ChatCompletionChunkChoice
    ChatCompletionChunkDelta ChatCompletionChunkDeltaEmpty ChatCompletionFunction
    ChatCompletionFunctionCall ChatCompletionFunctionCallOption ChatCompletionFunctionParameters
    ChatCompletionFunctions ChatCompletionLogprobs ChatCompletionLogprobToken
    ChatCompletionMessage ChatCompletionMessageToolCall ChatCompletionMessageToolCallChunk
    ChatCompletionMessageToolCallChunkFunction ChatCompletionMessageToolCallFunction
    ChatCompletionNamedToolChoice ChatCompletionNamedToolChoiceFunction
    ChatCompletionRequestAssistantMessage ChatCompletionRequestAssistantMessageFunctionCall
    ChatCompletionRequestFunctionCallOption ChatCompletionRequestFunctionMessage
    ChatCompletionRequestMessage ChatCompletionRequestMessageContentPart
    ChatCompletionRequestMessageContentPartImage
    ChatCompletionRequestMessageContentPartImageImageUrl
    ChatCompletionRequestMessageContentPartText ChatCompletionRequestResponseFormat
    ChatCompletionRequestSystemMessage ChatCompletionRequestToolMessage
    ChatCompletionRequestUserMessage ChatCompletionResponseChoice ChatCompletionResponseFunction
    ChatCompletionResponseFunctionCall ChatCompletionResponseMessage
    ChatCompletionStreamResponse ChatCompletionStreamResponseChoice
    ChatCompletionStreamResponseDelta ChatCompletionStreamResponseDeltaEmpty
    ChatCompletionStreamResponseDeltaFunctionCall ChatCompletionTool ChatCompletionToolFunction
    ChatCompletionTopLogprobToken Completion CompletionChoice CompletionChunk CompletionLogprobs
    CompletionUsage CreateChatCompletionResponse CreateChatCompletionStreamResponse
    CreateCompletionResponse CreateCompletionStreamResponse CreateEmbeddingResponse Embedding
    EmbeddingData EmbeddingUsage
    """.split()  # noqa: SIM905
)
_OTHERS: dict[str, Any] = {
    "ChatCompletionMessageToolCalls": list[dict[str, Any]],
    "ChatCompletionRequestFunctionCall": str | dict[str, Any],
    "ChatCompletionToolChoiceOption": str | dict[str, Any],
    "JsonType": Any,
}


def __getattr__(name: str) -> Any:
    if name in _DICTS:
        return dict[str, Any]
    if name in _OTHERS:
        return _OTHERS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
