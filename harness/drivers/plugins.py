"""Drivers of other people's packages: entry points of the group ``earmark.drivers``, each a `Driver` class or object."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from harness.drivers.base import Driver, DriverError

GROUP = "earmark.drivers"


@dataclass(frozen=True, slots=True)
class Offer:
    """A driver that an installed package offers. Nothing of it is imported yet."""

    name: str
    package: str  # with its version
    point: EntryPoint


def offers() -> list[Offer]:
    """What installed packages offer, by name."""
    found = [Offer(point.name, _package(point), point) for point in entry_points(group=GROUP)]
    return sorted(found, key=lambda offer: (offer.name, offer.package))


def pick(name: str, taken: Collection[str]) -> Driver:
    """The driver that a package offers under ``name``, imported now; ``taken`` are the names of ours.

    Raises:
        DriverError: nobody offers one, two packages do, or what is offered is no driver.
    """
    offered = offers()
    named = [offer for offer in offered if offer.name == name]
    if not named:
        known = ", ".join(dict.fromkeys([*taken, *(offer.name for offer in offered)]))
        raise DriverError(f"unknown protocol {name!r}; there are {known}")
    if len(named) > 1:
        packages = " and ".join(offer.package for offer in named)
        raise DriverError(f"the protocol {name!r} is offered by {packages}; uninstall one of them")
    return _loaded(named[0])


def _loaded(offer: Offer) -> Driver:
    where = f"the driver {offer.name!r} of {offer.package} ({offer.point.value})"
    try:
        loaded = offer.point.load()
        driver = loaded() if isinstance(loaded, type) else loaded
    except Exception as error:  # whatever another package raises, the fault is there
        raise DriverError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(driver, Driver):
        raise DriverError(f"{where} is no driver: it must be a harness.drivers.Driver, or a class of them")
    for attribute in ("name", "path"):
        if not isinstance(getattr(driver, attribute, None), str):
            raise DriverError(f"{where} has no {attribute}")
    if driver.name != offer.name:
        raise DriverError(f"{where} calls itself {driver.name!r}; name and entry point must agree")
    return driver


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"
