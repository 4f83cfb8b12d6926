"""Who speaks to servers: one driver per protocol, all writing the same timeline."""

from harness.drivers.base import Driver
from harness.drivers.realtime import RealtimeDriver
from harness.drivers.yap import YapDriver

DRIVERS: dict[str, Driver] = {"yap": YapDriver(), "realtime": RealtimeDriver()}

__all__ = ["DRIVERS", "Driver"]
