"""Sessions of the gRPC service without a socket: the order of the checks, slots and what is given back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.rpc_figures import RpcFigures
from server.protocols.rpc_profiles import Profiles
from server.protocols.rpc_sessions import RpcSession, RpcSessions, SessionPolicy, VadSlots
from wire.stt.errors import SttRefusedError
from wire.stt.stt_pb2 import SessionRequest, SessionResponse


def sessions(figures: RpcFigures | None = None, **policy: Any) -> RpcSessions:
    return RpcSessions(SessionPolicy(**policy), figures or RpcFigures(), lambda: "0" * 32)


def create(
    registry: RpcSessions, session_id: str, now: float = 0.0, ip: str = "192.0.2.1", **fields: Any
) -> SessionResponse:
    return registry.create(SessionRequest(session_id=session_id, **fields), ip, now, {}, now)


def code(registry: RpcSessions, session_id: str, **fields: Any) -> str:
    try:
        create(registry, session_id, **fields)
    except SttRefusedError as refusal:
        return refusal.error.code
    return "OK"


@pytest.mark.spec("grpc-15")
def test_of_several_faults_the_first_of_the_order_counts() -> None:
    """Every fault at once, then one less each time."""
    bad = Profiles({"realtime": {"zeal": 1}}, "realtime")
    faults: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("ERR1001", {}, {"session_id": ""}),
        ("ERR1009", {"require_api_key": True}, {}),
        ("ERR1012", {"create_rate": 1.0, "create_burst": 1e-6}, {}),
        ("ERR1011", {"max_sessions_per_ip": 1}, {}),
        ("ERR1010", {"profiles": bad}, {}),
        ("ERR1003", {}, {"vad_threshold": -1.0}),
        ("ERR1008", {"max_sessions": 1}, {}),
        ("ERR1002", {}, {}),
    ]
    for first, (expected, _, _) in enumerate(faults):
        policy: dict[str, Any] = {"max_sessions": None, "max_sessions_per_ip": None, "create_rate": 0.0}
        fields: dict[str, Any] = {"session_id": "taken", "vad_threshold": 0.5}
        for _, more_policy, more_fields in faults[first:]:
            policy |= more_policy
            fields |= {name: value for name, value in more_fields.items() if name not in fields or name != "session_id"}
        if expected == "ERR1001":
            fields["session_id"] = ""
        registry = sessions(**policy)
        registry._register(  # an earlier session, which took no part in these checks
            RpcSession("taken", "192.0.2.1", "", "", False, None, "", False, options(), 0.0)
        )
        assert code(registry, **fields) == expected


def options() -> Any:
    from server.core.events import StreamOptions

    return StreamOptions()


@pytest.mark.spec("grpc-10")
def test_a_refused_session_has_spent_its_token() -> None:
    registry = sessions(create_rate=0.001, create_burst=2.0, max_sessions=None)
    assert code(registry, "one") == "OK"
    assert code(registry, "one") == "ERR1002"
    assert code(registry, "two") == "ERR1012"


@pytest.mark.spec("grpc-14")
def test_slots_grow_by_the_factor_and_stop_at_the_most() -> None:
    slots = VadSlots(4, 1.5, 10)
    capacities = []
    while slots.enter():
        capacities.append(slots.capacity)
    assert capacities == [4] * 4 + [6] * 2 + [9] * 3 + [10]
    slots.leave()
    assert slots.enter()
    assert not slots.enter()


def test_a_refused_session_holds_nothing() -> None:
    figures = RpcFigures()
    registry = sessions(figures, max_sessions=2, create_rate=0.0)
    assert code(registry, "one") == "OK"
    for _ in range(5):
        assert code(registry, "one") == "ERR1002"
    assert code(registry, "two") == "OK"
    assert figures.sessions == 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["create", "bind", "remove", "wait"]),
            st.sampled_from(["a", "b", "c", "d"]),
            st.sampled_from(["", "k", "l"]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_happens_every_place_is_given_back(happenings: list[tuple[str, str, str, bool]]) -> None:
    figures = RpcFigures()
    registry = sessions(figures, max_sessions=3, max_sessions_per_ip=3, max_sessions_per_api_key=2, create_rate=0.0)
    bound: dict[str, RpcSession] = {}
    now = 0.0
    for what, session_id, key, vad in happenings:
        now += 1.0
        try:
            match what:
                case "create":
                    attributes = {"api_key": key} if key else {}
                    create(registry, session_id, now, attributes=attributes, vad_threshold_override=0.5 if vad else 0.0)
                case "bind":
                    bound[session_id] = registry.bind(session_id, now)
                case "remove" if session_id in bound:
                    registry.remove(bound.pop(session_id))
                case "wait":
                    now += 30.0
        except SttRefusedError:
            pass
        assert figures.sessions == len(registry) <= 3
        assert sum(figures.sessions_by_api_key.values()) <= len(registry)
        assert all(count <= 2 for count in figures.sessions_by_api_key.values())
        assert set(bound) <= set(registry._sessions)
    for session in bound.values():
        registry.remove(session)
        registry.remove(session)  # twice does no harm
    registry.expire(now + 1000.0)
    assert len(registry) == figures.sessions == 0
    assert not figures.sessions_by_api_key
    assert registry._vad.used == 0
    for number in range(3):
        create(registry, f"fresh-{number}", now + 2000.0)


@pytest.mark.spec("grpc-19")
@pytest.mark.parametrize(
    ("name", "known"), [("realtime", "realtime"), ("accurate", "accurate"), ("wide", "accurate"), ("plain", "realtime")]
)
def test_engines_are_told_a_profile_that_they_know(name: str, known: str) -> None:
    profiles = Profiles({"realtime": {"beam_size": 9}, "accurate": {}, "wide": {"beam_size": 4}, "plain": {}})
    registry = sessions(profiles=profiles)
    create(registry, "s", attributes={"decode_profile": name}, vad_threshold_override=0.0)
    assert registry.bind("s", 1.0).options.profile == known


@pytest.mark.spec("grpc-21")
def test_sessions_that_name_no_model_get_one_after_the_other() -> None:
    import asyncio

    from server.engines.registry import Models
    from server.engines.scripted import ScriptedEngine, read_script
    from server.metrics import Metrics
    from server.service import Service
    from server.surfaces.rpc import _model_chooser

    async def check() -> None:
        models = Models(ScriptedEngine(read_script(""), 0.08), ["first"])
        choose = _model_chooser(Service(models, Metrics()))
        assert choose(None) is None, "one model: the default one"
        await models.load("second", ScriptedEngine(read_script(""), 0.08))
        assert [choose(None) for _ in range(4)] == ["default", "second", "default", "second"]
        assert choose("second") == "second"
        assert choose("first") == "default"
        assert choose("unheard-of") is None
        await models.stop()

    asyncio.run(check())
