"""The register of plots: a plot is a function that tells one story through a `Teller`."""

from collections.abc import Callable
from dataclasses import dataclass

from demo_model.teller import Teller

Body = Callable[[Teller], None]


@dataclass(frozen=True)
class Plot:
    """A plot with what the opening must respect.

    `weather` and `times` are the only ones that fit (empty: any); `avoid` names details of the
    opening that would contradict the plot; `trait` is one that the hero must have.
    """

    name: str
    body: Body
    weather: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    trait: str = ""


PLOTS: list[Plot] = []


def plot(
    name: str,
    *,
    weather: str = "",
    times: str = "",
    avoid: str = "",
    trait: str = "",
) -> Callable[[Body], Body]:
    """Registers a plot; lists are given as words with spaces between."""

    def register(body: Body) -> Body:
        PLOTS.append(
            Plot(
                name,
                body,
                tuple(weather.split()),
                tuple(times.split()),
                tuple(avoid.split()),
                trait,
            )
        )
        return body

    return register
