"""Instructor: an answer as an object of a class."""

import instructor
from pydantic import BaseModel

import llcuda.llama_cpp


class User(BaseModel):
    """A person."""

    name: str
    age: int


llama = llcuda.llama_cpp.Llama(model_path="demo", n_ctx=1024, verbose=False)
create = instructor.patch(
    create=llama.create_chat_completion_openai_v1, mode=instructor.Mode.JSON_SCHEMA
)
user = create(
    messages=[{"role": "user", "content": "Extract: Jason is 25 years old."}],
    response_model=User,
    max_tokens=100,
)
print(user)
