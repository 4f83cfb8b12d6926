"""Who speaks to servers: one driver per protocol, all writing the same timeline."""

from harness.drivers.base import Driver, DriverError
from harness.drivers.deepgram import DeepgramDriver
from harness.drivers.mistral import MistralDriver
from harness.drivers.openai import OpenAIDriver, OpenAIRealtimeDriver
from harness.drivers.openai_files import OpenAIFilesDriver
from harness.drivers.plugins import Offer, offers, pick
from harness.drivers.realtime import RealtimeDriver
from harness.drivers.rest import RestDriver, RestStreamDriver
from harness.drivers.sessions import SessionsDriver
from harness.drivers.stt import GrpcDriver
from harness.drivers.vllm import VllmDriver
from harness.drivers.yap import YapDriver

DRIVERS: dict[str, Driver] = {
    driver.name: driver
    for driver in (
        YapDriver(),
        RealtimeDriver(),
        SessionsDriver(),
        RestDriver(),
        RestStreamDriver(),
        OpenAIRealtimeDriver(),
        OpenAIFilesDriver(),
        GrpcDriver(),
        VllmDriver(),
        OpenAIDriver(),
        DeepgramDriver(),
        MistralDriver(),
    )
}
"""Those that come along."""


def find(name: str) -> Driver:
    """The driver of that name, of ours or of an installed package.

    Raises:
        DriverError: there is none, or the package's cannot be used; the message says which there are, or what is wrong.
    """
    return DRIVERS[name] if name in DRIVERS else pick(name, DRIVERS)


__all__ = ["DRIVERS", "Driver", "DriverError", "Offer", "find", "offers"]
