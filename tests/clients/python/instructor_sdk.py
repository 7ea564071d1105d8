"""Instructor over OpenAI's package: each of its answers is structured."""

from __future__ import annotations

from collections.abc import Iterable

import checks
import instructor
from instructor.core import InstructorRetryException
from openai import OpenAI
from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person; its schema says nothing of further fields, and the server adds none."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


class City(BaseModel):
    """A city."""

    city: str = Field(max_length=20)


def person(mode: instructor.Mode) -> object:
    """Ask for a person in one of instructor's modes."""
    return checks.is_person(
        client(mode)
        .chat.completions.create(response_model=Person, messages=MESSAGES, **COMMON)
        .model_dump()
    )


def client(mode: instructor.Mode) -> instructor.Instructor:
    """Return instructor's client of a mode."""
    plain = OpenAI(base_url=f"{checks.URL}/v1", api_key="none", max_retries=0)
    return instructor.from_openai(plain, mode=mode)


MESSAGES = [{"role": "user", "content": checks.PERSON}]
COMMON = {"model": checks.MODEL, "temperature": 0, "max_tokens": 40, "max_retries": 0}


@checks.check
def stream() -> object:
    *_, last = client(instructor.Mode.JSON_SCHEMA).chat.completions.create_partial(
        response_model=Person, messages=MESSAGES, **COMMON
    )
    return checks.is_person(last.model_dump())


@checks.check
def named() -> object:
    return person(instructor.Mode.TOOLS)


@checks.check
def parallel() -> object:
    try:
        found = list(
            client(instructor.Mode.PARALLEL_TOOLS).chat.completions.create(
                response_model=Iterable[Person | City], messages=MESSAGES, **COMMON
            )
        )
    except InstructorRetryException as error:  # instructor leaves the choice to the model
        assert "No tool calls in response" in str(error), error
        return "the model called no tool"
    assert all(isinstance(value, Person | City) for value in found), found
    return found


@checks.check
def structured() -> object:
    return person(instructor.Mode.JSON_SCHEMA)
