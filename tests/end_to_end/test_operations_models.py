"""Models loaded and unloaded under a running server: who hears whom, and what that costs the others."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import psutil
import pytest

from harness.audio import load as load_audio
from harness.corpus import load
from tests.audio_files import wav_file
from tests.end_to_end.clients import realtime, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.plane import ADMIN, FREE, admin, ask, loaded, until
from tests.end_to_end.rpc_clients import OPEN, chunks, create, stream, stub
from tests.end_to_end.running_server import ROOT, RunningServer, clean_environment, command
from tests.end_to_end.speech import sentence
from tests.end_to_end.test_openai_files import upload

SILENCE = bytes(2 * 16_000)


def saying(text: str, **more: object) -> dict[str, object]:
    return {"words": [{"text": text, "start": 0.1, "end": 0.4}], **more}


PROFILES = {
    "model_load_profiles": {
        "second": {"backend": "scripted", "script": saying("second")},
        "slow": {"backend": "scripted", "script": {"final_latency_ms": 60_000}},
        "broken": {"backend": "vllm-remote", "backends": "ws://127.0.0.1:9", "backend_start_seconds": 0},
        "few": {"engine": "scripted", "pool_size": 3, "language_fix": True},
    }
}


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiles") / "profiles.json"
    path.write_text(json.dumps(PROFILES))
    return path


@pytest.fixture
def server(own_server: Serve, profiles: Path) -> RunningServer:
    return own_server(
        *FREE, "--model-profiles", str(profiles), "--script", json.dumps(saying("first")), environment=ADMIN
    )


@pytest.fixture
def lasting(serve: Serve, profiles: Path) -> RunningServer:
    """One for tests that leave it as they found it."""
    return serve(*FREE, "--model-profiles", str(profiles), environment=ADMIN)


def listed(server: RunningServer) -> list[str]:
    return [entry["id"] for entry in json.loads(server.get("/v1/models")[1])["data"]]


# ---- who may


@pytest.mark.spec("operations-28")
@pytest.mark.parametrize(
    "environment",
    [{}, {"STT_ADMIN_ENABLED": "true"}, {"STT_ADMIN_TOKEN": "t"}, {"STT_ADMIN_ENABLED": "no", "STT_ADMIN_TOKEN": "t"}],
    ids=["neither", "no token", "not enabled", "disabled"],
)
def test_the_admin_api_is_off_unless_it_is_on_and_has_a_token(serve: Serve, environment: dict[str, str]) -> None:
    server = serve(*FREE, environment=environment)
    for path, body in (
        ("/list_models", None),
        ("/load_model", {"model_id": "x"}),
        ("/load_model", b"{nonsense"),
        ("/x", None),
    ):
        assert ask(server, f"/admin{path}", body, Authorization="Bearer t").refusal == (501, "ERR4001")


@pytest.mark.spec("operations-28")
def test_without_the_admin_token_nothing_is_read_or_done(lasting: RunningServer) -> None:
    for path, body in (
        ("/list_models", None),
        ("/load_model", {"model_id": "x"}),
        ("/load_model", b"{nonsense"),
        ("/unload_model?model_id=default", {}),
        ("/load_model_status", None),
    ):
        assert ask(lasting, f"/admin{path}", body).refusal == (401, "ERR4004")
        assert ask(lasting, f"/admin{path}", body, Authorization="Bearer wrong").refusal == (401, "ERR4004")
    assert admin(lasting, "/list_models").told == {"models": ["default"]}


@pytest.mark.spec("operations-28")
def test_the_observers_token_is_not_the_admins(serve: Serve) -> None:
    server = serve(*FREE, environment=ADMIN | {"STT_OBSERVABILITY_TOKEN": "watch"})
    assert admin(server, "/list_models").status == 200
    assert ask(server, "/admin/list_models", Authorization="Bearer watch").refusal == (401, "ERR4004")
    assert ask(server, "/metrics", Authorization=f"Bearer {ADMIN['STT_ADMIN_TOKEN']}").refusal == (401, "ERR4006")


@pytest.mark.spec("operations-13")
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model_id": ""},
        {"model_id": " "},
        {"model_id": 7},
        {"model_id": "x" * 201},
        [],
        b"{nonsense",
        {"model_id": "x", "backend": 1},
    ],
    ids=str,
)
def test_a_load_request_that_makes_no_sense_is_422_with_its_faults(lasting: RunningServer, body: object) -> None:
    answer = admin(lasting, "/load_model", body)
    assert answer.refusal == (422, "ERR4000")
    assert isinstance(answer.told["detail"], list)
    assert {"loc", "msg", "type"} <= set(answer.told["detail"][0])


@pytest.mark.spec("operations-13")
@pytest.mark.parametrize("seconds", ["-1", "soon", "nan", "inf", "86401"])
def test_a_drain_timeout_that_makes_no_sense_is_422(lasting: RunningServer, seconds: str) -> None:
    answer = admin(lasting, f"/unload_model?model_id=default&drain_timeout_sec={seconds}", {})
    assert answer.refusal == (422, "ERR4000")
    assert "drain_timeout_sec" in answer.told["message"]


# ---- loading


@pytest.mark.spec("operations-29", "operations-30", "operations-31", "operations-37", "operations-38", "operations-25")
async def test_two_engines_each_say_their_own(server: RunningServer) -> None:
    assert admin(server, "/list_models").told == {"models": ["default"]}
    begun = admin(server, "/load_model", {"model_id": "other", "profile_id": "second"})
    assert begun.status == 200
    assert begun.told["status"] == "loading_started"
    assert begun.told["message"]
    assert begun.told["job"]["model_id"] == "other"
    await until(lambda: admin(server, "/load_model_status?model_id=other").told["status"] == "success", "it is loaded")
    job = admin(server, "/load_model_status?model_id=other").told
    assert set(job) == {"status", "model_id", "started_at", "finished_at", "duration_sec"}
    assert job["duration_sec"] == pytest.approx(job["finished_at"] - job["started_at"])
    assert admin(server, "/list_models").told == {"models": ["default", "other"]}
    assert "other" in listed(server)[1:]
    async with realtime(server) as first, realtime(server, model="other") as second, yap(server) as third:
        await third.send("session.update", model="other")
        assert (await third.receive())["payload"]["model"] == "other"
        await asyncio.gather(first.start(), second.start(), third.start())
        assert server.metric("earmark_model", model="other", figure="clients") == 2
        await asyncio.gather(first.append(SILENCE), second.append(SILENCE), third.append(SILENCE))
        assert server.metric("earmark_model", model="other", figure="busy_slots") == 2
        assert server.metric("earmark_model", model="default", figure="busy_slots") == 1
        await asyncio.gather(first.finish(), second.finish(), third.finish())
        assert await first.heard() == "first"
        assert await second.heard() == "second"
        assert text_of(await third.heard()) == "second"
    gone = admin(server, "/unload_model?model_id=other", {})
    assert (gone.status, gone.told) == (200, {"status": "unloaded", "model_id": "other"})
    assert admin(server, "/list_models").told == {"models": ["default"]}
    assert "other" not in listed(server)
    assert 'model="other"' not in server.get("/metrics")[1].decode()
    async with realtime(server, model="other") as client:
        assert (await client.error())["code"] == "model_not_found"


@pytest.mark.spec("operations-37")
async def test_a_loaded_model_is_reached_over_every_surface_by_its_id(own_server: Serve, profiles: Path) -> None:
    options = ("--model-profiles", str(profiles), "--script", json.dumps(saying("first")))
    server = own_server(*FREE, *OPEN, *options, "--surfaces", "yap,realtime,openai,grpc", environment=ADMIN)
    await loaded(server, "other", profile_id="second")
    answer = await upload(server, wav_file(SILENCE), model="other")
    assert answer.json()["text"] == "second"
    async with stub(server) as backend:
        for attributes, said in (({"model_id": "other"}, "second"), ({"model": "default"}, "first")):
            session_id, _ = await create(backend, attributes=attributes)
            ended = await stream(backend, chunks(SILENCE, session_id))
            assert ended.finals == [said]
    async with realtime(server, model="other") as client:
        assert await client.say(SILENCE) == "second"
    assert json.loads(server.get("/v1/models/other")[1])["id"] == "other"


@pytest.mark.spec("operations-31")
def test_the_status_of_what_was_never_asked_for_is_unknown(lasting: RunningServer) -> None:
    answer = admin(lasting, "/load_model_status?model_id=never")
    assert (answer.status, answer.told) == (200, {"status": "unknown", "model_id": "never"})


@pytest.mark.spec("operations-31")
async def test_a_model_that_cannot_be_loaded_says_why_and_may_be_tried_again(lasting: RunningServer) -> None:
    for _ in range(2):
        assert (
            admin(lasting, "/load_model", {"model_id": "b", "profile_id": "broken"}).told["status"] == "loading_started"
        )
        await until(lambda: admin(lasting, "/load_model_status?model_id=b").told["status"] == "failed", "it failed")
    job = admin(lasting, "/load_model_status?model_id=b").told
    assert "127.0.0.1:9" in job["error"]
    assert job["duration_sec"] >= 0
    assert admin(lasting, "/list_models").told == {"models": ["default"]}


@pytest.mark.spec("operations-30", "operations-32")
async def test_models_are_loaded_one_after_the_other_and_none_twice(own_server: Serve, tmp_path: Path) -> None:
    """A back end that takes the connection and says nothing holds the first one up."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        path = tmp_path / "profiles.yaml"
        path.write_text(
            "model_load_profiles:\n"
            f"  held: {{backend: vllm-remote, backends: 'ws://127.0.0.1:{port}', backend_start_seconds: 60}}\n"
            "  quick: {backend: scripted}\n"
        )
        server = own_server(*FREE, "--model-profiles", str(path), environment=ADMIN)

        def load(model_id: str, profile: str) -> str:
            status: str = admin(server, "/load_model", {"model_id": model_id, "profile_id": profile}).told["status"]
            return status

        def status_of(model_id: str) -> str:
            status: str = admin(server, f"/load_model_status?model_id={model_id}").told["status"]
            return status

        assert await asyncio.to_thread(load, "a", "held") == "loading_started"
        await until(lambda: status_of("a") == "running", "the first one is being loaded")
        assert await asyncio.to_thread(load, "b", "quick") == "loading_started"
        assert await asyncio.to_thread(load, "a", "held") == "running"
        assert await asyncio.to_thread(load, "b", "quick") == "queued"
        assert await asyncio.to_thread(status_of, "b") == "queued"
        assert await asyncio.to_thread(server.stop) == 0, "and the server does not wait for it"


