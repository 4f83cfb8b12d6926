"""``CreateSession`` against a real server: who may have a session, and what the answer says."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from hashlib import sha256
from typing import Any

import grpc
import pytest

from tests.end_to_end.conftest import Serve
from tests.end_to_end.rpc_clients import (
    GRPC,
    OPEN,
    SECONDS,
    address,
    chunks,
    create,
    new_id,
    refusal,
    stream,
    stub,
    transcribe,
)
from tests.end_to_end.speech import sentence
from wire.stt.stt_pb2 import DecodeProfile, SessionRequest, Task, VADMode


@pytest.mark.spec("grpc-01")
async def test_the_methods_have_the_paths_and_numbers_of_the_contract(serve: Serve) -> None:
    async with grpc.aio.insecure_channel(address(serve(*OPEN))) as channel:
        raw: Any = channel.unary_unary("/stt.STTBackend/CreateSession")
        # field 1 (session_id) = "by-hand", field 6 (require_token) = 1, field 10 (vad_threshold_override) = 0.0
        answer = await raw(b"\x0a\x07by-hand" + b"\x30\x01" + b"\x51" + bytes(8), timeout=SECONDS)
        assert b"\x2a\x20" in answer, "field 5 (token) with 32 characters"
        assert b"\x30\x01" in answer, "field 6 (token_required)"
        up: Any = channel.stream_stream("/stt.STTBackend/StreamingRecognize")
        token = answer[answer.index(b"\x2a\x20") + 2 :][:32]
        call = up(iter([b"\x18\x01" + b"\x22\x07by-hand" + b"\x2a\x20" + token]))  # 3 is_final, 4 session_id, 5 token
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.spec("grpc-05")
async def test_a_session_needs_an_id_and_blanks_are_one(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        assert await refusal(create(backend, "")) == ("INVALID_ARGUMENT", "ERR1001")
        await create(backend, "  ")
        assert await refusal(create(backend, "  ")) == ("ALREADY_EXISTS", "ERR1002")


@pytest.mark.spec("grpc-06")
async def test_an_id_that_is_registered_is_refused(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        session_id, _ = await create(backend)
        assert await refusal(create(backend, session_id)) == ("ALREADY_EXISTS", "ERR1002")


@pytest.mark.spec("grpc-07")
@pytest.mark.parametrize("value", [-0.1, -5.0, float("nan")])
@pytest.mark.parametrize("field", ["vad_threshold", "vad_threshold_override"])
async def test_a_negative_threshold_is_refused(serve: Serve, field: str, value: float) -> None:
    fields: dict[str, Any] = {"vad_threshold_override": None, "vad_threshold": 0.0} | {field: value}
    async with stub(serve(*OPEN)) as backend:
        assert await refusal(create(backend, **fields)) == ("INVALID_ARGUMENT", "ERR1003")


@pytest.mark.spec("grpc-08")
@pytest.mark.parametrize(
    ("threshold", "override", "in_force"),
    [(0.0, None, 0.5), (0.3, None, 0.3), (0.3, 0.7, 0.7), (0.3, 0.0, 0.0), (-1.0, 0.2, 0.2), (3.0, None, 1.0)],
)
async def test_the_override_wins_and_zero_is_the_servers(
    serve: Serve, threshold: float, override: float | None, in_force: float
) -> None:
    async with stub(serve(*OPEN)) as backend:
        _, response = await create(backend, vad_threshold=threshold, vad_threshold_override=override)
        assert response.vad_threshold == in_force


@pytest.mark.spec("grpc-08")
@pytest.mark.parametrize(("silence", "in_force"), [(0.0, 0.5), (-1.0, 0.5), (0.9, 0.9), (float("nan"), 0.5)])
async def test_silence_of_zero_or_less_is_the_servers(serve: Serve, silence: float, in_force: float) -> None:
    async with stub(serve(*OPEN)) as backend:
        assert (await create(backend, vad_silence=silence))[1].vad_silence == in_force


@pytest.mark.spec("grpc-09")
@pytest.mark.parametrize("name", ["api_key_required", "api-key-required"])
@pytest.mark.parametrize("yes", ["1", "true", "YES", " on "])
async def test_a_session_can_ask_for_its_key_to_be_required(serve: Serve, name: str, yes: str) -> None:
    async with stub(serve(*OPEN)) as backend:
        assert await refusal(create(backend, attributes={name: yes})) == ("UNAUTHENTICATED", "ERR1009")
        await create(backend, attributes={name: yes, "api_key": "anything at all"})


@pytest.mark.spec("grpc-09")
async def test_a_server_can_require_keys_and_never_checks_their_value(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-require-api-key")
    async with stub(server) as backend:
        for attributes in ({}, {"api_key": "  "}, {"api_key": "", "api-key": ""}):
            assert await refusal(create(backend, attributes=attributes)) == ("UNAUTHENTICATED", "ERR1009")
        await create(backend, attributes={"api-key": "secret-word"})
        assert (await transcribe(backend, sentence("in"), attributes={"api_key": " secret-word "})).finals == ["in"]
    assert "secret-word" not in server.log()


@pytest.mark.spec("grpc-78")
async def test_a_server_that_is_closed_wants_one_of_its_keys(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--require-key", key="sesame")) as backend:
        for attributes in ({}, {"api_key": "another"}):
            assert await refusal(create(backend, attributes=attributes)) == ("UNAUTHENTICATED", "ERR1009")
        end = await transcribe(backend, sentence("come", "in"), attributes={"api_key": "sesame"})
        assert end.finals == ["come in"]
        request = SessionRequest(session_id=new_id(), vad_threshold_override=0.0)
        await backend.CreateSession(request, metadata=(("authorization", "Bearer sesame"),))


@pytest.mark.spec("grpc-10")
async def test_sessions_are_created_at_a_rate(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-create-session-rps", "0.001", "--grpc-create-session-burst", "2")
    async with stub(server) as backend:
        for _ in range(2):
            await create(backend)
            await create(backend, attributes={"api_key": "rate"})
        assert await refusal(create(backend)) == ("RESOURCE_EXHAUSTED", "ERR1012")
        assert await refusal(create(backend, attributes={"api_key": "rate"})) == ("RESOURCE_EXHAUSTED", "ERR1012")
        await create(backend, attributes={"api_key": "another"})


@pytest.mark.spec("grpc-10")
async def test_a_burst_refills_with_time(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-create-session-rps", "20", "--grpc-create-session-burst", "1")
    async with stub(server) as backend:
        await create(backend)
        end = time.monotonic() + 5
        while await code_of(create(backend)):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)  # the bucket fills with the server's clock


async def code_of(call: object) -> str:
    try:
        await call  # type: ignore[misc]
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return ""


@pytest.mark.spec("grpc-11")
async def test_sessions_of_one_address_are_counted(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--grpc-max-sessions-per-ip", "2")) as backend:
        first, _ = await create(backend)
        await create(backend, attributes={"api_key": "with a key"})
        assert await refusal(create(backend)) == ("RESOURCE_EXHAUSTED", "ERR1011")
        await stream(backend, chunks(sentence("over"), first))
        await create(backend)


@pytest.mark.spec("grpc-11")
async def test_behind_a_trusted_proxy_the_client_is_who_it_says(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-max-sessions-per-ip", "1", "--trusted-proxies", "127.0.0.1")
    async with stub(server) as backend:
        for client in ("192.0.2.1", "192.0.2.2"):
            request = SessionRequest(session_id=new_id(), vad_threshold_override=0.0)
            call = backend.CreateSession(request, metadata=(("x-forwarded-for", f"203.0.113.9, {client}"),))
            await call
            again = SessionRequest(session_id=new_id(), vad_threshold_override=0.0)
            call = backend.CreateSession(again, metadata=(("x-forwarded-for", client),))
            assert await refusal(call) == ("RESOURCE_EXHAUSTED", "ERR1011")


@pytest.mark.spec("grpc-12")
async def test_sessions_of_one_key_are_counted(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--grpc-max-sessions-per-api-key", "1")) as backend:
        await create(backend, attributes={"api_key": "one"})
        assert await refusal(create(backend, attributes={"api-key": "one"})) == ("RESOURCE_EXHAUSTED", "ERR1011")
        await create(backend, attributes={"api_key": "two"})
        await create(backend)


@pytest.mark.spec("grpc-13")
async def test_a_profile_with_unknown_options_is_refused_with_their_names(serve: Serve) -> None:
    profiles = {"realtime": {"beam_size": 1, "zeal": 1, "ardour": 2}, "accurate": {"beam_size": 5}}
    async with stub(serve(*OPEN, "--grpc-decode-profiles", json.dumps(profiles))) as backend:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(backend)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        details = refused.value.details()
        assert details is not None
        assert details.startswith("ERR1010 ")
        assert "ardour, zeal" in details
        await create(backend, decode_profile=DecodeProfile.DECODE_PROFILE_ACCURATE)


@pytest.mark.spec("grpc-14")
async def test_all_sessions_count_against_the_most_there_may_be(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-max-sessions", "3", "--grpc-vad-model-pool-size", "1")
    async with stub(server) as backend:
        first, _ = await create(backend)
        await create(backend, vad_threshold_override=0.5)
        await create(backend, vad_threshold_override=0.5)  # the pool has grown
        assert await refusal(create(backend, vad_threshold_override=0.5)) == ("RESOURCE_EXHAUSTED", "ERR1008")
        assert await refusal(create(backend)) == ("RESOURCE_EXHAUSTED", "ERR1011")
        await stream(backend, chunks(sentence("over"), first))
        await create(backend, vad_threshold_override=0.5)


@pytest.mark.spec("grpc-14")
async def test_without_voice_detection_there_are_no_slots_for_it(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--no-vad")) as backend:
        assert await refusal(create(backend, vad_threshold_override=0.5)) == ("RESOURCE_EXHAUSTED", "ERR1008")
        assert (await transcribe(backend, sentence("all", "speech"))).finals == ["all speech"]


@pytest.mark.spec("grpc-16", "grpc-17")
async def test_the_answer_repeats_what_was_asked_and_resolves_the_rest(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        asked = {"session_id": "mine", "colour": "green", "api_key": "k"}
        _, response = await create(
            backend,
            attributes=asked,
            vad_mode=VADMode.VAD_AUTO_END,
            require_token=True,
            language_code=" EN ",
            task=Task.TASK_TRANSCRIBE,
            decode_profile=DecodeProfile.DECODE_PROFILE_ACCURATE,
        )
        assert dict(response.attributes) == {**asked, "decode_profile": "accurate", "language_code": "en"}
        assert response.vad_mode == VADMode.VAD_AUTO_END
        assert response.token_required
        assert len(bytes.fromhex(response.token)) == 16
        assert response.language_code == "en"
        assert response.task == Task.TASK_TRANSCRIBE
        assert response.decode_profile == DecodeProfile.DECODE_PROFILE_ACCURATE
        _, plain = await create(backend, attributes={})
        assert (plain.token, plain.token_required, plain.language_code) == ("", False, "")
        assert dict(plain.attributes) == {"decode_profile": "realtime"}
        assert plain.task == Task.TASK_TRANSCRIBE


@pytest.mark.spec("grpc-16")
async def test_an_unknown_mode_is_to_go_on(serve: Serve) -> None:
    async with stub(serve(*OPEN)) as backend:
        _, response = await create(backend, vad_mode=7, task=9, decode_profile=11)
        assert response.vad_mode == VADMode.VAD_CONTINUE
        assert response.task == Task.TASK_TRANSCRIBE
        assert response.decode_profile == DecodeProfile.DECODE_PROFILE_REALTIME


@pytest.mark.spec("grpc-18")
@pytest.mark.parametrize(
    ("options", "asked", "given"),
    [
        ((), "ko", "ko"),
        ((), "haw", "haw"),
        ((), "tlh", ""),
        ((), "", ""),
        (("--grpc-language", "de"), "", ""),
        (("--grpc-language", "de", "--grpc-language-fix"), "", "de"),
        (("--grpc-language", "de", "--grpc-language-fix"), "tlh", "de"),
        (("--grpc-language", "de", "--grpc-language-fix"), "fr", "fr"),
    ],
)
async def test_which_language_a_session_has(serve: Serve, options: tuple[str, ...], asked: str, given: str) -> None:
    async with stub(serve(*OPEN, *options)) as backend:
        assert (await create(backend, language_code=asked))[1].language_code == given


@pytest.mark.spec("grpc-18", "grpc-50")
@pytest.mark.parametrize(
    ("code", "name", "probability"), [("en", "English", 1.0), ("yue", "Cantonese", 0.0), ("", "", 0.0)]
)
async def test_results_name_the_language(serve: Serve, code: str, name: str, probability: float) -> None:
    """The engine of this test knows English alone: it is told no other, and says so by a probability of 0."""
    async with stub(serve(*OPEN)) as backend:
        end = await transcribe(backend, sentence("any", "words"), language_code=code)
        assert end.finals == ["any words"]
        assert {(r.language_code, r.language, r.probability) for r in end.results} == {(code, name, probability)}


@pytest.mark.spec("grpc-19")
@pytest.mark.parametrize(
    ("number", "attributes", "name"),
    [
        (0, {"decode_profile": "accurate"}, "accurate"),
        (0, {"decode_profiles": "accurate"}, "accurate"),
        (1, {"decode_profile": "accurate"}, "realtime"),
        (0, {"decode_profile": "own"}, "own"),
        (0, {"decode_profile": "unheard-of"}, "realtime"),
    ],
)
async def test_which_decode_profile_a_session_has(
    serve: Serve, number: int, attributes: dict[str, str], name: str
) -> None:
    profiles = json.dumps({"realtime": {}, "accurate": {}, "own": {"temperature": 0.2}})
    async with stub(serve(*OPEN, "--grpc-decode-profiles", profiles)) as backend:
        _, response = await create(backend, decode_profile=number, attributes=attributes)
        assert response.attributes["decode_profile"] == name
        assert response.decode_profile == {"realtime": 1, "accurate": 2, "own": 0}[name]


@pytest.mark.spec("grpc-18", "grpc-20")
async def test_a_profile_can_have_a_language_and_a_task(serve: Serve) -> None:
    profiles = json.dumps({"realtime": {"language": "de", "task": "translate"}})
    async with stub(serve(*OPEN, "--grpc-decode-profiles", profiles)) as backend:
        _, response = await create(backend)
        assert (response.language_code, response.task) == ("de", Task.TASK_TRANSLATE)
        _, response = await create(backend, language_code="fr", task=Task.TASK_TRANSCRIBE)
        assert (response.language_code, response.task) == ("fr", Task.TASK_TRANSCRIBE)


@pytest.mark.spec("grpc-20")
async def test_the_task_of_a_session_that_names_none_is_the_servers(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--grpc-task", "translate")) as backend:
        assert (await create(backend))[1].task == Task.TASK_TRANSLATE
        assert (await create(backend, task=Task.TASK_TRANSCRIBE))[1].task == Task.TASK_TRANSCRIBE


@pytest.mark.spec("grpc-21")
@pytest.mark.parametrize("name", ["model_id", "model"])
async def test_a_model_that_is_not_loaded_is_the_default_one(serve: Serve, name: str) -> None:
    async with stub(serve(*OPEN)) as backend:
        end = await transcribe(backend, sentence("still", "heard"), attributes={name: "enormous"})
        assert end.finals == ["still heard"]


@pytest.mark.spec("grpc-22")
async def test_a_session_that_is_never_streamed_expires(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-max-sessions", "1", "--grpc-session-timeout-sec", "0.3")
    async with stub(server) as backend:
        session_id, _ = await create(backend)
        assert await refusal(create(backend)) == ("RESOURCE_EXHAUSTED", "ERR1011")
        end = time.monotonic() + 5
        while await code_of(create(backend)):
            assert time.monotonic() < end
            await asyncio.sleep(0.02)  # the server's clock has to move on
        assert (await stream(backend, chunks(bytes(320), session_id))).details.startswith("ERR1004 ")


@pytest.mark.spec("grpc-23")
async def test_sessions_can_be_made_to_need_a_signature(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-signing-secret", "under-the-mat")

    def signed(session_id: str, stamp: str, secret: str = "under-the-mat") -> tuple[tuple[str, str], ...]:
        signature = hmac.new(secret.encode(), f"{session_id}:{stamp}".encode(), sha256).hexdigest()
        return ("authorization", f"Bearer {signature}"), ("x-stt-auth-ts", stamp)

    async with stub(server) as backend:
        now = str(int(time.time()))
        for metadata in (
            (),
            signed("s", now, "wrong"),
            signed("another", now),
            signed("s", str(int(time.time()) - 3600)),
            signed("s", "yesterday"),
            signed("s", "nan"),
        ):
            call = backend.CreateSession(SessionRequest(session_id="s", vad_threshold_override=0.0), metadata=metadata)
            assert await refusal(call) == ("UNAUTHENTICATED", "ERR1014")
        await backend.CreateSession(
            SessionRequest(session_id="s", vad_threshold_override=0.0), metadata=signed("s", now)
        )
    assert "under-the-mat" not in server.log()


@pytest.mark.spec("grpc-34")
async def test_a_request_that_is_none_is_refused_with_a_code(serve: Serve) -> None:
    async with grpc.aio.insecure_channel(address(serve(*GRPC))) as channel:
        raw: Any = channel.unary_unary("/stt.STTBackend/CreateSession")
        assert await refusal(raw(b"\xff\xff\xff", timeout=SECONDS)) == ("INVALID_ARGUMENT", "ERR1001")
