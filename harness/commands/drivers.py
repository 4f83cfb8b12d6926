"""``earmark drivers``: which protocols can be spoken, what each takes, and the option that tells a driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.drivers import Driver


DriverOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE for the driver ('earmark drivers NAME'); repeatable.")
]


def options_of(pairs: list[str]) -> dict[str, str]:
    """What ``--driver-option`` says. Raises DriverError for what is no NAME=VALUE."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            from harness.drivers import DriverError

            raise DriverError(f"--driver-option {pair!r}: NAME=VALUE is expected")
        options[name] = value
    return options


def drivers(
    name: Annotated[str | None, typer.Argument(help="Tell about this one.", metavar="[NAME]")] = None,
) -> int:
    """What 'bench --protocol' takes: servers and services that can be measured, drivers of installed packages among them."""
    from harness.drivers import DRIVERS, find, offers

    if name is not None:
        print(_described(find(name)))
        return 0
    width = max(map(len, [*DRIVERS, *(offer.name for offer in offers())]))
    for driver in DRIVERS.values():
        print(f"{driver.name:<{width}}  {driver.title}")
    for offer in offers():
        shadowed = "; hidden by the built-in one of that name" if offer.name in DRIVERS else ""
        print(f"{offer.name:<{width}}  from the package {offer.package}{shadowed}")
    return 0


def _described(driver: Driver) -> str:
    from harness.drivers.base import EXAMPLES

    default = f" (default {driver.default_model})" if driver.default_model else ""
    lines = [
        f"{driver.name}: {driver.title or 'no description'}",
        f"  target   {driver.home or f'the address of your server (--target {EXAMPLES[driver.transport]})'}, path {driver.path}",
        f"  key      --api-key or {driver.key_variable}",
        f"  model    --model{default}",
        f"  delay    {'--delay-ms' if driver.settable_delay else 'not to be set in milliseconds'}",
        f"  audio    PCM16, {driver.sample_rate} Hz, "
        + (
            "the whole recording once it was spoken"
            if driver.whole
            else f"packets of {driver.packet_ms} ms unless told otherwise"
        ),
    ]
    if driver.server_options:
        lines.append(f"  server   started with {' '.join(driver.server_options)} where there is no target")
    width = max(map(len, driver.options), default=0)
    if driver.options:
        lines.append("  options  --driver-option NAME=VALUE, repeatable")
        lines += [f"    {option:<{width}}  {meaning}" for option, meaning in driver.options.items()]
    return "\n".join(lines)