@pytest.mark.spec("operations-32")
async def test_a_model_that_is_loaded_is_not_loaded_again(server: RunningServer) -> None:
    assert admin(server, "/load_model", {"model_id": "default"}).refusal == (409, "ERR4002")
    await loaded(server, "other", profile_id="second")
    assert admin(server, "/load_model", {"model_id": "other", "profile_id": "second"}).refusal == (409, "ERR4002")


@pytest.mark.spec("operations-33")
async def test_the_profile_alone_decides(server: RunningServer) -> None:
    answer = admin(server, "/load_model", {"model_id": "x", "profile_id": "nonesuch", "backend": "scripted"})
    assert answer.refusal == (400, "ERR4009")
    assert "second" in answer.told["message"], "and which there are"
    await loaded(server, "other", profile_id="second", backend="sphinx", model_path="/nowhere")
    await loaded(server, "twin")
    async with realtime(server, model="other") as client, realtime(server, model="twin") as twin:
        assert await client.say(SILENCE) == "second"
        assert await twin.say(SILENCE) == "first", "the default profile is the server's own engine"


@pytest.mark.spec("operations-33")
async def test_the_default_profile_can_be_another(own_server: Serve, profiles: Path) -> None:
    server = own_server(
        *FREE, "--model-profiles", str(profiles), "--default-model-profile", "second", environment=ADMIN
    )
    await loaded(server, "other")
    async with realtime(server, model="other") as client:
        assert await client.say(SILENCE) == "second"


