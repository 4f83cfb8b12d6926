"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# a machine that is busy with other things proves nothing
settings.register_profile("earmark", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("earmark")
