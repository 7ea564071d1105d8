"""One server on the demo model for all tests that leave it as it is."""

from collections.abc import Iterator

import openai
import pytest

from tests.server.test_chat import TEMPLATE
from tests.support.server import Served, demo, served


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="session")
def tool_server() -> Iterator[Served]:
    """A server whose template knows tools and reasoning."""
    with served(demo(template=TEMPLATE)) as running:
        yield running
