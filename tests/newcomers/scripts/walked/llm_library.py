"""llm: a model by its name, a prompt, a text."""

import llcuda as llm

model = llm.get_model("demo")
response = model.prompt("Who are you?", system="Answer briefly.")
print(response.text())
