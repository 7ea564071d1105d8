"""vLLM: offline inference of a list of prompts."""

from llcuda import LLM, SamplingParams

prompts = ["Once upon a time", "The capital of France is"]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=16)
llm = LLM(model="demo")
outputs = llm.generate(prompts, sampling_params)
for output in outputs:
    print(output.outputs[0].text)