@pytest.mark.spec("operations-34")
async def test_fields_decide_where_any_is_sent_and_those_without_meaning_are_told(server: RunningServer) -> None:
    answer = admin(
        server, "/load_model", {"model_id": "other", "model_size": "small", "device": "cpu", "language": "en"}
    )
    assert answer.status == 200
    assert sorted(answer.told["ignored"]) == ["device", "language", "model_size"]
    await until(lambda: "other" in admin(server, "/list_models").told["models"], "it is loaded")
    async with realtime(server, model="other") as client:
        assert await client.say(SILENCE) == "first", "backend and script are the server's"
    answer = admin(server, "/load_model", {"model_id": "odd", "backend": "crystal-ball"})
    await until(lambda: admin(server, "/load_model_status?model_id=odd").told["status"] == "failed", "it failed")
    assert "crystal-ball" in admin(server, "/load_model_status?model_id=odd").told["error"]


@pytest.mark.spec("operations-35")
async def test_paths_are_allowed_by_the_operator_alone(own_server: Serve, tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "allowed-not"
    for folder in (allowed, other):
        folder.mkdir()
        (folder / "script.json").write_text(json.dumps(saying(folder.name)))
    (allowed / "link.json").symlink_to(other / "script.json")
    closed = own_server(*FREE, environment=ADMIN)
    body = {"model_id": "x", "model_path": str(allowed / "script.json")}
    assert admin(closed, "/load_model", body).refusal == (403, "ERR4005")
    environment = ADMIN | {
        "STT_ADMIN_ALLOW_MODEL_PATH": "yes",
        "STT_ADMIN_MODEL_PATH_ALLOWLIST": f"/nowhere, {allowed}",
    }
    server = own_server(*FREE, environment=environment)
    for path in (other / "script.json", allowed / ".." / "allowed-not" / "script.json", allowed / "link.json"):
        assert admin(server, "/load_model", {"model_id": "x", "model_path": str(path)}).refusal == (403, "ERR4005")
    await loaded(server, "x", model_path=str(allowed / "script.json"))
    async with realtime(server, model="x") as client:
        assert await client.say(SILENCE) == "allowed"
    anywhere = own_server(*FREE, environment=ADMIN | {"STT_ADMIN_ALLOW_MODEL_PATH": "1"})
    await loaded(anywhere, "x", model_path=str(other / "script.json"))


@pytest.mark.spec("operations-36")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, 2]", "model_load_profiles"),
        ("model_load_profiles: {a: 3}", "'a'"),
        ("model_load_profiles: {a: {engine: abacus}}", "abacus"),
        ("model_load_profiles: {a: {colour: red}}", "colour"),
        ("model_load_profiles: {a: {engine: sphinx, pool_size: -1}}", "sphinx_workers"),
        ("a: [", "profiles.yaml"),
    ],
)
def test_profiles_that_make_no_sense_stop_the_start(tmp_path: Path, text: str, told: str) -> None:
    import subprocess

    path = tmp_path / "profiles.yaml"
    path.write_text(text)
    ended = subprocess.run(
        command("--engine", "scripted", "--port", "0", "--ops-port", "0", "--model-profiles", str(path)),
        cwd=ROOT,
        env=clean_environment({"VOXTRAL_API_KEY": "k"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "EARMARK_MODEL_PROFILES" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.spec("operations-34", "operations-36")
async def test_keys_without_meaning_in_a_profile_are_told(server: RunningServer) -> None:
    answer = admin(server, "/load_model", {"model_id": "few", "profile_id": "few"})
    assert sorted(answer.told["ignored"]) == ["language_fix", "pool_size"]
    await until(lambda: "few" in admin(server, "/list_models").told["models"], "it is loaded")


# ---- unloading


@pytest.mark.spec("operations-38")
async def test_unloading_waits_for_what_the_model_hears_and_lets_nothing_new_begin(server: RunningServer) -> None:
    await loaded(server, "other", profile_id="second")
    async with realtime(server, model="other") as client, realtime(server, model="other") as late:
        await client.start()
        await client.append(sentence("heard", "to", "the"))
        await client.receive()
        unloading = asyncio.create_task(asyncio.to_thread(admin, server, "/unload_model?model_id=other", {}))
        await until(lambda: "other" not in listed(server), "it is offered no longer")
        await late.start()
        assert (await late.error())["code"] == "model_not_found"
        assert not unloading.done()
        await client.append(sentence("end"))
        await client.finish()
        assert (await client.receive_until("transcription.done"))[-1]["text"] == "heard to the end"
        assert (await unloading).told == {"status": "unloaded", "model_id": "other"}


@pytest.mark.spec("operations-39", "operations-38")
async def test_after_the_timeout_exactly_what_the_model_hears_fails(server: RunningServer) -> None:
    await loaded(server, "slow", profile_id="slow")
    async with (
        realtime(server, model="slow") as lost,
        yap(server) as also,
        realtime(server) as spared,
        realtime(server, model="slow") as idle,
    ):
        await also.send("session.update", model="slow")
        assert (await also.receive())["type"] == "session.updated"
        await asyncio.gather(lost.start(), also.start(), spared.start())
        for client in (lost, also, spared):
            await client.append(sentence("we", "are"))
            await client.receive()
        await lost.finish()
        answer = await asyncio.to_thread(admin, server, "/unload_model?model_id=slow&drain_timeout_sec=0.3", {})
        assert answer.told == {"status": "unloaded", "model_id": "slow"}
        failed = (await lost.receive_until("error"))[-1]
        assert failed["code"] == "processing_error"
        assert "slow" in failed["error"]
        assert "unloaded" in failed["error"]
        told = (await also.receive_until("error"))[-1]["payload"]
        assert "unloaded" in told["message"]
        await spared.append(sentence("here"))
        await spared.finish()
        assert (await spared.receive_until("transcription.done"))[-1]["text"] == "we are here"
        await idle.silent()
        # and they can go on with what there is
        await lost.update()
        assert await lost.say(sentence("again")) == "again"


@pytest.mark.spec("operations-39")
async def test_an_utterance_that_waits_for_its_turn_with_the_model_fails_too(server: RunningServer) -> None:
    await loaded(server, "slow", profile_id="slow")
    async with realtime(server, model="slow") as client:
        for word in ("one", "two"):
            await client.start()
            await client.append(sentence(word))
            await client.finish()
        await client.receive()
        await asyncio.to_thread(admin, server, "/unload_model?model_id=slow&drain_timeout_sec=0.1", {})
        assert (await client.receive_until("error"))[-1]["code"] == "processing_error"
        assert (await client.receive_until("error"))[-1]["code"] == "processing_error"
        await client.silent()


@pytest.mark.spec("operations-40")
async def test_the_last_model_stays_and_what_is_not_there_cannot_go(server: RunningServer) -> None:
    for model_id in ("default", "nonesuch"):
        assert admin(server, f"/unload_model?model_id={model_id}", {}).refusal == (400, "ERR4003")
    async with realtime(server) as client:
        assert await client.say(SILENCE) == "first"


@pytest.mark.spec("operations-40")
async def test_when_the_default_goes_the_next_one_takes_its_place(server: RunningServer) -> None:
    await loaded(server, "other", profile_id="second")
    async with yap(server) as running, realtime(server) as naming:
        await running.start()
        await running.append(sentence("still", "the"))
        await running.receive()
        unloading = asyncio.create_task(asyncio.to_thread(admin, server, "/unload_model?model_id=default", {}))
        await until(lambda: listed(server)[0] == "other", "the other is first")
        await running.append(sentence("first"))
        await running.finish()
        assert text_of(await running.receive_until("done")) == "still the first"
        assert (await unloading).status == 200
        await running.start("r2")
        await running.append(SILENCE, "r2")
        await running.finish("r2")
        assert text_of(await running.heard("r2")) == "second"
        await naming.start()
        assert (await naming.error())["code"] == "model_not_found", (
            "it named the one that went: it is not given another"
        )
    assert json.loads(server.get("/health")[1])["status"] == "healthy"
    assert admin(server, "/unload_model?model_id=other", {}).refusal == (400, "ERR4003")
    assert await asyncio.to_thread(server.stop) == 0


def processes(server: RunningServer) -> int:
    return len(psutil.Process(server.process.pid).children(recursive=True))


@pytest.mark.spec("operations-38", "operations-40")
async def test_an_engine_of_processes_comes_goes_and_leaves_none(own_server: Serve, tmp_path: Path) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text("model_load_profiles: {words: {engine: sphinx, pool_size: 2}, fixed: {engine: scripted}}\n")
    server = own_server(*FREE, "--model-profiles", str(path), environment=ADMIN)
    assert processes(server) == 0
    await loaded(server, "words", profile_id="words")
    assert processes(server) >= 2
    utterance = next(iter(load("spoken-en").utterances))
    async with realtime(server, model="words") as client:
        heard = await client.say(load_audio(utterance))
        assert set(heard.lower().split()) & set(utterance.text.lower().split()), heard
    assert admin(server, "/unload_model?model_id=words", {}).status == 200
    await until(lambda: processes(server) == 0, "its processes have ended")


@pytest.mark.spec("operations-40")
async def test_a_default_engine_of_processes_may_go_and_the_server_ends_well(own_server: Serve, profiles: Path) -> None:
    server = own_server(
        *FREE, "--sphinx-workers", "1", "--model-profiles", str(profiles), engine="sphinx", environment=ADMIN
    )
    await loaded(server, "other", profile_id="second")
    assert (await asyncio.to_thread(admin, server, "/unload_model?model_id=default", {})).status == 200
    await until(lambda: processes(server) == 0, "its processes have ended")
    async with realtime(server, model="other") as client:
        assert await client.say(SILENCE) == "second"
    assert await asyncio.to_thread(server.stop) == 0
    assert "Traceback" not in server.log()


@pytest.mark.spec("operations-41")
async def test_loading_and_unloading_costs_streams_of_other_models_nothing(server: RunningServer) -> None:
    """Eight streams in real time hear every word, while models come and go."""
    words = [f"word{number:02d}" for number in range(10)]
    audio = sentence(*words)
    over = asyncio.Event()

    async def stream() -> str:
        async with realtime(server) as client:
            await client.start()
            for at in range(0, len(audio), 3200):
                await client.append(audio[at : at + 3200])
                await asyncio.sleep(0.1)  # as it is spoken
            await client.finish()
            return await client.heard()

    async def come_and_go() -> int:
        rounds = 0
        while not over.is_set():
            await loaded(server, "other", profile_id="second")
            assert (await asyncio.to_thread(admin, server, "/unload_model?model_id=other", {})).status == 200
            rounds += 1
        return rounds

    changing = asyncio.create_task(come_and_go())
    said = await asyncio.gather(*(stream() for _ in range(8)))
    over.set()
    assert await changing >= 1
    assert said == [" ".join(words)] * 8
    assert server.metric("earmark_dropped_audio_seconds_total", surface="realtime") == 0
