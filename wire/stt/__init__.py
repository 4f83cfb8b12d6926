"""The gRPC service ``stt.STTBackend``: messages and stubs, generated from ``stt.proto`` by ``nox -s proto``."""
